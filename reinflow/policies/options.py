"""Options of the policy families and networks that are chosen by name: plain values, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from reinflow.errors import UserError
from reinflow.policies.parts import FamilyConfig, FamilyWithoutNoise, PartConfig

if TYPE_CHECKING:
    from reinflow.policies.spec import PolicySpec


TimeSampling = Literal["uniform", "logitnormal", "beta"]


@dataclass(frozen=True)
class FlowConfig(FamilyConfig):
    """Options of a flow."""

    noise_scale: ClassVar[float] = 0.0
    denoises: ClassVar[bool] = True


@dataclass(frozen=True)
class ReFlowConfig(FlowConfig):
    """Training of a rectified flow."""

    t_sampling: TimeSampling = "uniform"
    """distribution of t"""


@dataclass(frozen=True)
class ShortcutConfig(FlowConfig):
    """Training targets of the ShortCut Flow."""

    max_denoising_steps: int = 8
    """N: the smallest bootstrapped step is 1/N"""
    step_size_mode: Literal["power2", "uniform", "fixed"] = "power2"
    """step sizes that are trained: 1/2^i, 1/n for any n up to N, or 1/N alone"""

    self_consistency_k: float = 0.25
    """share of rows trained on bootstrap targets"""
    flow_weight: float = 1.0
    """weight of the flow-matching rows"""
    shortcut_weight: float = 1.0
    """weight of the bootstrap rows"""
    target_mode: Literal["velocity", "endpoint"] = "velocity"
    """compare average velocities, or the endpoints they lead to (weights an error by d^2)"""
    teacher_steps: int = 2
    """teacher steps that make up one student step"""
    t_sampling: TimeSampling = "uniform"
    """distribution of t on flow rows"""

    def __post_init__(self) -> None:
        if not 0 <= self.self_consistency_k <= 1:
            raise UserError(f"--self_consistency_k {self.self_consistency_k} must be from 0 to 1")
        if self.max_denoising_steps < 1:
            raise UserError(f"--max_denoising_steps {self.max_denoising_steps} must be at least 1")
        if self.teacher_steps < 2:
            raise UserError(f"--teacher_steps {self.teacher_steps} must be at least 2: one step would teach nothing")


@dataclass(frozen=True)
class MeanFlowConfig(FlowConfig):
    """Training targets of MeanFlow."""

    average_share: float = 0.5
    """share of rows that learn an average over d > 0; the others learn the velocity itself"""
    t_sampling: TimeSampling = "logitnormal"
    """distribution of both ends of an average"""
    adaptive_power: float = 0.5
    """p of the rows' weights 1 / (error + adaptive_offset)^p, the error a mean over the chunk; 0 is plain squares"""
    adaptive_offset: float = 1e-3
    """keeps small errors from weighing without bound"""
    time_scale: float = 0.01
    """of t and d as the network's embedding sees them; 1 learns averages badly"""

    def __post_init__(self) -> None:
        if not 0 <= self.average_share <= 1:
            raise UserError(f"--average_share {self.average_share} must be from 0 to 1")
        if self.adaptive_power < 0 or self.adaptive_offset <= 0:
            raise UserError("--adaptive_power must be at least 0 and --adaptive_offset more than 0")
        if self.time_scale <= 0:
            raise UserError(f"--time_scale {self.time_scale} must be positive")


@dataclass(frozen=True)
class ConsistencyConfig(FlowConfig):
    """Training of a consistency policy."""

    teacher_path: str | None = None
    """checkpoint of a ReFlow of the same network to distil, a file or a run directory; None learns from the
    demonstrations' own velocities. Later stages have it in the checkpoint"""
    consistency_steps: int = 20
    """N: neighbours on a path are 1/N apart; more are closer to the path, and learn slower from its end"""

    def __post_init__(self) -> None:
        if self.consistency_steps < 1:
            raise UserError(f"--consistency_steps {self.consistency_steps} must be at least 1")


@dataclass(frozen=True)
class DDPMConfig(FlowConfig):
    """Schedule of a diffusion policy."""

    diffusion_steps: int = 20
    """T: noise levels that are trained; sampling in fewer steps leaves some out. DPPO has 20 for states, 100 for
    pictures"""
    denoised_clip: float = 1.0
    """bound on every predicted action, in normalised action units"""

    def __post_init__(self) -> None:
        if self.diffusion_steps < 1 or self.denoised_clip <= 0:
            raise UserError("--diffusion_steps must be at least 1 and --denoised_clip positive")


@dataclass(frozen=True)
class GMMConfig(FamilyConfig):
    """A mixture of Gaussians."""

    modes: int = 5
    """Gaussians in the mixture"""
    mode_std: float = 0.1
    """std of each while it is cloned, in normalised action units"""

    def __post_init__(self) -> None:
        if self.modes < 1 or self.mode_std <= 0:
            raise UserError("--modes must be at least 1 and --mode_std positive")

    def check(self, spec: PolicySpec) -> None:
        """UserError for more modes than a chunk has numbers, since x_0 chooses by one number per mode."""
        numbers = spec.pred_horizon * spec.action_dim
        if self.modes > numbers:
            raise UserError(
                f"--modes {self.modes} can't be drawn from the {numbers} numbers of a chunk: take at most {numbers}"
            )


@dataclass(frozen=True)
class MIPConfig(FamilyWithoutNoise):
    """The point that a minimal iterative policy is corrected from."""

    correction_time: float = 0.9
    """t*: share of the action in what the second regression sees, the rest is noise"""

    def __post_init__(self) -> None:
        if not 0 < self.correction_time < 1:
            raise UserError(f"--correction_time {self.correction_time} must lie between 0 and 1")


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
