"""Neural networks: tensors in, tensors out. No RL, no flow maths, no simulator.

A velocity backbone is a `VelocityNet` (velocity.py): `forward(sample: b h a, timestep: b, step_size: b, global_cond:
b z)` is (b h a) with times in [0, 1], and `grid` takes several denoising steps of one observation.
"""

from nets.critic import QEnsemble, ValueNetwork
from nets.dit import CrossAttentionDiT, DiTConfig
from nets.embed import SinusoidalEmbedding, TimeEmbedding
from nets.mlp import MLP, ShortCutVelocityMLP
from nets.noise import ExploreNoiseNet, NoisyVelocityUNet1D
from nets.normalize import MeanStdNormalizer, MinMaxNormalizer
from nets.preact import PreactMLPConfig, PreactVelocityMLP
from nets.tokens import CondLayout, Part
from nets.transformer import TransformerConfig, VelocityTransformer
from nets.unet1d import ShortCutVelocityUNet1D

__all__ = [
    "MLP",
    "CondLayout",
    "CrossAttentionDiT",
    "DiTConfig",
    "ExploreNoiseNet",
    "MeanStdNormalizer",
    "MinMaxNormalizer",
    "NoisyVelocityUNet1D",
    "Part",
    "PreactMLPConfig",
    "PreactVelocityMLP",
    "QEnsemble",
    "ShortCutVelocityMLP",
    "ShortCutVelocityUNet1D",
    "SinusoidalEmbedding",
    "TimeEmbedding",
    "TransformerConfig",
    "ValueNetwork",
    "VelocityTransformer",
]
