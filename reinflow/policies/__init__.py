"""Policy families by name, and what makes one of them stochastic."""

from __future__ import annotations

from torch import nn

from nets.mlp import ShortCutVelocityMLP
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


NETS = {"unet": unet, "mlp": mlp}


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
