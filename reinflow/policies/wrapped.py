"""What acts instead of a policy that it holds: its best chunk, its chunk corrected, its noise chosen, or another one.

A checkpoint holds the policy, and in `extra` and its parts what was wrapped around it (`as_trained`).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nets.critic import QEnsemble
from nets.mlp import MLP
from reinflow.errors import UserError
from reinflow.policies.base import Policy
from reinflow.policies.spec import PolicySpec
from reinflow.types import Obs

ACTOR = "actor"
"""the part of a checkpoint that holds the network beside the policy"""


class Wrapped(nn.Module):
    """Acts like a policy, whose own chunk is where it starts from."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy = policy

    @property
    def spec(self) -> PolicySpec:
        """Of the policy."""
        return self.policy.spec

    @property
    def device(self) -> torch.device:
        """Where noise is drawn."""
        return self.policy.device

    @property
    def core(self) -> Policy:
        """The policy that a checkpoint holds."""
        return self.policy

    @property
    def extra(self) -> dict[str, Any]:
        """What else a checkpoint says, so that an evaluation acts likewise."""
        raise NotImplementedError

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the standard normal noise of one decision."""
        return self.policy.noise_shape

    def steps_warning(self, num_steps: int) -> str | None:
        """Of the policy."""
        return self.policy.steps_warning(num_steps)

    def chunk(
        self, cond: Float[Tensor, "b z"], noise: Float[Tensor, "b *n h a"], num_steps: int | None = None
    ) -> Float[Tensor, "b h a"]:
        """The normalised chunk that it does, from standard normal `noise`."""
        raise NotImplementedError

    def act(
        self,
        obs: Obs,
        generator: torch.Generator | None = None,
        num_steps: int | None = None,
        noise: Float[Tensor, "b *n h a"] | None = None,
    ) -> Float[Tensor, "b e a"]:
        """Actions in env units without exploration noise."""
        cond = self.policy.encode(obs)
        if noise is None:
            noise = torch.randn(len(cond), *self.noise_shape, generator=generator, device=self.device)
        return self.policy.to_action(self.chunk(cond, noise, num_steps))


class BestOf(Wrapped):
    """The best of several chunks by an ensemble of Qs (Q-chunking, arXiv:2507.07969; IDQL, arXiv:2304.10573).

    The first candidate is what the policy itself would do. The others start from x_0 ~ N(0, I) whatever the policy's
    own scale is, since from one x_0 all would be equal.
    """

    def __init__(self, policy: Policy, q: QEnsemble, count: int):
        """`q` judges conditions and the executed parts of normalised chunks. UserError for a `count` below 1."""
        super().__init__(policy)
        if count < 1:
            raise UserError(f"--best_of {count} must be at least 1")
        self.q = q
        self.count = count

    @property
    def extra(self) -> dict[str, Any]:
        """How many chunks are drawn."""
        return {"best_of": self.count}

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the standard normal noise of one decision, for every candidate."""
        return (self.count, *self.policy.noise_shape)

    def candidates(
        self, cond: Float[Tensor, "b z"], noise: Float[Tensor, "b n h a"], num_steps: int | None = None
    ) -> Float[Tensor, "b n h a"]:
        """Normalised chunks of every row, the policy's own first."""
        start = torch.cat((self.policy.start_from(noise[:, :1]), noise[:, 1:]), 1)
        rows = cond.repeat_interleave(self.count, 0)
        return self.policy.sample(rows, start.flatten(0, 1), num_steps).unflatten(0, (len(cond), -1))

    def judged(self, cond: Float[Tensor, "b z"], chunks: Float[Tensor, "b n h a"]) -> Float[Tensor, "b n"]:
        """Mean Q of every candidate."""
        executed = chunks[:, :, self.spec.executed].clamp(-1, 1).flatten(2).flatten(0, 1)
        return self.q(cond.repeat_interleave(self.count, 0), executed).mean(0).unflatten(0, (len(cond), -1))

    def chunk(
        self, cond: Float[Tensor, "b z"], noise: Float[Tensor, "b n h a"], num_steps: int | None = None
    ) -> Float[Tensor, "b h a"]:
        """The candidate with the highest mean Q."""
        chunks = self.candidates(cond, noise, num_steps)
        return taken(chunks, self.judged(cond, chunks).argmax(1))


class Helped(Wrapped):
    """A policy that stays as it is, and a small network beside it; both together decide.

    The network's last layer starts at 0.
    """

    kind: str

    def __init__(self, policy: Policy, bound: float, hidden_dim: int):
        """`bound` is the largest number that the network can give, `hidden_dim` the width of its two layers."""
        super().__init__(policy)
        self.bound = bound
        self.hidden_dim = hidden_dim
        shape = self.spec.chunk_shape
        self.net = MLP(self.inputs(), (hidden_dim, hidden_dim), shape[0] * shape[1]).to(policy.device)
        nn.init.zeros_(cast(Tensor, self.net[-1].weight))
        nn.init.zeros_(cast(Tensor, self.net[-1].bias))

    @property
    def extra(self) -> dict[str, Any]:
        """Which of the ways it is, and the sizes of its network."""
        return {"acts": {"kind": self.kind, "bound": self.bound, "hidden_dim": self.hidden_dim}}

    def inputs(self) -> int:
        """Numbers that the network sees."""
        return self.spec.cond_dim

    def said(self, seen: Float[Tensor, "b i"]) -> Float[Tensor, "b h a"]:
        """What the network gives, between -bound and bound."""
        return self.bound * self.net(seen).tanh().unflatten(1, self.spec.chunk_shape)


class Residual(Helped):
    """The policy's chunk plus a bounded correction (Policy Decorator, arXiv:2412.13630)."""

    kind = "residual"

    def inputs(self) -> int:
        """The condition and the policy's chunk."""
        return self.spec.cond_dim + self.spec.pred_horizon * self.spec.action_dim

    def chunk(
        self, cond: Float[Tensor, "b z"], noise: Float[Tensor, "b h a"], num_steps: int | None = None
    ) -> Float[Tensor, "b h a"]:
        """base + bound tanh(net(cond, base))."""
        with torch.no_grad():
            base = self.policy.sample(cond, self.policy.start_from(noise), num_steps).clamp(-1, 1)
        return base + self.said(torch.cat((cond, base.flatten(1)), 1))


class Steered(Helped):
    """The chunk of the x_0 that the network chooses (DSRL, arXiv:2506.15799)."""

    kind = "steered"

    def chunk(
        self, cond: Float[Tensor, "b z"], noise: Float[Tensor, "b h a"], num_steps: int | None = None
    ) -> Float[Tensor, "b h a"]:
        """The policy's chain from bound tanh(net(cond)); `noise` is not used."""
        return self.policy.sample(cond, self.said(cond), num_steps)


class Alternative(Helped):
    """The policy's chunk or the network's, whichever has the higher lowest Q (IBRL, arXiv:2311.02198)."""

    kind = "alternative"

    def __init__(self, policy: Policy, bound: float, hidden_dim: int, q: QEnsemble):
        super().__init__(policy, bound, hidden_dim)
        self.q = q

    def chunk(
        self, cond: Float[Tensor, "b z"], noise: Float[Tensor, "b h a"], num_steps: int | None = None
    ) -> Float[Tensor, "b h a"]:
        """The better of both."""
        with torch.no_grad():
            imitated = self.policy.sample(cond, self.policy.start_from(noise), num_steps)
        return self.better(cond, imitated, self.said(cond))

    def better(
        self, cond: Float[Tensor, "b z"], first: Float[Tensor, "b h a"], second: Float[Tensor, "b h a"]
    ) -> Float[Tensor, "b h a"]:
        """Of two chunks of every row, the one whose lowest Q is higher; the first where both are equal."""
        lowest = [
            self.q(cond, chunk[:, self.spec.executed].clamp(-1, 1).flatten(1)).amin(0) for chunk in (first, second)
        ]
        return torch.where((lowest[1] > lowest[0])[:, None, None], second, first)


Acting = Policy | Wrapped
"""what can be evaluated"""


def taken(chunks: Float[Tensor, "b n h a"], index: Tensor) -> Float[Tensor, "b h a"]:
    """One candidate of every row."""
    return chunks[torch.arange(len(chunks), device=chunks.device), index]


def as_trained(
    policy: Policy, parts: dict[str, dict[str, Tensor]], extra: dict[str, Any], best_of: int | None = None
) -> Acting:
    """What a checkpoint's policy acted like when it was kept; `best_of` chunks of the policy where a number is given.

    UserError for a checkpoint without the Qs, or with something around the policy that this version doesn't know.
    """
    acts = extra.get("acts")
    count = best_of or (1 if acts else extra.get("best_of", 1))
    if acts and best_of is None:
        return helped(policy, parts, dict(acts)).eval()
    if count == 1:
        return policy
    return BestOf(policy, stored_q(policy, parts, f"--best_of {count} can't choose"), count).eval()


def helped(policy: Policy, parts: dict[str, dict[str, Tensor]], acts: dict[str, Any]) -> Helped:
    """A policy with the network of a checkpoint; UserError for one of another version."""
    kind = acts.pop("kind", None)
    found: Helped
    if kind == Alternative.kind:
        found = Alternative(policy, **acts, q=stored_q(policy, parts, "neither chunk can be chosen"))
    elif kind in (Residual.kind, Steered.kind):
        found = (Residual if kind == Residual.kind else Steered)(policy, **acts)
    else:
        raise UserError(f"the checkpoint acts in a way that this version does not know ({kind}): use its own version")
    found.net.load_state_dict(parts[ACTOR])
    return found


def stored_q(policy: Policy, parts: dict[str, dict[str, Tensor]], problem: str) -> QEnsemble:
    """The Qs of a checkpoint; UserError that names the problem where it has none."""
    if "q" not in parts:
        raise UserError(
            f"the checkpoint holds no Q, so {problem}: leave the flag out, or take the checkpoint of an algorithm "
            "with Qs"
        )
    return QEnsemble.from_state(parts["q"], policy.spec.cond_dim).to(policy.device)
