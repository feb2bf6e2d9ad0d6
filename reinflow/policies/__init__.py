"""Policy families by name, and what makes one of them stochastic.

Their classes are imported when one is built: a command line needs their options alone, and no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nets.config import DiTConfig, PreactMLPConfig, TransformerConfig
from reinflow.policies.options import (
    ConsistencyConfig,
    DDPMConfig,
    FlowConfig,
    GMMConfig,
    MeanFlowConfig,
    MIPConfig,
    MLPConfig,
    ShortcutConfig,
    UNetConfig,
)
from reinflow.policies.parts import ENCODERS, FAMILIES, NETS, FamilyWithoutNoise, NoiseNetConfig, PartConfig
from reinflow.policies.spec import PolicyConfig, PolicySpec, executed_slice
from reinflow.registry import Entry, later

if TYPE_CHECKING:
    from reinflow.policies.base import Policy
    from reinflow.types import Stochastic

FAMILIES.add("shortcut", Entry(later("reinflow.policies.shortcut:Shortcut"), ShortcutConfig))
FAMILIES.add("reflow", Entry(later("reinflow.policies.reflow:ReFlow"), FlowConfig))
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
    """What PPO fine-tunes: the chain of the policy's family. UserError where it has none."""
    return policy.chain(num_steps, config or NoiseNetConfig())


__all__ = [
    "ENCODERS", "FAMILIES", "NETS", "NoiseNetConfig", "PartConfig", "PolicyConfig", "PolicySpec", "build_policy",
    "executed_slice", "make_stochastic",
]  # fmt: skip
