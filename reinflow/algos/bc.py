"""Behaviour cloning of any Regressable policy: AdamW, warm-up and cosine, an EMA that is evaluated and kept."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from nets.vision import random_shift
from reinflow.algos.config import BCConfig
from reinflow.algos.dispersive import Dispersed
from reinflow.algos.guard import StepGuard
from reinflow.errors import UserError
from reinflow.policies.base import Policy
from reinflow.policies.ema import EMA
from reinflow.runtime import distributed
from reinflow.types import Obs, Regressable

RAW = "raw"
"""the part of a checkpoint whose policy is an average that holds the weights themselves"""


def warmup_cosine(optimizer: torch.optim.Optimizer, warmup: int, total: int | None) -> LRScheduler:
    """Linear rise over `warmup` iterations, then a cosine to 0 at `total`; without one the peak stays.

    A function of the iteration alone, so that a run that is resumed with another length follows the curve of that one.
    """
    warmup = max(warmup if total is None else min(warmup, total // 10), 1)

    def share_of_peak(iteration: int) -> float:
        if iteration < warmup:
            return (1 + iteration * (1 - 1 / warmup)) / warmup
        if total is None:
            return 1.0
        return (1 + math.cos(math.pi * min((iteration - warmup) / max(total - warmup, 1), 1))) / 2

    return LambdaLR(optimizer, share_of_peak)


class BehaviorCloning:
    """Minimises the policy's own loss on demonstrations."""

    def __init__(self, policy: Policy, config: BCConfig, total_iters: int | None):
        """`total_iters` is None where the run's length is counted in something else."""
        if not isinstance(policy, Regressable):
            name = type(policy).__name__
            raise UserError(f"behaviour cloning needs a Regressable policy, got {name}: give it a loss(cond, chunk)")
        self.policy = policy
        self.config = config
        self.regressed = Dispersed(policy, config.dispersion)
        self.ema = EMA(policy, config.ema_decay)
        self.optimizer = torch.optim.AdamW(
            policy.parameters(), lr=config.lr, betas=(0.95, 0.999), weight_decay=config.weight_decay, fused=True
        )
        self.scheduler = warmup_cosine(self.optimizer, config.lr_warmup, total_iters)
        self.guard = StepGuard()

    def update(self, batch: Any) -> dict[str, Tensor]:
        """One gradient step on a batch with `obs` and `chunk`, in env units."""
        rows, _ = self.regression(batch)
        return self.descend(rows.mean())

    def regression(self, batch: Any) -> tuple[Float[Tensor, "b"], Float[Tensor, "b z"]]:
        """The policy's own loss per row, the mean of all draws, and the conditions that it used."""
        chunk = self.policy.normalize_chunk(batch.chunk)
        draws, teacher = self.config.draws, self.ema.module if self.config.use_ema_teacher else None
        with torch.autocast(self.policy.device.type, torch.bfloat16, enabled=self.config.bf16):
            cond = self.policy.encode(self.augmented(batch.obs)).float()
            rows = self.regressed.loss(cond.repeat(draws, 1), chunk.repeat(draws, 1, 1), teacher)
        return rows.float().unflatten(0, (draws, -1)).mean(0), cond

    def augmented(self, obs: Obs) -> Obs:
        """The observations with their pictures moved, where they have any."""
        image = self.policy.spec.image
        if image is None or not self.config.random_shift:
            return obs
        return obs | random_shift({name: obs[name] for name in image.names}, self.config.random_shift)

    def descend(self, loss: Tensor) -> dict[str, Tensor]:
        """Backward, clip, step unless that is not finite, average."""
        self.optimizer.zero_grad()
        loss.backward()
        distributed.average_gradients_(self.policy.parameters())
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        rate = self.scheduler.get_last_lr()[0]
        self.guard.step(loss, [(self.optimizer, norm)])
        self.scheduler.step()
        self.ema.update(self.policy)
        return {
            "losses/total": loss.detach(),
            "losses/grad_norm": norm,
            "charts/learning_rate": torch.tensor(rate),
            **{f"losses/{name}": value for name, value in self.guard.metrics().items()},
        }

    @property
    def evaluated(self) -> Policy:
        """The moving average."""
        return self.ema.module

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """The weights themselves, beside their average."""
        return {RAW: self.policy.state_dict()}

    @staticmethod
    def worries(values: dict[str, float]) -> list[str]:
        """None of its own."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Weights, their average, optimiser and schedule."""
        return {
            "policy": self.policy.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.guard.reset()
