"""What may be faster on a GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AccelerationConfig:
    """Speed on a GPU."""

    cuda_graphs: bool = True
    """replay denoising chains, gradient steps and decisions as CUDA graphs where there is a GPU; plain code, with a
    warning, where that fails"""
    tf32: bool = False
    """let the networks of a chain multiply and convolve in TF32, 10 bits; old and new log-probabilities then both come
    from the update's own kernels"""
    bf16: bool = False
    """let them multiply in bfloat16, 7 bits, in the same way: the ratio is exact before the first step, and noise after
    it (docs/gpu.md)"""
    compile: bool = False
    """compile the velocity network (torch.compile): minutes at the start, and slower than plain code on a CPU"""
    bf16_encoder: bool = False
    """encode pictures in bfloat16; only while the encoder is frozen, since log-probabilities need float32"""
