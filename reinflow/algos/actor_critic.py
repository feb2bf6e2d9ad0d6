"""What an actor-critic algorithm trains: a policy that explores, and the value network beside it.

It works on conditions, the encoded observations, so that a rollout encodes each of them once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nets.critic import PrivilegedValueNetwork, ValueNetwork
from nets.vision import random_shift
from reinflow.algos.advantages import return_scale
from reinflow.algos.schedules import NoiseConfig
from reinflow.policies.base import Policy
from reinflow.policies.chain import denoise, draws, scored_dims
from reinflow.runtime.acceleration import Precision, replayed
from reinflow.runtime.config import AccelerationConfig
from reinflow.types import Chain, Obs, Stochastic


@dataclass(frozen=True)
class View:
    """An observation as the agent uses it."""

    cond: Float[Tensor, "b z"]
    """what the actor sees"""
    critic: Float[Tensor, "b p"]
    """what V sees: the condition, or the full state"""
    stored: Float[Tensor, "b z"] | Obs
    """what an update needs to see it again: the condition, or pictures where the encoder trains on"""

    @property
    def critic_obs(self) -> Float[Tensor, "b p"] | None:
        """What V sees where that is not what is stored."""
        return None if self.critic is self.stored else self.critic


class ActorCritic(nn.Module):
    """`actor` makes `policy` stochastic and shares its network; `critic` judges what either sees."""

    scored: Tensor
    """which numbers of which denoising step count in the log-probability, (k h a)"""

    def __init__(self, policy: Policy, actor: Stochastic, noise: NoiseConfig, gamma: float, random_shift: int = 0):
        """`gamma` gives V the size of its returns; pictures may be moved by `random_shift` pixels."""
        super().__init__()
        self.policy = policy
        self.actor = actor
        self.critic: ValueNetwork = ValueNetwork(policy.spec.cond_dim, scale=return_scale(gamma))
        self.noise = noise
        self.gamma = gamma
        self.random_shift = random_shift
        self.register_buffer("scored", torch.zeros(0), persistent=False)
        self.accelerate_(AccelerationConfig())
        self.choose_views_(freeze_visual_encoder=True, privileged_dim=None)

    def choose_views_(self, freeze_visual_encoder: bool, privileged_dim: int | None) -> None:
        """What actor and critic see, and whether updates look at pictures again."""
        self.trains_encoder = self.policy.spec.image is not None and not freeze_visual_encoder
        self.policy.encoder.requires_grad_(self.trains_encoder)
        self.privileged = privileged_dim is not None
        if privileged_dim is not None:
            self.critic = PrivilegedValueNetwork(privileged_dim, scale=return_scale(self.gamma))

    def score_(self, mode: Literal["feeds", "executed", "all"], count_initial_noise: bool) -> None:
        """Choose the scored dims of a chain for the policy's horizons, and count them."""
        spec, varies = self.policy.spec, self.policy.action_normalizer.varies
        scored = scored_dims(self.actor.num_steps, spec.pred_horizon, spec.executed, varies, mode)
        self.scored = scored.to(self.scored.device)
        self.forget_graphs()
        initial = count_initial_noise * spec.pred_horizon * spec.action_dim
        self.num_scored = int(self.scored.sum()) + initial

    def encode(self, obs: Obs) -> Float[Tensor, "b z"]:
        """The condition of an observation in float32; a frozen encoder may compute it in bfloat16.

        One that trains is part of the chain, and as precise.
        """
        if self.trains_encoder:
            with self.precision.products():
                return self.policy.encode(obs)
        if not self.acceleration.bf16_encoder:
            return self.policy.encode(obs)
        with torch.autocast(self.policy.device.type, torch.bfloat16):
            return self.policy.encode(obs).float()

    @torch.no_grad()
    def view(self, obs: Obs) -> View:
        """Encode an observation once, for acting, for V and for the update that follows."""
        cond = self.encode(obs)
        stored = {name: obs[name] for name in self.policy.spec.observed} if self.trains_encoder else cond
        return View(cond, critic=obs["privileged"][:, -1] if self.privileged else cond, stored=stored)

    def augmented(self, obs: Obs, generator: torch.Generator | None = None) -> Obs:
        """The observation under this rollout's random shift: acting, storing and scoring then see the same pictures."""
        image, most = self.policy.spec.image, self.random_shift
        if image is None or not most:
            return obs
        return obs | random_shift({name: obs[name] for name in image.names}, most, generator)

    def condition(self, stored: Float[Tensor, "b z"] | Obs) -> Float[Tensor, "b z"]:
        """The condition of what a `View` stored; pictures are encoded again, with gradients."""
        return stored if isinstance(stored, Tensor) else self.encode(stored)

    def to_action(self, chunk: Float[Tensor, "b h a"]) -> Float[Tensor, "b e a"]:
        """The executed slice of a normalised chunk, limited to the demonstrated range, in env units."""
        return self.policy.to_action(chunk)

    @torch.no_grad()
    def get_action(self, cond: Float[Tensor, "b z"], generator: torch.Generator | None = None) -> Chain:
        """Sample with exploration noise; the chain carries its log-probability."""
        return Chain(*self._denoise(cond, *draws(self.actor, cond, generator)))

    def _denoised(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The parts of a `Chain`."""
        cond, x_0, noise = inputs
        with self.precision.networks(cond.device):
            return tuple(vars(denoise(self.actor, cond, x_0, noise, self.scored)).values())

    def accelerate_(self, config: AccelerationConfig) -> None:
        """Choose speed and precision, before an optimiser is made; weights and noise bounds may change in place."""
        if config.compile:
            net = cast(Any, self.policy.net)
            net.velocity = torch.compile(net.velocity)
        self.acceleration = config
        self.precision = Precision(config.tf32, config.bf16)
        self.policy.replay_(config.cuda_graphs)
        self.forget_graphs()

    def forget_graphs(self) -> None:
        """Record them anew: something that they read has moved."""
        self._denoise = replayed(self._denoised, self.acceleration.cuda_graphs, self.policy.device)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Every move to another device or type comes through here."""
        moved = super()._apply(fn, recurse)
        self.forget_graphs()
        return moved

    def get_value(self, cond: Float[Tensor, "b p"]) -> Float[Tensor, "b"]:
        """V of what the critic sees."""
        return self.critic(cond)

    def update_noise_schedule(self, step: int) -> None:
        """Set the noise bounds to those of `step` env steps; between iterations only."""
        self.actor.set_noise_bounds_(*self.noise.bounds(step, self.actor.num_steps))
