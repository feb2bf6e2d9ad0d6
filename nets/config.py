"""Sizes of networks that are chosen by name: plain numbers, without torch, so that a command line is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PreactMLPConfig:
    """Size of the pre-activation MLP."""

    preact_hidden_dim: int = 512
    """width of the layers"""
    preact_blocks: int = 1
    """residual blocks of two layers each; `mlp_dims: [512, 512, 512]` there is one"""
    preact_time_dim: int = 16
    """width of the embeddings of flow time and step size"""
    preact_cond_dims: tuple[int, ...] = (64, 16)
    """layers that the condition passes first; none for pictures, which their encoder has already made small"""
    preact_activation: Literal["mish", "relu"] = "mish"
    """of the layers and of the net over the condition; embeddings always have Mish"""
    preact_max_frequency: float = 1000.0
    """rad per unit of time of the fastest sinusoid in the embeddings; 1 is what ReinFlow's own ReFlow networks have"""


@dataclass(frozen=True)
class TransformerConfig:
    """Size of the Transformer."""

    transformer_dim: int = 96
    """width of a token; DPPO takes 160 for two arms (transport)"""
    transformer_heads: int = 4
    """attention heads; they divide the width"""
    transformer_depth: int = 4
    """blocks"""
    transformer_time_dim: int = 64
    """width of the embeddings of flow time and step size"""
    transformer_picture_tokens: int = 1
    """tokens that the picture features of a frame are read as"""


@dataclass(frozen=True)
class DiTConfig:
    """Size of the cross-attention DiT."""

    dit_dim: int = 128
    """width of a token"""
    dit_heads: int = 4
    """attention heads; they divide the width"""
    dit_depth: int = 4
    """blocks"""
    dit_time_dim: int = 64
    """width of the embeddings of flow time and step size"""
    dit_picture_tokens: int = 4
    """tokens that the picture features of a frame are read as"""
