"""Velocity networks with the options that the command line and checkpoints have for them."""

from __future__ import annotations

from dataclasses import dataclass

from nets.dit import CrossAttentionDiT
from nets.mlp import ShortCutVelocityMLP
from nets.preact import PreactVelocityMLP
from nets.tokens import CondLayout, Part
from nets.transformer import VelocityTransformer
from nets.unet1d import ShortCutVelocityUNet1D
from reinflow.errors import UserError
from reinflow.policies.parts import PartConfig
from reinflow.policies.spec import PolicySpec


@dataclass(frozen=True)
class TimedConfig(PartConfig):
    """What all networks of a flow have."""

    diffusion_step_embed_dim: int = 64
    """width of the embedding of flow time and step size"""

    def __post_init__(self) -> None:
        if self.diffusion_step_embed_dim < 4 or self.diffusion_step_embed_dim % 2:
            raise UserError(
                f"--diffusion_step_embed_dim {self.diffusion_step_embed_dim} must be an even number of at least 4"
            )


@dataclass(frozen=True)
class UNetConfig(TimedConfig):
    """ShortCutVelocityUNet1D, the network of the guide."""

    unet_dims: tuple[int, ...] = (64, 128, 256)
    """UNet channels per level; pred_horizon must be a multiple of 2 ** (levels - 1)"""
    n_groups: int = 8
    """GroupNorm groups of the UNet"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.unet_dims or min(self.n_groups, *self.unet_dims) < 1:
            raise UserError("--n_groups and every one of --unet_dims must be at least 1")
        if any(width % self.n_groups for width in self.unet_dims):
            raise UserError(f"each of --unet_dims {self.unet_dims} must be a multiple of --n_groups {self.n_groups}")

    def check(self, spec: PolicySpec) -> None:
        """UserError where the chunk's length can't be halved from level to level."""
        factor = 2 ** (len(self.unet_dims) - 1)
        if spec.pred_horizon % factor:
            raise UserError(
                f"--pred_horizon {spec.pred_horizon} must be a multiple of {factor} for a UNet of "
                f"{len(self.unet_dims)} levels: change it or --unet_dims, or pass --net mlp"
            )


@dataclass(frozen=True)
class MLPConfig(TimedConfig):
    """A residual MLP over the flattened chunk, the fast choice for state observations."""

    mlp_hidden_dim: int = 256
    """width of the MLP"""
    mlp_depth: int = 3
    """residual layers of the MLP"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.mlp_hidden_dim, self.mlp_depth) < 1:
            raise UserError("--mlp_hidden_dim and --mlp_depth must be at least 1")


def unet(spec: PolicySpec) -> ShortCutVelocityUNet1D:
    """The UNet for chunks and conditions of `spec`, of the size that its `UNetConfig` says."""
    options: UNetConfig = spec.net_options
    return ShortCutVelocityUNet1D(
        input_dim=spec.action_dim,
        global_cond_dim=spec.cond_dim,
        diffusion_step_embed_dim=options.diffusion_step_embed_dim,
        down_dims=options.unet_dims,
        n_groups=options.n_groups,
    )


def mlp(spec: PolicySpec) -> ShortCutVelocityMLP:
    """The residual MLP for chunks and conditions of `spec`, of the size that its `MLPConfig` says."""
    options: MLPConfig = spec.net_options
    return ShortCutVelocityMLP(
        spec.action_dim,
        spec.pred_horizon,
        spec.cond_dim,
        hidden_dim=options.mlp_hidden_dim,
        depth=options.mlp_depth,
        time_embed_dim=options.diffusion_step_embed_dim,
    )


def preact(spec: PolicySpec) -> PreactVelocityMLP:
    """The MLP of DPPO for chunks and conditions of `spec`, of the size that its `PreactMLPConfig` says."""
    return PreactVelocityMLP(spec.action_dim, spec.pred_horizon, spec.cond_dim, spec.net_options)


def transformer(spec: PolicySpec) -> VelocityTransformer:
    """The Transformer for chunks of `spec`. UserError where picture features can't be cut into its tokens."""
    layout = cond_layout(spec, spec.net_options.transformer_picture_tokens)
    return VelocityTransformer(spec.action_dim, spec.pred_horizon, layout, spec.net_options)


def dit(spec: PolicySpec) -> CrossAttentionDiT:
    """The DiT for chunks of `spec`. UserError where picture features can't be cut into its tokens."""
    layout = cond_layout(spec, spec.net_options.dit_picture_tokens)
    return CrossAttentionDiT(spec.action_dim, spec.pred_horizon, layout, spec.net_options)


def cond_layout(spec: PolicySpec, picture_tokens: int) -> CondLayout:
    """The numbers that `ObsEncoder` puts in a row; UserError where picture features make no `picture_tokens` tokens."""
    parts = [Part(1, spec.state_dim)]
    if spec.image:
        if spec.visual_feature_dim % picture_tokens:
            raise UserError(
                f"--visual_feature_dim {spec.visual_feature_dim} must be a multiple of {picture_tokens}, "
                f"the tokens that --net {spec.net} reads it as"
            )
        parts.append(Part(picture_tokens, spec.visual_feature_dim // picture_tokens))
    return CondLayout(spec.obs_horizon, tuple(parts))
