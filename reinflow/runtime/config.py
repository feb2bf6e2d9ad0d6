"""What may be faster on a GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AccelerationConfig:
    """Speed on a GPU."""

    cuda_graphs: bool = False
    """replay denoising chains and gradient steps as CUDA graphs; plain code, with a warning, where that fails"""
    compile: bool = False
    """compile the velocity network (torch.compile): minutes at the start, and slower than plain code on a CPU"""
    bf16_encoder: bool = False
    """encode pictures in bfloat16; only while the encoder is frozen, since log-probabilities need float32"""
