"""Policy families by name, and what makes one of them stochastic."""

from __future__ import annotations

from torch import nn

from nets.dit import CrossAttentionDiT, DiTConfig
from nets.mlp import ShortCutVelocityMLP
from nets.preact import PreactMLPConfig, PreactVelocityMLP
from nets.tokens import CondLayout, Part
from nets.transformer import TransformerConfig, VelocityTransformer
from nets.unet1d import ShortCutVelocityUNet1D
from reinflow.errors import UserError
from reinflow.policies.base import Policy
from reinflow.policies.flow import FlowPolicy
from reinflow.policies.gaussian import Gaussian
from reinflow.policies.noisy import NoiseNetConfig, NoisyFlow
from reinflow.policies.reflow import ReFlow
from reinflow.policies.shortcut import Shortcut, ShortcutConfig
from reinflow.policies.spec import PolicyConfig, PolicySpec, executed_slice
from reinflow.types import Stochastic

FAMILIES: dict[str, type[Policy]] = {"shortcut": Shortcut, "reflow": ReFlow, "gaussian": Gaussian}


def unet(spec: PolicySpec) -> nn.Module:
    return ShortCutVelocityUNet1D(
        input_dim=spec.action_dim,
        global_cond_dim=spec.cond_dim,
        diffusion_step_embed_dim=spec.diffusion_step_embed_dim,
        down_dims=spec.unet_dims,
        n_groups=spec.n_groups,
    )


def mlp(spec: PolicySpec) -> nn.Module:
    return ShortCutVelocityMLP(
        spec.action_dim,
        spec.pred_horizon,
        spec.cond_dim,
        hidden_dim=spec.mlp_hidden_dim,
        depth=spec.mlp_depth,
        time_embed_dim=spec.diffusion_step_embed_dim,
    )


def preact(spec: PolicySpec) -> nn.Module:
    config = PreactMLPConfig(preact_time_dim=spec.diffusion_step_embed_dim)
    return PreactVelocityMLP(spec.action_dim, spec.pred_horizon, spec.cond_dim, config)


def transformer(spec: PolicySpec) -> nn.Module:
    config = TransformerConfig(transformer_time_dim=spec.diffusion_step_embed_dim)
    layout = cond_layout(spec, config.transformer_picture_tokens)
    return VelocityTransformer(spec.action_dim, spec.pred_horizon, layout, config)


def dit(spec: PolicySpec) -> nn.Module:
    config = DiTConfig(dit_time_dim=spec.diffusion_step_embed_dim)
    layout = cond_layout(spec, config.dit_picture_tokens)
    return CrossAttentionDiT(spec.action_dim, spec.pred_horizon, layout, config)


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


NETS = {"unet": unet, "mlp": mlp, "preact": preact, "transformer": transformer, "dit": dit}


def build_policy(spec: PolicySpec, **family_options: object) -> Policy:
    """A new policy of `spec`; load a checkpoint's state to restore one, normalisers included.

    UserError for a family or network that is not registered here.
    """
    if spec.family not in FAMILIES:
        raise UserError(f"there is no policy family {spec.family!r}: choose one of {', '.join(FAMILIES)}")
    if spec.net not in NETS:
        raise UserError(f"there is no network {spec.net!r}: choose one of {', '.join(NETS)}")
    return FAMILIES[spec.family](spec, NETS[spec.net](spec), **family_options)


def make_stochastic(policy: Policy, num_steps: int, config: NoiseNetConfig | None = None) -> Stochastic:
    """What PPO fine-tunes: a flow gets learned noise, a policy with a density of its own stays as it is."""
    if isinstance(policy, FlowPolicy):
        return NoisyFlow(policy, num_steps, config)
    if isinstance(policy, Stochastic):
        return policy
    raise UserError(
        f"PPO needs a Stochastic policy, got {type(policy).__name__}: "
        "give it what reinflow.types.Stochastic lists, or derive it from FlowPolicy"
    )


__all__ = [
    "FAMILIES", "NETS", "FlowPolicy", "Gaussian", "NoiseNetConfig", "NoisyFlow", "Policy", "PolicyConfig", "PolicySpec",
    "ReFlow", "Shortcut", "ShortcutConfig", "build_policy", "executed_slice", "make_stochastic",
]  # fmt: skip
