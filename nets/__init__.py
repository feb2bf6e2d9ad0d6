"""Neural networks: tensors in, tensors out. No RL, no flow maths, no simulator.

A velocity backbone is a `VelocityNet` (velocity.py): `forward(sample: b h a, timestep: b, step_size: b, global_cond:
b z)` is (b h a) with times in [0, 1], and `grid` takes several denoising steps of one observation.

What `from nets import ...` names is imported when it is asked for: a command line reads `nets.config` and no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

MODULES = {
    "config": ("DiTConfig", "PreactMLPConfig", "TransformerConfig"),
    "critic": ("QEnsemble", "ValueNetwork"),
    "dit": ("CrossAttentionDiT",),
    "embed": ("SinusoidalEmbedding", "TimeEmbedding"),
    "mlp": ("MLP", "ShortCutVelocityMLP"),
    "noise": ("ExploreNoiseNet", "NoisyVelocityUNet1D"),
    "normalize": ("MeanStdNormalizer", "MinMaxNormalizer"),
    "preact": ("PreactVelocityMLP",),
    "tokens": ("CondLayout", "Part"),
    "transformer": ("VelocityTransformer",),
    "unet1d": ("ShortCutVelocityUNet1D",),
}
"""which module has which public name"""

__all__ = [name for names in MODULES.values() for name in names]


def __getattr__(name: str) -> Any:
    """Import the module of a public name."""
    for module, names in MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"nets.{module}"), name)
    raise AttributeError(f"module 'nets' has no attribute {name!r}")
