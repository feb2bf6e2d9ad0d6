"""What off-policy algorithms share that move a stochastic chain: its sampling, its optimiser, its moving average.

The encoder stays as the checkpoint has it, so that conditions are computed once and without gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reinflow.algos.guard import StepGuard
from reinflow.algos.options import ChainConfig, QConfig
from reinflow.algos.q_actor import Judge, executed_part
from reinflow.algos.setting import Setting
from reinflow.policies.base import Policy
from reinflow.policies.chain import denoise, draws, scored_dims
from reinflow.policies.ema import EMA
from reinflow.policies.wrapped import Acting
from reinflow.runtime import distributed
from reinflow.types import Chain, Decision, Obs, Stochastic


class MovingChain:
    """A policy's chain with its optimiser, and a moving average of the policy, which is evaluated."""

    def __init__(self, policy: Policy, actor: Stochastic, config: ChainConfig):
        """`actor` is the policy's chain (`Policy.chain`) and shares its network."""
        policy.encoder.requires_grad_(False)
        self.policy = policy
        self.actor = actor
        self.module: nn.Module = actor.to(policy.device)  # type: ignore[attr-defined]
        self.config = config
        share = actor.num_steps**-0.5
        actor.set_noise_bounds_(config.min_std * share, config.max_std * share)
        spec, varies = policy.spec, policy.action_normalizer.varies
        self.scored = scored_dims(actor.num_steps, spec.pred_horizon, spec.executed, varies)
        self.num_scored = int(self.scored.sum())
        self.ema = EMA(policy, config.ema_decay)
        means, noise = list(actor.velocity_parameters()), list(actor.noise_parameters())
        groups = [{"params": means, "lr": config.lr}, {"params": noise, "lr": config.lr_noise}]
        self.moved = means + noise
        self.optimizer = torch.optim.Adam(groups, eps=1e-5, fused=True)
        self.guard = StepGuard()

    @property
    def average(self) -> Policy:
        """The moving average of the policy."""
        return self.ema.module

    @property
    def evaluated(self) -> Acting:
        """The moving average."""
        return self.average

    def chain(self, cond: Float[Tensor, "b z"], generator: torch.Generator | None = None) -> Chain:
        """A drawn chain, with gradients through the drawing."""
        return denoise(self.actor, cond, *draws(self.actor, cond, generator), self.scored)

    def descend(self, loss: Float[Tensor, ""]) -> dict[str, Tensor]:
        """Backward, clip, step unless that is not finite, average."""
        self.optimizer.zero_grad()
        loss.backward()
        distributed.average_gradients_(self.moved)
        norm = nn.utils.clip_grad_norm_(self.moved, self.config.max_grad_norm)
        self.guard.step(loss, [(self.optimizer, norm)])
        self.ema.update(self.policy)
        skipped = {f"losses/{name}": value for name, value in self.guard.metrics().items()}
        return {"losses/total": loss.detach(), "losses/grad_norm": norm, **skipped}

    def state_dict(self) -> dict[str, Any]:
        """Of chain, average and optimiser."""
        return {
            "policy": self.policy.state_dict(),
            "actor": self.module.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.module.load_state_dict(state["actor"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.reset()


class ChainActor(MovingChain, Judge):
    """Judged by Qs; it explores by its own chain, whose steps have learned noise."""

    def __init__(self, policy: Policy, actor: Stochastic, config: ChainConfig, q: QConfig, setting: Setting):
        """`actor` is the policy's chain and shares its network."""
        Judge.__init__(self, policy, q, setting)
        MovingChain.__init__(self, policy, actor, config)

    @torch.no_grad()
    def act(self, obs: Obs, generator: torch.Generator) -> Decision:
        """The end of a drawn chain."""
        return self.decided(self.chain(self.policy.encode(obs), generator).chunk)

    def next_action(self, cond: Float[Tensor, "b z"]) -> Float[Tensor, "b ea"]:
        """The executed end of a drawn chain: what it would do while it explores."""
        return executed_part(self.policy, self.chain(cond).chunk)

    @torch.no_grad()
    def seen(self, batch: Any) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b ea"]]:
        """Conditions, and the executed parts of the chunks, of a batch of transitions."""
        return self.policy.encode(batch.obs), executed_part(self.policy, self.policy.normalize_chunk(batch.chunk))

    def state_dict(self) -> dict[str, Any]:
        """Of chain, average, optimiser and Qs."""
        return super().state_dict() | {"critic": self.critic.training_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state)
        self.critic.load_training_state(state["critic"])
