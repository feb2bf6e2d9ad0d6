"""Policy by cloning of improved actions (DIPO, arXiv:2305.13122), for any policy that can be cloned and sampled.

Recorded actions climb Q by some steps of Adam, and the policy is cloned from where they get to.

Differs: every batch climbs anew from the recorded actions, and nothing is written back to the data, so a run of any
length stays within `action_steps * action_lr` of them, where Q knows something; the steps are longer for that. They
climb the least Q of the ensemble.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.algos.offline_options import DIPOConfig
from reinflow.algos.q_actor import QActor, executed_part
from reinflow.algos.setting import Setting
from reinflow.policies.base import Policy


def climbed(
    q: Callable[[Float[Tensor, "b ea"]], Float[Tensor, "b"]], action: Float[Tensor, "b ea"], steps: int, lr: float
) -> Float[Tensor, "b ea"]:
    """Actions after `steps` of Adam have raised `q` from `action` on, within [-1, 1] after every one."""
    moved = action.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([moved], lr=lr)
    for _ in range(steps):
        (moved.grad,) = torch.autograd.grad(-q(moved).sum(), moved)
        optimizer.step()
        with torch.no_grad():
            moved.clamp_(-1, 1)
    return moved.detach()


class DIPO(QActor):
    """Clones the actions that recorded ones climb to."""

    def __init__(self, policy: Policy, config: DIPOConfig, setting: Setting):
        super().__init__(policy, config.bc, config.q, config.exploration, setting)
        self.dipo = config

    def update(self, batch: Any) -> dict[str, Tensor]:
        """One step of the Qs, and one of the policy towards actions that they find better."""
        with torch.no_grad():
            cond = self.policy.encode(batch.obs)
        chunk = self.policy.normalize_chunk(batch.chunk)
        action = executed_part(self.policy, chunk)
        metrics = self.critic.update(cond, action, self.target(batch))
        better = self.bettered(cond, action)
        rows, _ = self.cloning.regression(replace(batch, chunk=self.with_action(chunk, better)))
        return metrics | self.cloning.descend(rows.mean()) | {"losses/climbed": (better - action).abs().mean()}

    def bettered(self, cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]) -> Float[Tensor, "b ea"]:
        """Where `action` climbs to."""
        steps, lr = self.dipo.action_steps, self.dipo.action_lr
        return climbed(lambda moved: self.critic.judge(cond, moved).amin(0), action, steps, lr)

    def with_action(self, chunk: Float[Tensor, "b h a"], action: Float[Tensor, "b ea"]) -> Float[Tensor, "b h a"]:
        """The chunk in env units with another executed part; what the env doesn't execute stays."""
        better, actions = chunk.clone(), action.unflatten(1, (-1, chunk.shape[-1]))
        whole = chunk.shape[1] == self.policy.spec.pred_horizon
        better[:, self.policy.spec.executed if whole else slice(None)] = actions
        return self.policy.action_normalizer.denormalize(better)
