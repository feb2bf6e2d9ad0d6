"""The vocabulary that environments, data, policies and algorithms share.

Shapes use the letters of `docs/algorithm.md`: `b` rows, `n` envs, `r` decisions of a rollout, `h` prediction horizon,
`e` executed horizon, `a` action dim, `o` observation history, `s` state dim, `z` condition dim, `k` denoising steps
(`k1` = k + 1 chain states). Flow time runs from 0 (noise) to 1 (data).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from reinflow.specs import EnvSpec, Headline, ImageSpec, Objective, Seed, StillAction, canonical_obs_mode  # noqa: F401

if TYPE_CHECKING:
    from reinflow.policies.transition import Transition

Obs = dict[str, Tensor]
"""Observation history, oldest first:
`state` is float (n o s). Image modes add `rgb`, uint8 (n o v y x 3), and `depth`, int16 millimetres (n o v y x 1),
where 0 and less mean that nothing was hit. `privileged`, float (n o p), is what only a critic may see.
"""


@dataclass
class StepResult:
    """One env step of a batch, before any reset."""

    obs: dict[str, Tensor]
    """one frame, no history: `state` is (n s), without pictures where none were asked for"""
    reward: Float[Tensor, "n"]
    success: Bool[Tensor, "n"]
    terminated: Bool[Tensor, "n"]
    truncated: Bool[Tensor, "n"] | None = None
    """where an env itself cuts an episode short of the limit; None where it never does"""

    @property
    def ended(self) -> Bool[Tensor, "n"]:
        """Whether the env ended the episode, in either way."""
        return self.terminated if self.truncated is None else self.terminated | self.truncated


class BatchedEnv(Protocol):
    """A batch of envs advanced one step at a time; it neither resets by itself nor counts steps."""

    num_envs: int
    device: torch.device
    spec: EnvSpec

    def reset(self, seed: Seed = None, env_idx: Int[Tensor, "m"] | None = None) -> dict[str, Tensor]:
        """Reset all envs, or only those in `env_idx` and without a seed; returns the frame of all `n` envs."""
        ...

    def rebuild(self, seeds: list[int] | None = None) -> None:
        """Draw the geometry of all envs anew, each from its own seed alone; a reset of all of them has to follow.

        Without `seeds` every env takes the next of its own. Does nothing where a task's geometry is not drawn.
        """
        ...

    def step(self, action: Float[Tensor, "n a"], render: bool = True) -> StepResult:
        """`render` tells whether anyone will look at this frame's pictures; the result stays when the env goes on."""
        ...

    def state(self) -> Any:
        """The moment that all envs are at, as data; None where they can't be brought back to it.

        The envs go on from what the data say, as restored ones do: what can't be read is forgotten.
        """
        ...

    def restore(self, state: Any) -> bool:
        """Go on from a `state` of equal envs, to the bit; False where that fails, and `reset` has to follow."""
        ...

    def close(self) -> None:
        """Free what the simulator holds; no other call may follow."""
        ...


@dataclass
class EpisodeStats:
    """Running statistics of every env's current episode; where `ended`, those of the episode that just ended."""

    return_: Float[Tensor, "n"]
    """undiscounted sum of rewards"""
    length: Int[Tensor, "n"]
    success_once: Bool[Tensor, "n"]
    success_at_end: Bool[Tensor, "n"]


@dataclass
class ChunkStep:
    """One decision of a batch: up to `e` env steps (semi-Markov, so its discount is `gamma ** executed`)."""

    obs: Obs
    """what the policy sees next; of a fresh episode where the last one ended"""
    final_obs: Obs
    """the true last observation of the chunk; equals `obs` where the episode goes on. Only where `terminated`, whose
    value is 0 anyway, its pictures may be older than its state."""
    reward: Float[Tensor, "n"]
    """sum over executed steps of gamma**i * r_i"""
    executed: Int[Tensor, "n"]
    """env steps that really happened, 1..e"""
    terminated: Bool[Tensor, "n"]
    """the task ended: no value beyond"""
    truncated: Bool[Tensor, "n"]
    """the time limit ended it: bootstrap from `final_obs`"""
    episode: EpisodeStats
    broken: Bool[Tensor, "n"]
    """an observation, reward or action was not usable, or its worker died: the decision has no outcome and its episode
    is cut; neither terminated nor truncated"""
    ends: bool = True
    """False where the host knows that no episode ended or was cut, so that nobody has to ask a GPU"""

    @property
    def ended(self) -> Bool[Tensor, "n"]:
        """Whether the task or the time limit ended the episode; a broken decision is neither."""
        return self.terminated | self.truncated


class ChunkEnv(Protocol):
    """What the training loops and the evaluation drive. Envs that ended are reset once, at the chunk's end."""

    num_envs: int
    device: torch.device
    spec: EnvSpec
    obs_horizon: int

    def reset(self, seed: Seed = None) -> Obs:
        """Start a new episode in every env; each history is its first frame, repeated."""
        ...

    def rebuild(self, seeds: list[int]) -> None:
        """Give every env the geometry of its seed; a reset has to follow. Nothing where geometry is not drawn."""
        ...

    def step_chunk(self, actions: Float[Tensor, "n e a"]) -> ChunkStep:
        """Execute the chunk in env units; actions beyond an env's end are not executed there."""
        ...

    def state(self) -> Any:
        """Where all envs are, as data from which they go on themselves; None where that can't be brought back."""
        ...

    def restore(self, state: Any) -> Obs | None:
        """Go on from a `state` of equal envs, to the bit; None where that fails, and `reset` has to follow."""
        ...

    def close(self) -> None:
        """Free what the simulator holds, its processes included; no other call may follow."""
        ...


Centres = Tensor | dict[str, Tensor]
"""Of every step of a chain: means (b k h a), or `means` (b k m h a) and `log_weights` (b k m) of a mixture's modes."""


@dataclass
class Decision:
    """What a learner chose to do for every env."""

    actions: Float[Tensor, "n e a"]
    """in env units"""
    chunk: Float[Tensor, "n h a"] | None = None
    """the whole predicted chunk that `actions` are the executed slice of, in env units, for learners that regress it"""
    memory: Any = None
    """what the learner wants to know of it again once its outcome is there"""


@dataclass
class Chain:
    """A denoising chain: the states it went through and the kernel that drew them."""

    states: Float[Tensor, "b k1 h a"]
    """x_0 .. x_K; x_K is the unclipped, normalised action chunk"""
    means: Centres
    stds: Float[Tensor, "b k h a"]
    """std of x_{k+1} around `means`; may be broadcast along h"""
    log_prob: Float[Tensor, "b"]
    """over the scored dims; x_0's constant density is left out"""

    @property
    def chunk(self) -> Float[Tensor, "b h a"]:
        """x_K, the unclipped, normalised action chunk."""
        return self.states[:, -1]


@runtime_checkable
class Regressable(Protocol):
    """Can be fitted to chunks. Asked for by behaviour cloning and every weighted regression."""

    def loss(
        self, cond: Float[Tensor, "b z"], chunk: Float[Tensor, "b h a"], teacher: nn.Module | None = None
    ) -> Float[Tensor, "b"]:
        """Unreduced, so that a caller can weight the rows; `chunk` is normalised.

        `teacher` is an average of the policy's weights, for families that bootstrap from one.
        """
        ...


@runtime_checkable
class Samplable(Protocol):
    """Draws chunks, deterministic and differentiable given its noise."""

    def sample(
        self, cond: Float[Tensor, "b z"], noise: Float[Tensor, "b h a"], num_steps: int | None = None
    ) -> Float[Tensor, "b h a"]:
        """The normalised chunk that x_0 = `noise` leads to, in as many steps as the spec says where none are given."""
        ...


@runtime_checkable
class OneStep(Protocol):
    """Knows where noise leads in a single step. Asked for by Q-learning that trains what acts in one."""

    def in_one_step(self, cond: Float[Tensor, "b z"], noise: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """The normalised chunk that x_0 = `noise` leads to, with gradients."""
        ...


@runtime_checkable
class Scored(Protocol):
    """Predicts the noise in a noisy chunk, which is its score but for a factor. Asked for by Q-score matching."""

    def noised(self, chunk: Float[Tensor, "b h a"]) -> tuple[Tensor, Int[Tensor, "b"], Float[Tensor, "b h a"]]:
        """Normalised chunks with noise of levels that are drawn, these levels, and standard normal noise itself."""
        ...

    def noise_in(
        self, x: Float[Tensor, "b h a"], level: Int[Tensor, "b"], cond: Float[Tensor, "b z"]
    ) -> Float[Tensor, "b h a"]:
        """The noise that is expected in chunks `x` of these levels."""
        ...


Kernel = Callable[[int, Tensor], "Transition"]
"""(k, x_k) -> how x_{k+1} is drawn"""


@runtime_checkable
class Stochastic(Protocol):
    """A chain of kernels with a density and a learned std: what a policy's `chain` gives. Asked for by PPO."""

    num_steps: int
    """of the chain"""
    all_steps: int
    """in which the policy goes from noise to actions; those before the chain's are no part of it"""

    def set_noise_bounds_(self, min_std: float, max_std: float) -> None:
        """Bounds of the std in normalised action units, in place."""
        ...

    def velocity_parameters(self) -> Iterator[nn.Parameter]:
        """What moves the means."""
        ...

    def noise_parameters(self) -> Iterator[nn.Parameter]:
        """What moves the stds, for an optimiser group of their own."""
        ...

    def start(self, cond: Float[Tensor, "b z"], generator: torch.Generator | None = None) -> Float[Tensor, "b h a"]:
        """x_0"""
        ...

    def kernel(self, cond: Float[Tensor, "b z"]) -> Kernel:
        """How each step of a chain is drawn; all that does not depend on its states is computed here, once."""
        ...

    def steps(self, x: Float[Tensor, "b k h a"], cond: Float[Tensor, "b z"]) -> Transition:
        """The kernel at x_0 .. x_{K-1} of given chains, at once: K folds into the batch."""
        ...
