"""What a policy is made of, as plain numbers: chosen on the command line, stored in every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from reinflow.errors import UserError
from reinflow.types import EnvSpec, ImageSpec

ADDED_LATER = {
    "image": None,
    "visual_encoder": "plain_conv",
    "visual_feature_dim": 256,
    "max_depth": 2.0,
    "max_denoising_steps": 8,
    "step_size_mode": "power2",
    "initial_noise_scale": 1.0,
}
"""fields that a checkpoint may lack because it is older than they are, and what it meant without them"""

INITIAL_NOISE_SCALES = {"shortcut": 1.0, "reflow": 1.0}
"""what a new policy of a family starts its chains with; 1 where a family is not listed"""


def executed_slice(obs_horizon: int, act_horizon: int) -> slice:
    """Rows of a predicted chunk that the env executes: row 0 belongs to the oldest observation of the history."""
    return slice(obs_horizon - 1, obs_horizon - 1 + act_horizon)


@dataclass(frozen=True)
class PolicyConfig:
    """Family, network and horizons of a policy; Stage 1 chooses them, later stages read them from the checkpoint."""

    family: Literal["shortcut", "reflow", "gaussian"] = "shortcut"
    """policy family"""
    net: Literal["unet", "mlp", "preact", "transformer", "dit"] = "unet"
    """velocity network: `unet` is ShortCutVelocityUNet1D, `mlp` the fast choice for state observations, `preact` the
    MLP of DPPO and DMPO; `transformer` and `dit` attend to the observations as tokens"""
    obs_horizon: int = 2
    """observations the policy sees"""
    act_horizon: int = 8
    """env steps executed of each predicted chunk"""
    pred_horizon: int = 16
    """env steps predicted; at least obs_horizon - 1 + act_horizon"""
    diffusion_step_embed_dim: int = 64
    """width of the embedding of flow time and step size"""
    unet_dims: tuple[int, ...] = (64, 128, 256)
    """UNet channels per level; pred_horizon must be a multiple of 2 ** (levels - 1)"""
    n_groups: int = 8
    """GroupNorm groups of the UNet"""
    mlp_hidden_dim: int = 256
    """width of the MLP"""
    mlp_depth: int = 3
    """residual layers of the MLP"""
    visual_encoder: Literal["plain_conv", "resnet18", "vit"] = "plain_conv"
    """network over the pictures of an image observation; resnet18 has GroupNorm and 20 times the cost, vit is DPPO's"""
    visual_feature_dim: int = 256
    """numbers that it makes of the pictures of one frame"""
    max_depth: float = 2.0
    """metres at which depth pictures saturate"""
    max_denoising_steps: int = 8
    """N of the shortcut family: the smallest bootstrapped step is 1/N"""
    step_size_mode: Literal["power2", "uniform", "fixed"] = "power2"
    """step sizes that it trains: 1/2^i, 1/n for any n up to N, or 1/N alone"""
    initial_noise_scale: float | None = None
    """std of the noise x_0 that a flow starts from when it acts, 0 to 1; cloning draws it with std 1 all the same.
    None is the family's, or in later stages the checkpoint's"""

    def for_env(self, env: EnvSpec, num_inference_steps: int) -> PolicySpec:
        """The complete spec for a task."""
        own = {field.name: getattr(self, field.name) for field in fields(PolicyConfig)}
        if self.initial_noise_scale is None:
            own["initial_noise_scale"] = INITIAL_NOISE_SCALES.get(self.family, 1.0)
        return PolicySpec(
            **own,
            state_dim=env.state_dim,
            action_dim=env.action_dim,
            image=env.image,
            num_inference_steps=num_inference_steps,
        )


@dataclass(frozen=True)
class PolicySpec(PolicyConfig):
    """A `PolicyConfig` together with the task's dimensions: all that `build_policy` needs."""

    initial_noise_scale: float = 1.0
    """std of the noise x_0 that a flow starts from when it acts; 1 means nothing to a Gaussian, which has no x_0"""
    state_dim: int = 1
    """numbers in one state observation"""
    action_dim: int = 1
    """numbers in one action"""
    num_inference_steps: int = 8
    """denoising steps K used unless a caller asks for others"""
    image: ImageSpec | None = None
    """the pictures that it sees beside the state"""

    def __post_init__(self) -> None:
        needed = self.obs_horizon - 1 + self.act_horizon
        if min(self.obs_horizon, self.act_horizon, self.num_inference_steps) < 1:
            raise UserError("--obs_horizon, --act_horizon and --num_inference_steps must be at least 1")
        if not self.unet_dims or min(self.mlp_hidden_dim, self.mlp_depth, self.n_groups, *self.unet_dims) < 1:
            raise UserError("--mlp_hidden_dim, --mlp_depth, --n_groups and every one of --unet_dims must be at least 1")
        if self.pred_horizon < needed:
            raise UserError(
                f"--pred_horizon {self.pred_horizon} must be at least obs_horizon - 1 + act_horizon = {needed}"
            )
        factor = 2 ** (len(self.unet_dims) - 1)
        if self.net == "unet" and self.pred_horizon % factor:
            raise UserError(
                f"--pred_horizon {self.pred_horizon} must be a multiple of {factor} for a UNet of "
                f"{len(self.unet_dims)} levels: change it or --unet_dims, or pass --net mlp"
            )
        if self.net == "unet" and any(width % self.n_groups for width in self.unet_dims):
            raise UserError(f"each of --unet_dims {self.unet_dims} must be a multiple of --n_groups {self.n_groups}")
        if self.diffusion_step_embed_dim < 4 or self.diffusion_step_embed_dim % 2:
            raise UserError(
                f"--diffusion_step_embed_dim {self.diffusion_step_embed_dim} must be an even number of at least 4"
            )
        if self.max_denoising_steps < 1:
            raise UserError(f"--max_denoising_steps {self.max_denoising_steps} must be at least 1")
        if self.max_depth <= 0 or self.visual_feature_dim < 1:
            raise UserError("--max_depth and --visual_feature_dim must be positive")
        if not 0 <= self.initial_noise_scale <= 1:
            raise UserError(f"--initial_noise_scale {self.initial_noise_scale} must be from 0 to 1")
        if self.family == "gaussian" and self.initial_noise_scale != 1:
            raise UserError("--initial_noise_scale is for flows: a gaussian policy starts from no noise, leave it out")

    def starting_with(self, initial_noise_scale: float | None) -> PolicySpec:
        """This spec with another scale of x_0; None keeps its own."""
        return self if initial_noise_scale is None else replace(self, initial_noise_scale=initial_noise_scale)

    def check_fits(self, env: EnvSpec) -> None:
        """UserError where a task observes or takes other things than this policy was made for."""
        for name in ("state_dim", "action_dim", "image"):
            mine, theirs = getattr(self, name), getattr(env, name)
            if mine != theirs:
                raise UserError(
                    f"the checkpoint's policy has {name} {mine}, {env.env_id} here has {theirs}: "
                    "use the task, robot and cameras that it was trained with"
                )

    @property
    def cond_dim(self) -> int:
        return self.obs_horizon * (self.state_dim + (self.visual_feature_dim if self.image else 0))

    @property
    def executed(self) -> slice:
        return executed_slice(self.obs_horizon, self.act_horizon)

    @property
    def chunk_shape(self) -> tuple[int, int]:
        return (self.pred_horizon, self.action_dim)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"unet_dims": list(self.unet_dims)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PolicySpec:
        """UserError if a key is missing or unknown: the checkpoint is of another version."""
        names = {field.name for field in fields(cls)}
        data = ADDED_LATER | data
        if missing := names - set(data):
            raise UserError(f"the checkpoint's policy lacks {', '.join(sorted(missing))}: train it again")
        if unknown := set(data) - names:
            raise UserError(f"the checkpoint's policy has unknown {', '.join(sorted(unknown))}: use its own version")
        image = data["image"]
        if image is not None:
            image = ImageSpec(**image | {"cameras": tuple(image["cameras"])})
        return cls(**data | {"unet_dims": tuple(data["unet_dims"]), "image": image})
