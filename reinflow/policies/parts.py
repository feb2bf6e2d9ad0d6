"""What a policy is made of, by name: families, networks and image encoders.

The entries are added where they are defined (`reinflow/policies/__init__.py` lists them), one line each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from reinflow.errors import UserError
from reinflow.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from reinflow.policies.spec import PolicySpec


@dataclass(frozen=True)
class PartConfig:
    """Options of a part; one without options has this one."""

    def check(self, spec: PolicySpec) -> None:
        """UserError where these options and the rest of a spec contradict each other."""


@dataclass(frozen=True)
class FamilyConfig(PartConfig):
    """Options of a policy family."""

    noise_scale: ClassVar[float] = 1.0
    """`initial_noise_scale` of a new policy, where none is given"""
    denoises: ClassVar[bool] = False
    """whether it goes from noise to actions in steps, the first of which can be kept from fine-tuning"""


@dataclass(frozen=True)
class FamilyWithoutNoise(FamilyConfig):
    """Options of a family that acts as a function of what it sees."""

    def check(self, spec: PolicySpec) -> None:
        """UserError for an `initial_noise_scale` other than 1: such a family acts without x_0."""
        if spec.initial_noise_scale != 1:
            raise UserError(
                f"--initial_noise_scale is for what starts from noise, and --family {spec.family} does not: "
                "leave it out"
            )


@dataclass(frozen=True)
class NoiseNetConfig:
    """What a chain explores by: a network that predicts the noise of its steps, and a diffusion policy's own noise."""

    noise_hidden_dim: int = 128
    """width of its two hidden layers"""
    noise_per_position: bool = False
    """one std per chunk position and action dimension instead of one per action dimension"""
    eta: float = 0.0
    """share of the posterior's std that a diffusion policy's steps have in a chain, 0 (DDIM) to 1 (DDPM, where all its
    noise levels are steps); it is none when the policy acts without exploring"""
    likelihood: Literal["chain", "exact"] = "chain"
    """of what PPO compares: chains of noisy steps, or the chunks that a flow without such noise draws from a random
    x_0 (DPPO's exact diffusion); then --scored is all"""
    likelihood_probes: int = 0
    """random directions per trace of an exact likelihood; 0 takes all, one per number of a chunk"""

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"--eta {self.eta} must be from 0 to 1")
        if self.likelihood_probes < 0:
            raise UserError(f"--likelihood_probes {self.likelihood_probes} must not be negative")


FAMILIES: Registry[Any] = Registry("policy family", flag="family")
"""build(spec, net) -> Policy"""
NETS: Registry[nn.Module] = Registry("network", flag="net")
"""build(spec) -> a VelocityNet"""
ENCODERS: Registry[nn.Module] = Registry("image encoder", flag="visual_encoder")
"""build(in_channels, out_dim, (height, width)) -> pictures to features; ValueError for pictures that are too small"""
