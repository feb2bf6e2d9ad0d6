"""`ReinFlowAgent`: a stochastic policy, its value network and the PPO loss over the denoising chain (arXiv:2505.22094).

It works on conditions, the encoded observations, so that a rollout encodes each of them once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nets.critic import PrivilegedValueNetwork, ValueNetwork
from nets.unet1d import ShortCutVelocityUNet1D
from nets.vision import random_shift
from reinflow.acceleration import AccelerationConfig, replayed
from reinflow.algos.advantages import mean_over, return_scale
from reinflow.algos.ppo import MAX_LOG_RATIO, PPOConfig, clipped_surrogate, scaled_log_ratio
from reinflow.algos.schedules import NoiseConfig
from reinflow.errors import UserError
from reinflow.policies import NoiseNetConfig, Policy, PolicySpec, Shortcut, make_stochastic
from reinflow.policies.chain import (
    chain_entropy,
    chain_log_prob,
    chain_moments,
    denoise,
    draws,
    joint_kl,
    scored_dims,
)
from reinflow.types import Chain, Objective, Obs

if TYPE_CHECKING:
    from reinflow.checkpoint import Checkpoint

C = TypeVar("C")


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


class ReinFlowAgent(nn.Module):
    """Built around a velocity network as below, or around any policy family with `from_policy`."""

    scored: Tensor
    """which numbers of which denoising step count in the log-probability, (k h a)"""

    def __init__(
        self,
        velocity_net: nn.Module,
        obs_dim: int,
        act_dim: int,
        pred_horizon: int,
        act_horizon: int,
        num_inference_steps: int = 8,
        **options: Any,
    ):
        """`options` are fields of `PPOConfig`, `NoiseConfig` and `NoiseNetConfig`, whose defaults apply.

        TypeError for any other name.
        """
        spec = PolicySpec.of(
            net="unet" if isinstance(velocity_net, ShortCutVelocityUNet1D) else "mlp",
            obs_horizon=1,
            act_horizon=act_horizon,
            pred_horizon=pred_horizon,
            state_dim=obs_dim,
            action_dim=act_dim,
            num_inference_steps=num_inference_steps,
        )
        noise, noise_net = taken(NoiseConfig, options), taken(NoiseNetConfig, options)
        super().__init__()
        self._compose(Shortcut(spec, velocity_net), PPOConfig(**options), noise, noise_net, num_inference_steps)

    @classmethod
    def from_policy(
        cls,
        policy: Policy,
        ppo: PPOConfig | None = None,
        noise: NoiseConfig | None = None,
        noise_net: NoiseNetConfig | None = None,
        num_inference_steps: int | None = None,
        *,
        freeze_visual_encoder: bool = True,
        privileged_dim: int | None = None,
    ) -> ReinFlowAgent:
        """Fine-tune `policy`, of any family, in place; K defaults to its own number of denoising steps.

        An image encoder stays as it is unless `freeze_visual_encoder` is off. `privileged_dim` gives V the full state,
        of that many numbers, instead of what the policy sees.
        """
        agent = cls.__new__(cls)
        nn.Module.__init__(agent)
        steps = num_inference_steps or policy.spec.num_inference_steps
        agent._compose(policy, ppo or PPOConfig(), noise or NoiseConfig(), noise_net or NoiseNetConfig(), steps)
        agent._choose_views(freeze_visual_encoder, privileged_dim)
        return agent.to(policy.device)

    def _compose(
        self, policy: Policy, ppo: PPOConfig, noise: NoiseConfig, noise_net: NoiseNetConfig, num_steps: int
    ) -> None:
        spec = policy.spec
        self.policy = policy
        self.actor = make_stochastic(policy, num_steps, noise_net)
        self._adopt(spec)
        self.critic: ValueNetwork = ValueNetwork(spec.cond_dim, scale=return_scale(ppo.gamma))
        self.config = ppo
        self.noise = noise
        self.register_buffer("scored", torch.zeros(0), persistent=False)
        self._score(spec)
        self._choose_views(freeze_visual_encoder=True, privileged_dim=None)
        self.accelerate_(AccelerationConfig())
        self.update_noise_schedule(step=0)

    def _choose_views(self, freeze_visual_encoder: bool, privileged_dim: int | None) -> None:
        """What actor and critic see, and whether updates look at pictures again."""
        self.trains_encoder = self.policy.spec.image is not None and not freeze_visual_encoder
        self.policy.encoder.requires_grad_(self.trains_encoder)
        self.privileged = privileged_dim is not None
        if privileged_dim is not None:
            self.critic = PrivilegedValueNetwork(privileged_dim, scale=return_scale(self.config.gamma))

    def _adopt(self, spec: PolicySpec) -> None:
        """Take the spec, with the K that is fine-tuned: evaluations and checkpoints follow it."""
        self.policy.spec = replace(spec, num_inference_steps=self.actor.num_steps)

    def _score(self, spec: PolicySpec) -> None:
        """Choose the scored dims of a chain for the horizons of `spec`, and count them."""
        varies = self.policy.action_normalizer.varies
        self.scored = scored_dims(
            self.actor.num_steps, spec.pred_horizon, spec.executed, varies, self.config.scored
        ).to(self.scored.device)
        if self.config.count_initial_noise and spec.initial_noise_scale == 0:
            raise UserError(
                "--count_initial_noise counts the Gaussians of x_0, and --initial_noise_scale 0 leaves none: "
                "raise the scale (--preset official takes 1) or leave the count out"
            )
        initial = self.config.count_initial_noise * spec.pred_horizon * spec.action_dim
        self.num_scored = int(self.scored.sum()) + initial

    def load_from_aw_shortcut_flow(self, checkpoint_path: str | Path, device: torch.device | str = "cpu") -> None:
        """Take weights, normalisers, horizons and, where there is one, V from a checkpoint of Stage 1 or 2.

        Moves the agent to `device`. Weights change in place, so optimisers stay valid. UserError if the checkpoint is
        missing, damaged, or of another family or other dimensions.
        """
        from reinflow.checkpoint import load_policy, load_state_

        policy, checkpoint = load_policy(checkpoint_path, "cpu")
        spec = policy.spec
        for name in ("family", "cond_dim", "chunk_shape", "act_horizon"):
            theirs, ours = getattr(spec, name), getattr(self.policy.spec, name)
            if theirs != ours:
                raise UserError(
                    f"{checkpoint_path} has {name} {theirs}, this ReinFlowAgent {ours}: make the agent with the "
                    "checkpoint's dimensions, or with ReinFlowAgent.from_policy"
                )
        load_state_(self.policy.net, policy.net.state_dict(), f"the network of {checkpoint_path}")
        known = checkpoint.objective
        ours = replace(known, gamma=self.config.gamma) if known else None
        if warning := self.load_critic(checkpoint, checkpoint_path, ours):
            print(f"warning: {warning}")
        self._adopt(spec)
        if self.trains_encoder:
            load_state_(self.policy.encoder, policy.encoder.state_dict(), f"the encoder of {checkpoint_path}")
        else:
            self.policy.encoder = policy.encoder.requires_grad_(False)
        self.policy.action_normalizer = policy.action_normalizer
        self._score(spec)
        self.to(device)

    def load_critic(self, checkpoint: Checkpoint, path: str | Path, objective: Objective | None = None) -> str | None:
        """Take V of an earlier stage where there is one; one that sees something else starts anew.

        So does one that predicts another return than `objective`, which a sentence tells. What a checkpoint doesn't say
        of its V is taken to fit.
        """
        from reinflow.checkpoint import load_state_

        state, theirs = checkpoint.critic_state, checkpoint.objective
        if state is None or self.privileged != ("normalizer.shift" in state):
            return None
        if objective and theirs and (differences := theirs.differences(objective)):
            return f"V of {path} was trained for {differences}, so it starts anew: leave these flags out to keep it"
        load_state_(self.critic, state, f"the critic of {path}")
        return None

    def encode(self, obs: Obs) -> Float[Tensor, "b z"]:
        if not self.bf16_encoder:
            return self.policy.encode(obs)
        with torch.autocast(self.policy.device.type, torch.bfloat16):
            return self.policy.encode(obs).float()

    @torch.no_grad()
    def view(self, obs: Obs) -> View:
        """Encode an observation once, for acting, for V and for the update that follows."""
        cond = self.encode(obs)
        stored = {name: obs[name] for name in self.policy.encoder.names} if self.trains_encoder else cond
        return View(cond, critic=obs["privileged"][:, -1] if self.privileged else cond, stored=stored)

    def augmented(self, obs: Obs, generator: torch.Generator | None = None) -> Obs:
        """The observation under this rollout's random shift: acting, storing and scoring then see the same pictures."""
        image, most = self.policy.spec.image, self.config.online_random_shift
        if image is None or not most:
            return obs
        return obs | random_shift({name: obs[name] for name in image.names}, most, generator)

    def condition(self, stored: Float[Tensor, "b z"] | Obs) -> Float[Tensor, "b z"]:
        """The condition of what a `View` stored; pictures are encoded again, with gradients."""
        return stored if isinstance(stored, Tensor) else self.encode(stored)

    def to_action(self, chunk: Float[Tensor, "b h a"]) -> Float[Tensor, "b e a"]:
        return self.policy.to_action(chunk)

    @torch.no_grad()
    def get_action(self, cond: Float[Tensor, "b z"], generator: torch.Generator | None = None) -> Chain:
        """Sample with exploration noise; the chain carries its log-probability."""
        return Chain(*self._denoise(cond, *draws(self.actor, cond, generator)))

    def _denoised(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The parts of a `Chain`."""
        cond, x_0, noise = inputs
        return tuple(vars(denoise(self.actor, cond, x_0, noise, self.scored)).values())

    def accelerate_(self, config: AccelerationConfig) -> None:
        """Sample faster from now on; weights and noise bounds may change in place."""
        if config.compile:
            net = cast(Any, self.policy.net)
            net.velocity = torch.compile(net.velocity)
        self._denoise = replayed(self._denoised, config, self.policy.device)
        self.bf16_encoder = config.bf16_encoder and not self.trains_encoder

    def get_value(self, cond: Float[Tensor, "b p"]) -> Float[Tensor, "b"]:
        """V of what the critic sees."""
        return self.critic(cond)

    def is_in_critic_warmup(self) -> bool:
        """Whether the iteration that starts now trains the critic alone."""
        return self.env_steps < self.config.critic_warmup_steps

    def update_noise_schedule(self, step: int) -> None:
        """Set the noise bounds for `step` env steps; call it between iterations only."""
        self.env_steps = step
        self.actor.set_noise_bounds_(*self.noise.bounds(step, self.actor.num_steps))

    def value_loss(
        self, cond: Float[Tensor, "b z"], returns: Float[Tensor, "b"], valid: Float[Tensor, "b"] | None = None
    ) -> Float[Tensor, ""]:
        """Squared error, in squared units of the returns; it moves the critic alone."""
        return mean_over((self.critic(cond.detach()) - returns).square(), valid)

    def weighted_value_loss(self, value_loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Its part of the loss that is minimised, whatever the unit of the rewards."""
        return self.config.value_coef * value_loss / self.critic.unit.square()

    def compute_ppo_loss(
        self,
        obs_cond: Float[Tensor, "b z"],
        actions: Float[Tensor, "b k1 h a"],
        old_log_probs: Float[Tensor, "b"],
        advantages: Float[Tensor, "b"],
        returns: Float[Tensor, "b"],
        old_means: Float[Tensor, "b k h a"] | None = None,
        old_stds: Float[Tensor, "b k h a"] | None = None,
        critic_obs: Float[Tensor, "b p"] | None = None,
        valid: Float[Tensor, "b"] | None = None,
    ) -> dict[str, Tensor]:
        """`loss` and its parts, over the rows where `valid` is 1 (all when it is None).

        `actions` are denoising chains, `advantages` are normalised already.

        `critic_obs` is what V sees, where that is not the condition. `approx_kl` is in joint nats; without the old
        moments it is estimated from the log-ratios.
        """
        means, stds = chain_moments(self.actor, actions, obs_cond)
        log_prob = chain_log_prob(actions, means, stds, self.scored)
        log_ratio = scaled_log_ratio(log_prob, old_log_probs, self.num_scored, self.config.logprob_reduction)
        ratio = log_ratio.clamp_max(MAX_LOG_RATIO).exp()
        policy_loss = clipped_surrogate(ratio, advantages, self.config.clip_ratio, valid)
        value_loss = self.value_loss(obs_cond if critic_obs is None else critic_obs, returns, valid)
        entropy = mean_over(chain_entropy(stds, self.scored), valid)
        loss = policy_loss + self.weighted_value_loss(value_loss) - self.config.entropy_coef * entropy
        with torch.no_grad():
            if old_means is not None and old_stds is not None:
                kl = joint_kl(old_means, old_stds, means, stds, self.scored)
            else:
                difference = log_prob - old_log_probs
                kl = difference.exp() - 1 - difference
            deviation = (ratio - 1).abs() if valid is None else (ratio - 1).abs() * valid
        return {
            "loss": loss,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy_loss": -entropy,
            "approx_kl": mean_over(kl, valid),
            "clip_fraction": mean_over((deviation > self.config.clip_ratio).float(), valid),
            "ratio_deviation": deviation.max(),
        }


def taken(config: type[C], options: dict[str, Any]) -> C:
    """A `config` of those `options` that are its fields; they are removed from `options`."""
    names = {field.name for field in fields(cast(Any, config))} & set(options)
    return config(**{name: options.pop(name) for name in names})
