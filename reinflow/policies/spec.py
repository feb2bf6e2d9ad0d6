"""What a policy is made of, as plain numbers: chosen on the command line, stored in every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from reinflow.errors import UserError
from reinflow.flags import flat_fields, owners_of, set_flags
from reinflow.policies.parts import ENCODERS, FAMILIES, NETS, PartConfig
from reinflow.registry import Choosing, options_of
from reinflow.specs import EnvSpec, ImageSpec

S = TypeVar("S", bound="PolicyConfig")

ADDED_LATER = {
    "image": None,
    "visual_encoder": "plain_conv",
    "visual_feature_dim": 256,
    "max_depth": 2.0,
    "initial_noise_scale": 1.0,
    "preact_activation": "mish",
    "preact_max_frequency": 1000.0,
    "ft_denoising_steps": None,
    "img_obs_horizon": None,
}
"""fields that a checkpoint may lack because it is older than they are, and what it meant without them"""


def executed_slice(obs_horizon: int, act_horizon: int) -> slice:
    """Rows of a predicted chunk that the env executes: row 0 belongs to the oldest observation of the history."""
    return slice(obs_horizon - 1, obs_horizon - 1 + act_horizon)


@dataclass(frozen=True)
class PolicyConfig(Choosing):
    """Family, network and horizons of a policy; Stage 1 chooses them, later stages read them from the checkpoint."""

    family: str = "shortcut"
    """policy family; each has flags of its own"""
    net: str = "unet"
    """velocity network, with flags of its own: `unet` is ShortCutVelocityUNet1D, `mlp` the fast choice for states,
    `preact` the MLP of DPPO and DMPO; `transformer` and `dit` attend to the observations as tokens"""
    obs_horizon: int = 2
    """observations the policy sees"""
    img_obs_horizon: int | None = None
    """newest of them whose pictures it sees, too; None is all"""
    act_horizon: int = 8
    """env steps executed of each predicted chunk"""
    pred_horizon: int = 16
    """env steps predicted; at least obs_horizon - 1 + act_horizon"""
    visual_encoder: str = "plain_conv"
    """network over the pictures of an image observation; resnet18 has GroupNorm and 20 times the cost, vit is DPPO's"""
    visual_feature_dim: int = 256
    """numbers that it makes of the pictures of one frame"""
    max_depth: float = 2.0
    """metres at which depth pictures saturate"""
    initial_noise_scale: float | None = None
    """std of the noise x_0 that a flow starts from when it acts, 0 to 1; cloning draws it with std 1 all the same.
    None is the family's, or in later stages the checkpoint's"""
    family_options: Any = options_of(FAMILIES)
    net_options: Any = options_of(NETS)
    visual_encoder_options: Any = options_of(ENCODERS)

    @classmethod
    def of(cls: type[S], **flags: Any) -> S:
        """By flat flags, of which those of parts that aren't chosen have no effect. TypeError for any other name."""
        spec = set_flags(cls(), flags)
        known = {name for name, _ in flat_fields(spec)}
        if unknown := [name for name in flags if name not in known and not owners_of(spec, name)]:
            raise TypeError(f"a policy has no {', '.join(unknown)}")
        return spec

    def for_env(self, env: EnvSpec, num_inference_steps: int) -> PolicySpec:
        """The complete spec for a task."""
        own = {field.name: getattr(self, field.name) for field in fields(PolicyConfig)}
        if self.initial_noise_scale is None:
            own["initial_noise_scale"] = self.family_options.noise_scale
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
    ft_denoising_steps: int | None = None
    """the last so many of the K steps are the network's that was fine-tuned, those before them an earlier copy's that
    was not (DPPO, arXiv:2409.00588); None has one network"""
    image: ImageSpec | None = None
    """the pictures that it sees beside the state"""

    def __post_init__(self) -> None:
        super().__post_init__()
        needed = self.obs_horizon - 1 + self.act_horizon
        if min(self.obs_horizon, self.act_horizon, self.num_inference_steps) < 1:
            raise UserError("--obs_horizon, --act_horizon and --num_inference_steps must be at least 1")
        if self.pred_horizon < needed:
            raise UserError(
                f"--pred_horizon {self.pred_horizon} must be at least obs_horizon - 1 + act_horizon = {needed}"
            )
        if not 1 <= self.picture_frames <= self.obs_horizon:
            raise UserError(
                f"--img_obs_horizon {self.img_obs_horizon} must be from 1 to --obs_horizon {self.obs_horizon}"
            )
        if self.max_depth <= 0 or self.visual_feature_dim < 1:
            raise UserError("--max_depth and --visual_feature_dim must be positive")
        if not 0 <= self.initial_noise_scale <= 1:
            raise UserError(f"--initial_noise_scale {self.initial_noise_scale} must be from 0 to 1")
        if self.ft_denoising_steps is not None:
            self.check_ft_denoising_steps(self.ft_denoising_steps)
        for part in (self.family_options, self.net_options, self.visual_encoder_options):
            if isinstance(part, PartConfig):
                part.check(self)

    def check_ft_denoising_steps(self, steps: int) -> None:
        """UserError for more steps than there are, and for a family that has none."""
        if not self.family_options.denoises:
            raise UserError(
                f"--ft_denoising_steps is for what goes from noise to actions, and --family {self.family} does not: "
                "leave it out"
            )
        if not 1 <= steps <= self.num_inference_steps:
            raise UserError(
                f"--ft_denoising_steps {steps} must be from 1 to the number of denoising steps, which is "
                f"{self.num_inference_steps} (--num_inference_steps)"
            )

    def held_steps(self, num_steps: int) -> int:
        """How many of so many steps are the earlier copy's: those that start before the first fine-tuned time."""
        if self.ft_denoising_steps is None:
            return 0
        held, all_steps = self.num_inference_steps - self.ft_denoising_steps, self.num_inference_steps
        return -(-held * num_steps // all_steps)

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
        """Numbers in a condition: state and picture features of every observation of a history."""
        pictures = self.picture_frames * self.visual_feature_dim if self.image else 0
        return self.obs_horizon * self.state_dim + pictures

    @property
    def picture_frames(self) -> int:
        """Observations of a history whose pictures it sees, where it sees any."""
        return self.obs_horizon if self.img_obs_horizon is None else self.img_obs_horizon

    @property
    def observed(self) -> tuple[str, ...]:
        """Keys of an observation that the policy reads."""
        return ("state", *(self.image.names if self.image else ()))

    @property
    def executed(self) -> slice:
        """Rows of a predicted chunk that the env executes, from that of the newest observation on."""
        return executed_slice(self.obs_horizon, self.act_horizon)

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """(prediction horizon, action dim) of a chunk."""
        return (self.pred_horizon, self.action_dim)

    def to_dict(self) -> dict[str, Any]:
        """As flat plain values, the options of the chosen parts among them."""
        values = {name: plain(value) for name, value in flat_fields(replace(self, image=None))}
        return values | {"image": None if self.image is None else asdict(self.image)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PolicySpec:
        """UserError if a value is missing or unknown: the checkpoint is of another version.

        Earlier versions also stored options of networks that weren't chosen, and none of the family's.
        """
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in (ADDED_LATER | data).items()}
        image: Any = values.pop("image")
        spec = set_flags(cls(), values)
        known = {name for name, _ in flat_fields(spec)} - {"image"}
        if missing := known - set(values) - {option.name for option in fields(spec.family_options)}:
            raise UserError(f"the checkpoint's policy lacks {', '.join(sorted(missing))}: train it again")
        if unknown := {name for name in values if name not in known and not owners_of(spec, name)}:
            raise UserError(f"the checkpoint's policy has unknown {', '.join(sorted(unknown))}: use its own version")
        if image is not None:
            image = ImageSpec(**image | {"cameras": tuple(image["cameras"])})
        return replace(spec, image=image)


def plain(value: Any) -> Any:
    """As JSON has it."""
    return list(value) if isinstance(value, tuple) else value
