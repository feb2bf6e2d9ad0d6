"""Neural networks: tensors in, tensors out. No RL, no flow maths, no simulator.

A velocity backbone is a `VelocityNet` (velocity.py): `forward(sample: b h a, timestep: b, step_size: b, global_cond:
b z)` is (b h a) with times in [0, 1], and `grid` takes several denoising steps of one observation.
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
