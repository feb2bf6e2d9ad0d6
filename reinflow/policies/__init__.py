"""Policy families by name, and what makes one of them stochastic.

Their classes are imported when one is built: a command line needs their options alone, and no torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from nets.config import DiTConfig, PreactMLPConfig, TransformerConfig
from reinflow.errors import UserError
from reinflow.policies.options import (
    ConsistencyConfig,
    DDPMConfig,
    GMMConfig,
    MeanFlowConfig,
    MIPConfig,
    MLPConfig,
    ReFlowConfig,
    ShortcutConfig,
    UNetConfig,
)
from reinflow.policies.parts import ENCODERS, FAMILIES, NETS, FamilyWithoutNoise, NoiseNetConfig, PartConfig
from reinflow.policies.spec import PolicyConfig, PolicySpec, executed_slice
from reinflow.registry import Entry, later

if TYPE_CHECKING:
    from reinflow.policies.base import Policy
    from reinflow.policies.flow import FlowPolicy
    from reinflow.types import Stochastic

FAMILIES.add("shortcut", Entry(later("reinflow.policies.shortcut:Shortcut"), ShortcutConfig))
FAMILIES.add("reflow", Entry(later("reinflow.policies.reflow:ReFlow"), ReFlowConfig))
FAMILIES.add("meanflow", Entry(later("reinflow.policies.meanflow:MeanFlow"), MeanFlowConfig))
FAMILIES.add("improved_meanflow", Entry(later("reinflow.policies.improved_meanflow:ImprovedMeanFlow"), MeanFlowConfig))
FAMILIES.add("consistency", Entry(later("reinflow.policies.consistency:Consistency"), ConsistencyConfig))
FAMILIES.add("ddpm", Entry(later("reinflow.policies.ddpm:DDPM"), DDPMConfig))
FAMILIES.add("gaussian", Entry(later("reinflow.policies.gaussian:Gaussian"), FamilyWithoutNoise))
FAMILIES.add("gmm", Entry(later("reinflow.policies.gmm:GMM"), GMMConfig))
FAMILIES.add("mip", Entry(later("reinflow.policies.mip:MIP"), MIPConfig))

NETS.add("unet", Entry(later("reinflow.policies.backbones:unet"), UNetConfig))
NETS.add("mlp", Entry(later("reinflow.policies.backbones:mlp"), MLPConfig))
NETS.add("preact", Entry(later("reinflow.policies.backbones:preact"), PreactMLPConfig))
NETS.add("transformer", Entry(later("reinflow.policies.backbones:transformer"), TransformerConfig))
NETS.add("dit", Entry(later("reinflow.policies.backbones:dit"), DiTConfig))

ENCODERS.add("plain_conv", Entry(later("nets.vision:PlainConv"), PartConfig))
ENCODERS.add("resnet18", Entry(later("nets.vision:ResNet18"), PartConfig))
ENCODERS.add("vit", Entry(later("nets.vit:ViT"), PartConfig))


def build_policy(spec: PolicySpec) -> Policy:
    """A new policy of `spec`; load a checkpoint's state to restore one, normalisers included."""
    return FAMILIES[spec.family].build(spec, NETS[spec.net].build(spec))


def make_stochastic(policy: Policy, num_steps: int, config: NoiseNetConfig | None = None) -> Stochastic:
    """What PPO fine-tunes: the chain of the policy's family. UserError where it has none, or not such a one."""
    from reinflow.policies.ddpm import DDPM
    from reinflow.policies.likelihood import FlowLikelihood

    config = config or NoiseNetConfig()
    if config.eta and not isinstance(policy, DDPM):
        raise UserError(
            f"--eta {config.eta} is for the noise of a diffusion chain, and --family {policy.spec.family} has none: "
            "leave it out"
        )
    if config.likelihood == "exact":
        return FlowLikelihood(cast("FlowPolicy", policy), num_steps, config.likelihood_probes)
    return policy.chain(num_steps, config)


def holding_early_steps(policy: Policy, ft_denoising_steps: int, num_steps: int) -> Policy:
    """A copy of which fine-tuning moves the last steps of `num_steps` alone; the others stay those of `policy`.

    UserError where it has no such steps, or holds others already.
    """
    if policy.spec.ft_denoising_steps is not None:
        raise UserError(
            f"the checkpoint was fine-tuned with --ft_denoising_steps {policy.spec.ft_denoising_steps} and goes on so: "
            "leave the flag out"
        )
    spec = replace(policy.spec, num_inference_steps=num_steps, ft_denoising_steps=ft_denoising_steps)
    holding = build_policy(spec).to(policy.device)
    early = {f"held_net.{name}": value for name, value in policy.net.state_dict().items()}
    holding.load_state_dict(policy.state_dict() | early)
    return holding


__all__ = [
    "ENCODERS", "FAMILIES", "NETS", "NoiseNetConfig", "PartConfig", "PolicyConfig", "PolicySpec", "build_policy",
    "executed_slice", "holding_early_steps", "make_stochastic",
]  # fmt: skip
