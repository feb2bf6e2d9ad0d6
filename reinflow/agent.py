"""`ReinFlowAgent`: fine-tuning by PPO over the denoising chain (arXiv:2505.22094), as the user's guide calls it.

What it is made of lies in `reinflow.algos`: `actor_critic` samples and judges, `ppo` has the loss.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nets.unet1d import ShortCutVelocityUNet1D
from reinflow.algos.actor_critic import ActorCritic
from reinflow.algos.config import PPOConfig
from reinflow.algos.ppo import judged, ppo_loss
from reinflow.algos.schedules import NoiseConfig
from reinflow.errors import UserError
from reinflow.policies import NoiseNetConfig, PolicySpec, make_stochastic
from reinflow.policies.base import Policy
from reinflow.policies.shortcut import Shortcut
from reinflow.types import Objective

if TYPE_CHECKING:
    from reinflow.storage.checkpoint import Checkpoint

C = TypeVar("C")


class ReinFlowAgent(ActorCritic):
    """Built around a velocity network as below, or around any policy family with `from_policy`."""

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
        steps = num_inference_steps or policy.spec.num_inference_steps
        agent._compose(policy, ppo or PPOConfig(), noise or NoiseConfig(), noise_net or NoiseNetConfig(), steps)
        agent.choose_views_(freeze_visual_encoder, privileged_dim)
        return agent.to(policy.device)

    def _compose(
        self, policy: Policy, ppo: PPOConfig, noise: NoiseConfig, noise_net: NoiseNetConfig, num_steps: int
    ) -> None:
        if policy.spec.ft_denoising_steps is not None and num_steps != policy.spec.num_inference_steps:
            raise UserError(
                f"the checkpoint was fine-tuned with --ft_denoising_steps and {policy.spec.num_inference_steps} "
                f"denoising steps and goes on so, not with --num_inference_steps {num_steps}: leave that out"
            )
        actor = make_stochastic(policy, num_steps, noise_net)
        if noise_net.likelihood == "exact" and (ppo.ratio_of == "step" or ppo.entropy_coef):
            raise UserError("--likelihood exact has neither steps nor noise: leave --ratio_of and --entropy_coef out")
        super().__init__(policy, actor, noise, ppo.gamma, ppo.online_random_shift)
        self.config = ppo if noise_net.likelihood == "chain" else replace(ppo, scored="all")
        self._adopt(policy.spec)
        self.update_noise_schedule(step=0)

    def _adopt(self, spec: PolicySpec) -> None:
        """Take the spec with the K that is fine-tuned, which evaluations and checkpoints follow; score its chains."""
        if self.config.count_initial_noise and spec.initial_noise_scale == 0:
            raise UserError(
                "--count_initial_noise counts the Gaussians of x_0, and --initial_noise_scale 0 leaves none: "
                "raise the scale (--preset official takes 1) or leave the count out"
            )
        self.policy.spec = replace(spec, num_inference_steps=self.actor.all_steps)
        self.score_(self.config.scored, self.config.count_initial_noise)

    def load_from_aw_shortcut_flow(self, checkpoint_path: str | Path, device: torch.device | str = "cpu") -> None:
        """Take weights, normalisers, horizons and, where there is one, V from a checkpoint of Stage 1 or 2.

        Moves the agent to `device`. Weights change in place, so optimisers stay valid. UserError if the checkpoint is
        missing, damaged, or of another family or other dimensions.
        """
        from reinflow.storage.checkpoint import load_policy, load_state_

        policy, checkpoint = load_policy(checkpoint_path, "cpu")
        spec = policy.spec
        for name in ("family", "cond_dim", "chunk_shape", "act_horizon", "ft_denoising_steps"):
            theirs, ours = getattr(spec, name), getattr(self.policy.spec, name)
            if theirs != ours:
                raise UserError(
                    f"{checkpoint_path} has {name} {theirs}, this ReinFlowAgent {ours}: make the agent with the "
                    "checkpoint's dimensions, or with ReinFlowAgent.from_policy"
                )
        for part in ("net", "held_net"):
            if theirs := getattr(policy, part, None):
                load_state_(getattr(self.policy, part), theirs.state_dict(), f"the network of {checkpoint_path}")
        known = checkpoint.objective
        ours = replace(known, gamma=self.config.gamma) if known else None
        if warning := self.load_critic(checkpoint, checkpoint_path, ours):
            print(f"warning: {warning}")
        if self.trains_encoder:
            load_state_(self.policy.encoder, policy.encoder.state_dict(), f"the encoder of {checkpoint_path}")
        else:
            self.policy.encoder = policy.encoder.requires_grad_(False)
        self.policy.action_normalizer = policy.action_normalizer
        self._adopt(spec)
        self.to(device)

    def load_critic(self, checkpoint: Checkpoint, path: str | Path, objective: Objective | None = None) -> str | None:
        """Take V of an earlier stage where there is one; one that sees something else starts anew.

        So does one that predicts another return than `objective`, which a sentence tells. What a checkpoint doesn't say
        of its V is taken to fit.
        """
        from reinflow.storage.checkpoint import load_state_

        state, theirs = checkpoint.parts.get("critic"), checkpoint.objective
        if state is None or self.privileged != ("normalizer.shift" in state):
            return None
        if objective and theirs and (differences := theirs.differences(objective)):
            return f"V of {path} was trained for {differences}, so it starts anew: leave these flags out to keep it"
        load_state_(self.critic, state, f"the critic of {path}")
        return None

    def is_in_critic_warmup(self) -> bool:
        """Whether an iteration that starts at the step of the last `update_noise_schedule` trains the critic alone."""
        return self.config.warms_critic_up(self.env_steps)

    def update_noise_schedule(self, step: int) -> None:
        """Set the noise bounds to those of `step` env steps, by which the guide's loop also tells the time."""
        super().update_noise_schedule(step)
        self.env_steps = step

    def compute_ppo_loss(
        self,
        obs_cond: Float[Tensor, "b z"],
        actions: Float[Tensor, "b k1 h a"],
        old_log_probs: Float[Tensor, "b"],
        advantages: Float[Tensor, "b"],
        returns: Float[Tensor, "b"],
        **more: Tensor,
    ) -> dict[str, Tensor]:
        """`loss` and its parts; `actions` are denoising chains, `advantages` are normalised already.

        `more` are other entries of a minibatch: `means`, `stds`, `critic_obs` and `valid`. Without them KL is
        estimated, V sees the condition, and all rows count.
        """
        if unknown := more.keys() - {"means", "stds", "critic_obs", "valid"}:
            raise TypeError(f"compute_ppo_loss() got an unexpected keyword argument {min(unknown)!r}")
        rows = {"actions": actions, "log_probs": old_log_probs, "advantages": advantages, "returns": returns}
        return ppo_loss(self, self.config, judged(self, rows["actions"], obs_cond), obs_cond, rows | more)


def taken(config: type[C], options: dict[str, Any]) -> C:
    """A `config` of those `options` that are its fields; they are removed from `options`."""
    names = {field.name for field in fields(cast(Any, config))} & set(options)
    return config(**{name: options.pop(name) for name in names})
