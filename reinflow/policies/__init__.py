"""Policy families by name, and what makes one of them stochastic."""

from __future__ import annotations

from nets.dit import DiTConfig
from nets.preact import PreactMLPConfig
from nets.transformer import TransformerConfig
from nets.vision import PlainConv, ResNet18
from nets.vit import ViT
from reinflow.policies.backbones import MLPConfig, UNetConfig, dit, mlp, preact, transformer, unet
from reinflow.policies.base import Policy
from reinflow.policies.consistency import Consistency, ConsistencyConfig
from reinflow.policies.ddpm import DDPM, DDPMConfig
from reinflow.policies.flow import FlowConfig, FlowPolicy
from reinflow.policies.gaussian import Gaussian
from reinflow.policies.gmm import GMM, GMMConfig
from reinflow.policies.improved_meanflow import ImprovedMeanFlow
from reinflow.policies.meanflow import MeanFlow, MeanFlowConfig
from reinflow.policies.mip import MIP, MIPConfig
from reinflow.policies.noisy import NoisyFlow
from reinflow.policies.parts import ENCODERS, FAMILIES, NETS, FamilyWithoutNoise, NoiseNetConfig, PartConfig
from reinflow.policies.reflow import ReFlow
from reinflow.policies.shortcut import Shortcut, ShortcutConfig
from reinflow.policies.spec import PolicyConfig, PolicySpec, executed_slice
from reinflow.registry import Entry
from reinflow.types import Stochastic

FAMILIES.add("shortcut", Entry(Shortcut, ShortcutConfig))
FAMILIES.add("reflow", Entry(ReFlow, FlowConfig))
FAMILIES.add("meanflow", Entry(MeanFlow, MeanFlowConfig))
FAMILIES.add("improved_meanflow", Entry(ImprovedMeanFlow, MeanFlowConfig))
FAMILIES.add("consistency", Entry(Consistency, ConsistencyConfig))
FAMILIES.add("ddpm", Entry(DDPM, DDPMConfig))
FAMILIES.add("gaussian", Entry(Gaussian, FamilyWithoutNoise))
FAMILIES.add("gmm", Entry(GMM, GMMConfig))
FAMILIES.add("mip", Entry(MIP, MIPConfig))

NETS.add("unet", Entry(unet, UNetConfig))
NETS.add("mlp", Entry(mlp, MLPConfig))
NETS.add("preact", Entry(preact, PreactMLPConfig))
NETS.add("transformer", Entry(transformer, TransformerConfig))
NETS.add("dit", Entry(dit, DiTConfig))

ENCODERS.add("plain_conv", Entry(PlainConv, PartConfig))
ENCODERS.add("resnet18", Entry(ResNet18, PartConfig))
ENCODERS.add("vit", Entry(ViT, PartConfig))


def build_policy(spec: PolicySpec) -> Policy:
    """A new policy of `spec`; load a checkpoint's state to restore one, normalisers included."""
    return FAMILIES[spec.family].build(spec, NETS[spec.net].build(spec))


def make_stochastic(policy: Policy, num_steps: int, config: NoiseNetConfig | None = None) -> Stochastic:
    """What PPO fine-tunes: the chain of the policy's family. UserError where it has none."""
    return policy.chain(num_steps, config or NoiseNetConfig())


__all__ = [
    "ENCODERS", "FAMILIES", "NETS", "FlowPolicy", "Gaussian", "NoiseNetConfig", "NoisyFlow", "PartConfig", "Policy",
    "PolicyConfig", "PolicySpec", "ReFlow", "Shortcut", "ShortcutConfig", "build_policy", "executed_slice",
    "make_stochastic",
]  # fmt: skip
