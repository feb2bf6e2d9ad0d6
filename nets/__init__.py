"""Neural networks: tensors in, tensors out. No RL, no flow maths, no simulator.

A velocity backbone offers

    forward(sample: b h a, timestep: b, step_size: b, global_cond: b z) -> b h a
    condition(global_cond: b z) -> b f                what of the net depends on the condition alone
    velocity(sample, timestep, step_size, features: b f) -> b h a

with `forward(x, t, d, c) == velocity(x, t, d, condition(c))`. `timestep` and `step_size` are continuous in [0, 1]. A
caller that evaluates several denoising steps for one observation computes `condition` once per observation and
repeats its rows.
"""

from nets.critic import QEnsemble, ValueNetwork
from nets.embed import SinusoidalEmbedding, TimeEmbedding
from nets.mlp import MLP, ShortCutVelocityMLP
from nets.noise import ExploreNoiseNet, NoisyVelocityUNet1D
from nets.normalize import MeanStdNormalizer, MinMaxNormalizer
from nets.unet1d import ShortCutVelocityUNet1D

__all__ = [
    "MLP",
    "ExploreNoiseNet",
    "MeanStdNormalizer",
    "MinMaxNormalizer",
    "NoisyVelocityUNet1D",
    "QEnsemble",
    "ShortCutVelocityMLP",
    "ShortCutVelocityUNet1D",
    "SinusoidalEmbedding",
    "TimeEmbedding",
    "ValueNetwork",
]
