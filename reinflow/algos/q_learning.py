"""Q-learning over action chunks: an ensemble, its slow targets, and the one TD target of every algorithm with a Q.

Minimum over random members as REDQ (arXiv:2101.05982), LayerNorm as RLPD (arXiv:2302.02948), and on demand a
distributional head as HL-Gauss (arXiv:2403.03950). Differs: a decision lasts `tau` env steps, so it is discounted by
gamma**tau; the networks predict returns in a unit of about their size, which they reach in tens of updates.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nets.critic import QEnsemble
from reinflow.algos.advantages import return_scale
from reinflow.algos.guard import StepGuard
from reinflow.algos.options import QConfig
from reinflow.policies.ema import EMA
from reinflow.runtime import distributed

UNIT = 0.25
"""of what the networks predict, in returns at a reward of 1 per env step"""


def td_target(
    reward: Float[Tensor, "b"],
    discount: Float[Tensor, "b"],
    terminated: Bool[Tensor, "b"],
    next_value: Float[Tensor, "b"],
) -> Float[Tensor, "b"]:
    """Semi-Markov target R + (1 - terminated) * gamma**tau * V(s').

    A truncated decision bootstraps like any other, from the observation that the time limit cut it at.
    """
    return reward + discount * ~terminated * next_value


def random_minimum(q: Float[Tensor, "q b"], members: int) -> Float[Tensor, "b"]:
    """Minimum over `members` random rows of `q`, the same ones for the whole batch (REDQ, algorithm 1)."""
    chosen = torch.randperm(len(q), device=q.device)[:members]
    return q[chosen].amin(0)


def expected_minimum(q: Float[Tensor, "q b"], members: int) -> Float[Tensor, "b"]:
    """Mean of the minimum over all choices of `members` of the rows of `q`.

    The i-th smallest of n is the minimum of C(n - 1 - i, members - 1) of them.
    """
    choices = [math.comb(len(q) - 1 - index, members - 1) for index in range(len(q))]
    share = torch.tensor(choices, dtype=q.dtype, device=q.device) / sum(choices)
    return share @ q.sort(0).values


class QLearning(nn.Module):
    """An ensemble with its targets and optimiser; whatever it takes and gives is in units of the env's own reward."""

    def __init__(
        self, cond_dim: int, chunk_dim: int, config: QConfig, gamma: float, start: dict[str, Tensor] | None = None
    ):
        """`chunk_dim` is executed horizon times action dim; `start` is the `q` of a checkpoint, used where it fits."""
        super().__init__()
        self.config = config
        self.unit = UNIT * return_scale(gamma)
        support = None
        if config.q_bins:
            support = torch.linspace(config.q_low, config.q_high, config.q_bins) / UNIT
        self.q = QEnsemble(
            cond_dim, chunk_dim, config.num_qs, config.q_hidden_dim, layer_norm=config.q_layer_norm, support=support
        )
        self.new = True
        """whether nothing was learnt before"""
        if start and {n: v.shape for n, v in start.items()} == {n: v.shape for n, v in self.q.state_dict().items()}:
            self.q.load_state_dict(start)
            self.q.rescale_(1 / self.unit)
            self.new = False
        self.target = EMA(self.q, decay=1 - config.tau, warm_up=False)
        self.target_q = self.target.module
        self.optimizer = torch.optim.Adam(self.q.parameters(), lr=config.lr_critic, fused=True)
        self.guard = StepGuard()

    def start_at_(self, level: Float[Tensor, ""]) -> None:
        """Let new Qs that regress the mean start from one value; from 0 slow targets come near the returns late.

        Qs of a checkpoint stay, and so do those that tell returns apart, for which a target is one of many.
        """
        if self.new and self.q.support is None:
            self.q.shift_(level / self.unit)
            self.target_q.shift_(level / self.unit)

    def forward(self, cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]) -> Float[Tensor, "q b"]:
        """Q of every member, with gradients."""
        return self.unit * self.q(cond, action)

    def judge(self, cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]) -> Float[Tensor, "q b"]:
        """Q of every member with gradients to `action` alone, for an actor that climbs it."""
        weights = {name: value.detach() for name, value in self.q.named_parameters()}
        return self.unit * torch.func.functional_call(self.q, weights, (cond, action))

    def slow(self, cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]) -> Float[Tensor, "q b"]:
        """Q of every target member."""
        return self.unit * self.target_q(cond, action)

    @torch.no_grad()
    def bootstrap(self, cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]) -> Float[Tensor, "b"]:
        """The pessimistic value of doing `action`: minimum over `num_min_qs` random target members."""
        return random_minimum(self.slow(cond, action), self.config.num_min_qs)

    def update(
        self,
        cond: Float[Tensor, "b z"],
        action: Float[Tensor, "b ea"],
        target: Float[Tensor, "b"],
        penalty: Float[Tensor, ""] | float = 0.0,
    ) -> dict[str, Tensor]:
        """One step of every member towards `target`, and of the targets towards them; gives metrics.

        `penalty`, such as CQL's, is made with this module's own Qs and added to the loss, which sums over members and
        measures returns in `unit`s.
        """
        predicted = self.q.predict(cond, action)
        error = self.q.errors(predicted, target.detach() / self.unit).mean()
        loss = error * self.config.num_qs + penalty
        self.optimizer.zero_grad()
        loss.backward()
        parameters = list(self.q.parameters())
        distributed.average_gradients_(parameters)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.guard.step(loss, [(self.optimizer, norm)])
        self.target.update(self.q)
        q = self.unit * self.q.mean(predicted.detach())
        return {
            "losses/q": error.detach(),
            "losses/q_mean": q.mean(),
            "losses/q_std": q.std(0, correction=0).mean(),
            "losses/td_error": (q - target).abs().mean(),
            "losses/grad_norm_critic": norm,
            **{f"losses/critic_{name}": count for name, count in self.guard.metrics().items()},
        }

    @torch.no_grad()
    def unscaled(self) -> QEnsemble:
        """A copy of the targets in units of the env's own reward, as checkpoints hold it."""
        return copy.deepcopy(self.target_q).rescale_(self.unit)

    def training_state(self) -> dict[str, Any]:
        """What a resume needs of Qs, targets and optimiser, its tensors live."""
        return {"critics": self.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Go on from a `training_state`, the optimiser's moments included."""
        self.load_state_dict(state["critics"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.reset()
