"""Windows of demonstrations as batches of tensors on the learner's device: gathers by index, no loader.

The window at time t shows the observations t-o+1 .. t and the actions t-o+1 .. t-o+h, so that the executed slice of a
chunk starts at t. Before the start the first observation repeats. Padded actions keep the robot where it is
(`EnvSpec.still`): no motion where an action dimension moves something, its nearest recorded value where it holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reinflow.data.pictures import open_store
from reinflow.data.trajectories import Demos
from reinflow.types import Obs, StillAction

FOR_STATISTICS = 256
"""pictures, and windows, of an even choice"""


@dataclass
class Batch:
    """For cloning."""

    obs: Obs
    chunk: Float[Tensor, "b h a"]
    """in env units"""


@dataclass
class TransitionBatch(Batch):
    """For critics: what the executed slice of `chunk` led to."""

    reward: Float[Tensor, "b"]
    """sum over the executed steps of gamma**i * r_i"""
    discount: Float[Tensor, "b"]
    """gamma ** tau"""
    next_obs: Obs
    """the history that ends at t + tau"""
    terminated: Bool[Tensor, "b"]
    truncated: Bool[Tensor, "b"]
    """the recording ended there without termination"""
    demonstrated: Bool[Tensor, "b"] | None = None
    """which rows are demonstrations, in a mixture with own decisions"""
    return_to_go: Float[Tensor, "b"] | None = None
    """discounted return that followed, see `returns_to_go`; None where the rest of the episode isn't known"""


class ChunkDataset:
    """Every step of every trajectory is the start of a window; tables of indices are made once."""

    def __init__(
        self,
        demos: Demos,
        obs_horizon: int,
        pred_horizon: int,
        act_horizon: int,
        gamma: float,
        device: torch.device | str = "cpu",
        max_picture_gb: float = 4.0,
        *,
        still: StillAction,
    ):
        """`still` is that of the task's `EnvSpec`."""
        self.device = torch.device(device)
        self.gamma = gamma
        self.horizons = (obs_horizon, pred_horizon, act_horizon)
        lengths = [len(trajectory) for trajectory in demos.trajectories]
        self.obs = torch.cat([trajectory.obs for trajectory in demos.trajectories]).to(self.device)
        pictures = [trajectory.pictures for trajectory in demos.trajectories if trajectory.pictures is not None]
        self.pictures = open_store(pictures, max_picture_gb, self.device) if pictures else None
        padded = [pad_actions(t.actions, obs_horizon - 1, pred_horizon, still) for t in demos.trajectories]
        self.actions = torch.cat(padded).to(self.device)
        self.recorded_actions = torch.cat([trajectory.actions for trajectory in demos.trajectories]).to(self.device)
        starts = Starts.of(lengths, obs_horizon - 1 + pred_horizon, self.device)
        frames = torch.arange(1 - obs_horizon, 1, device=self.device)
        self.obs_rows = starts.obs[:, None] + (starts.time[:, None] + frames).clamp_min(0)
        self.action_rows = (starts.actions + starts.time)[:, None] + torch.arange(pred_horizon, device=self.device)
        rewards = [trajectory.rewards for trajectory in demos.trajectories if trajectory.rewards is not None]
        if len(rewards) == len(demos.trajectories):
            terminated = [trajectory.terminated for trajectory in demos.trajectories]
            self._link(torch.cat(rewards).to(self.device), torch.cat(terminated).to(self.device), starts, frames)

    def __len__(self) -> int:
        return len(self.obs_rows)

    def statistics(self) -> tuple[Float[Tensor, "m s"], Float[Tensor, "m a"], Obs | None]:
        """All recorded states and actions, without padding, and pictures of an even choice, for fitting normalisers."""
        if self.pictures is None:
            return self.obs, self.recorded_actions, None
        chosen = self._evenly(len(self.obs))
        return self.obs, self.recorded_actions, self.pictures.gather(chosen[:, None])

    def overview(self) -> Batch:
        """An even choice of the windows, always the same."""
        return self.window(self._evenly(len(self)))

    def sample(self, batch: int, generator: torch.Generator | None = None) -> Batch:
        """Windows drawn uniformly, with replacement, from all steps."""
        return self.window(self._draw(batch, generator))

    def sample_transitions(self, batch: int, generator: torch.Generator | None = None) -> TransitionBatch:
        """Like `sample`, with the reward and the next observation that each window leads to."""
        return self.transition(self._draw(batch, generator))

    def window(self, index: Int[Tensor, "b"]) -> Batch:
        """The windows at these places."""
        return Batch(self._history(self.obs_rows[index]), self.actions[self.action_rows[index]])

    def transition(self, index: Int[Tensor, "b"]) -> TransitionBatch:
        """The windows and what followed."""
        window = self.window(index)
        return TransitionBatch(
            obs=window.obs,
            chunk=window.chunk,
            reward=self.reward[index],
            discount=self.discount[index],
            next_obs=self._history(self.next_obs_rows[index]),
            terminated=self.terminated[index],
            truncated=self.truncated[index],
            return_to_go=self.return_to_go[index],
        )

    def _history(self, rows: Int[Tensor, "b o"]) -> Obs:
        return {"state": self.obs[rows], **(self.pictures.gather(rows) if self.pictures else {})}

    def _evenly(self, total: int) -> Int[Tensor, "m"]:
        return torch.linspace(0, total - 1, min(FOR_STATISTICS, total), device=self.device).long()

    def _draw(self, batch: int, generator: torch.Generator | None) -> Int[Tensor, "b"]:
        return torch.randint(len(self), (batch,), generator=generator, device=self.device)

    def _link(
        self, rewards: Float[Tensor, "m"], terminated: Bool[Tensor, "m"], starts: Starts, frames: Int[Tensor, "o"]
    ) -> None:
        """Reward, discount and successor of every window; a chunk stops where the recording ends or terminates."""
        act_horizon = self.horizons[2]
        row = torch.arange(len(rewards), device=self.device)
        left = starts.length - starts.time
        tau = torch.zeros_like(row)
        self.reward = torch.zeros_like(rewards)
        self.terminated = torch.zeros_like(terminated)
        for index in range(act_horizon):
            executes = (index < left) & ~self.terminated
            later = torch.where(executes, row + index, row)
            self.reward += torch.where(executes, self.gamma**index * rewards[later], 0.0)
            self.terminated |= executes & terminated[later]
            tau += executes
        self.discount = self.gamma ** tau.float()
        self.truncated = (tau == left) & ~self.terminated
        self.return_to_go = returns_to_go(rewards, terminated, left, self.gamma)
        self.next_obs_rows = starts.obs[:, None] + ((starts.time + tau)[:, None] + frames).clamp_min(0)


def returns_to_go(
    rewards: Float[Tensor, "m"], terminated: Bool[Tensor, "m"], left: Int[Tensor, "m"], gamma: float
) -> Float[Tensor, "m"]:
    """sum_i gamma**i * r_{t+i} of every step of recordings of which `left` steps, itself among them, are left.

    It ends where the task does. A recording that only stops is taken to go on with its last reward, for 1 / (1 - gamma)
    steps' worth and at most 100: what is cut early would else look worse than what is cut late.
    """
    row = torch.arange(len(rewards), device=rewards.device)
    never = len(rewards) + left.max()
    end = torch.where(terminated, row, never).flip(0).cummin(0).values.flip(0)
    steps = torch.minimum(left, end - row + 1)
    last = row + steps - 1
    total, span = rewards.clone(), 1
    while span < int(steps.max()):  # `total` is the sum of `span` steps: twice as many each time
        inside = span < steps
        total = total + torch.where(inside, gamma**span * total[torch.where(inside, row + span, row)], 0.0)
        span *= 2
    beyond = rewards[last] * gamma**steps / max(1 - gamma, 0.01)
    return total + torch.where(terminated[last], 0.0, beyond)


@dataclass
class Starts:
    """For each window:
    its trajectory's first row among observations and padded actions, its length, and its own time.
    """

    obs: Int[Tensor, "m"]
    actions: Int[Tensor, "m"]
    length: Int[Tensor, "m"]
    time: Int[Tensor, "m"]

    @classmethod
    def of(cls, lengths: list[int], padding: int, device: torch.device) -> Starts:
        """The starts in episodes of these lengths, each stored with `padding` more rows of actions than steps."""
        length = torch.tensor(lengths, device=device)
        before = length.cumsum(0) - length
        order = torch.arange(len(lengths), device=device)
        each = order.repeat_interleave(length)
        time = torch.arange(len(each), device=device) - before[each]
        return cls((before + order)[each], (before + padding * order)[each], length[each], time)


def pad_actions(
    actions: Float[Tensor, "t a"], before: int, after: int, still: StillAction
) -> Float[Tensor, "before+t+after a"]:
    """Actions with `before` rows in front and `after` rows behind that keep the robot where it is."""
    if len(still) != actions.shape[1]:
        raise ValueError(f"still has {len(still)} numbers for actions of {actions.shape[1]}")
    holds = torch.tensor([value is None for value in still])
    nothing = torch.tensor([0.0 if value is None else value for value in still])
    first, last = (torch.where(holds, edge, nothing) for edge in (actions[:1], actions[-1:]))
    return torch.cat((first.expand(before, -1), actions, last.expand(after, -1)))
