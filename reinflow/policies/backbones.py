"""Velocity networks with the options that the command line and checkpoints have for them."""

from __future__ import annotations

from nets.dit import CrossAttentionDiT
from nets.mlp import ShortCutVelocityMLP
from nets.preact import PreactVelocityMLP
from nets.tokens import CondLayout, Part
from nets.transformer import VelocityTransformer
from nets.unet1d import ShortCutVelocityUNet1D
from reinflow.errors import UserError
from reinflow.policies.options import MLPConfig, UNetConfig
from reinflow.policies.spec import PolicySpec


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
    if spec.image is None:
        return CondLayout(spec.obs_horizon, tuple(parts))
    return CondLayout(spec.picture_frames, tuple(parts), older=spec.obs_horizon - spec.picture_frames)
