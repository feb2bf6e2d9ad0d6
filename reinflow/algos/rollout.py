"""Storage for the decisions of one PPO iteration, on the learner's device."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reinflow.algos.advantages import gae, mean_over, mean_value
from reinflow.runtime import distributed
from reinflow.runtime.trees import mapped
from reinflow.types import Centres, Obs

Rows = dict[str, Any]
"""tensors by name; `obs` may be a dict of them"""


class RolloutBuffer:
    """Decisions in time-major order; what the policy *did* is a denoising chain, its last state the action chunk.

    `minibatches` and `flat` give dicts of tensors: `obs`, `actions`, `log_probs`, `advantages`, `returns` and the
    other arguments of `add`; `means`, `stds` and `critic_obs` only where they were given. `obs` are conditions, or
    where the encoder trains on, the observations themselves: a dict of tensors that keep their types.
    """

    def __init__(
        self,
        buffer_size: int,
        obs_dim: int | None,
        pred_horizon: int,
        act_dim: int,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        num_inference_steps: int = 8,
        device: torch.device | str = "cpu",
    ):
        """`buffer_size` is rollout_steps * num_envs; the number of envs is that of the first `add`.

        `obs_dim` None takes whatever form the first observations have.
        """
        self.buffer_size = buffer_size
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.device = torch.device(device)
        self._obs_dim = obs_dim
        self._shapes = {
            "actions": (num_inference_steps + 1, pred_horizon, act_dim),
            **dict.fromkeys(("reward", "value", "log_probs", "executed", "final_value", "valid"), ()),
        }
        self._flags = ("done", "terminated")
        self.data: Rows = {}
        self._gathered: dict[str, Tensor] = {}
        self.count = 0

    @property
    def full(self) -> bool:
        """Whether all decisions are there, after which `add` refuses another."""
        return bool(self.data) and self.count == len(self.data["reward"])

    def reset(self) -> None:
        """Forget the decisions, keep the storage."""
        self.count = 0

    @torch.no_grad()
    def add(  # noqa: PLR0913  the guide's call
        self,
        obs: Float[Tensor, "n z"] | Obs,
        actions: Float[Tensor, "n k1 h a"],
        reward: Float[Tensor, "n"],
        value: Float[Tensor, "n"],
        log_prob: Float[Tensor, "n"],
        done: Bool[Tensor, "n"],
        *,
        valid: Bool[Tensor, "n"] | None = None,
        executed: Tensor | None = None,
        terminated: Bool[Tensor, "n"] | None = None,
        final_value: Float[Tensor, "n"] | None = None,
        means: Centres | None = None,
        stds: Float[Tensor, "n k h a"] | None = None,
        critic_obs: Float[Tensor, "n p"] | None = None,
    ) -> None:
        """Store one decision of every env.

        `executed` env steps count 1 when left out; a `done` decision without `terminated` is taken as terminated; one
        that was truncated needs `final_value`, V of its true last observation. `means` and `stds` are for the
        closed-form KL, `critic_obs` for a critic that sees something else: pass them always or never. Where `valid` is
        false (nowhere when it is left out) the decision has no outcome, may hold numbers that aren't finite, and has no
        part in any loss; the one before it bootstraps from its `value`.

        Raises ValueError when full, or when `actions` is a chunk instead of the chain that produced it.
        """
        if self.full:
            raise ValueError(f"the rollout buffer holds its {self.count} decisions per env: call reset() first")
        if actions.shape[1:] != self._shapes["actions"]:
            expected = ", ".join(map(str, self._shapes["actions"]))
            raise ValueError(
                f"actions must be the denoising chain (n, K+1, H, A) = (n, {expected}), got {tuple(actions.shape)}"
            )
        if isinstance(obs, Tensor) and self._obs_dim not in (None, obs.shape[-1]):
            raise ValueError(f"obs must be (n, {self._obs_dim}), got {tuple(obs.shape)}")
        row: dict[str, Any] = {
            "obs": obs, "actions": actions, "reward": reward, "value": value, "log_probs": log_prob, "done": done,
            "executed": 1.0 if executed is None else executed,
            "terminated": done if terminated is None else terminated,
            "final_value": 0.0 if final_value is None else final_value,
        }  # fmt: skip
        row |= {name: v for name, v in (("means", means), ("stds", stds), ("critic_obs", critic_obs)) if v is not None}
        if not self.data:
            self._allocate(len(reward), row)
        for name, entry in row.items():
            if isinstance(entry, dict):
                for part, value in entry.items():
                    self.data[name][part][self.count] = value
            else:
                self.data[name][self.count] = entry
        self.data["valid"][self.count] = 1.0 if valid is None else valid
        self.count += 1

    def _allocate(self, num_envs: int, row: dict[str, Any]) -> None:
        if self.buffer_size % num_envs:
            raise ValueError(f"buffer_size {self.buffer_size} is not a multiple of the {num_envs} envs added")
        lead = (self.buffer_size // num_envs, num_envs)

        def room(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*lead, *shape, dtype=dtype, device=self.device)

        self.data = {name: room(shape) for name, shape in self._shapes.items()}
        self.data |= {name: room((), torch.bool) for name in self._flags}
        for name in row.keys() - self.data.keys():
            self.data[name] = mapped(row[name], lambda value: room(value.shape[1:], value.dtype))

    @torch.no_grad()
    def compute_returns_and_advantages(
        self, last_value: Float[Tensor, "n"], last_done: Bool[Tensor, "n"] | None = None
    ) -> None:
        """GAE with discount gamma ** executed; `last_value` is V of the observation after the last stored decision.

        A decision that no finite V judges, at its own observation or where it bootstraps, is left out like one without
        outcome; what is left out holds harmless numbers from here on.

        `last_done` repeats the last `done`, as callers of other buffers pass it; the stored flag is what counts.
        Raises ValueError when decisions are missing.
        """
        if not self.full:
            raise ValueError(f"the rollout buffer holds {self.count} of its decisions per env: add the others first")
        data = self.data
        following = torch.cat((data["value"][1:], last_value[None].to(self.device)))
        next_value = torch.where(data["done"], data["final_value"], following)
        data["valid"] *= data["value"].isfinite() & (data["terminated"] | next_value.isfinite())
        data["advantages"] = self._gae(data["value"], next_value, self.gae_lambda)
        data["returns"] = data["advantages"] + data["value"]
        self._blank_()

    def _gae(self, value: Float[Tensor, "r n"], next_value: Float[Tensor, "r n"], lam: float) -> Float[Tensor, "r n"]:
        data, discount = self.data, self.gamma ** self.data["executed"]
        return gae(data["reward"], value, next_value, discount, data["terminated"], data["done"], lam, data["valid"])

    def _blank_(self) -> None:
        """Harmless numbers in rows that aren't valid, since 0 * NaN is NaN; a finite V stays, for the row before."""
        left_out = self.data["valid"] == 0
        for name, entry in self.data.items():
            if name == "value":
                entry.nan_to_num_(0.0, 0.0, 0.0)
            elif name not in self._flags:
                mapped(entry, partial(blank_, rows=left_out, blank=1 if name == "stds" else 0))

    @torch.no_grad()
    def sizes(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Root mean squares of the discounted rewards to go inside this rollout, and of V, over all processes."""
        nothing = torch.zeros_like(self.data["reward"])
        to_go = self._gae(nothing, nothing, 1.0)
        value = torch.where(self.data["valid"] > 0, self.data["value"], 0.0).nan_to_num(0.0, 0.0, 0.0)
        squares = [column.double().square().sum() for column in (to_go, value)]
        returns, values, count = distributed.total(torch.stack([*squares, self.data["valid"].double().sum()]))
        return (returns / count.clamp_min(1)).sqrt(), (values / count.clamp_min(1)).sqrt()

    @torch.no_grad()
    def shortfall(self) -> Float[Tensor, ""]:
        """What a V that is far too small, as a new one is, lacks on average; 0 for one that isn't.

        Bootstrapping mends that by a share per rollout, and as long V looks only a few decisions ahead, as if gamma
        were smaller. Far too small is a root mean square below half of `mean_value`.
        """
        data = self.data
        level = mean_value(data["reward"], self.gamma ** data["executed"], data["terminated"], data["valid"])
        value = data["value"].nan_to_num(0.0, 0.0, 0.0)
        small = self.sizes()[1] < level.abs() / 2
        average = distributed.mean(mean_over(value, data["valid"]))
        return torch.where(small, level - average, 0.0)

    def kept(self) -> Bool[Tensor, "r n"]:
        """Which decisions are not left out; all of them where none is, so that there is something to show."""
        kept = self.data["valid"] > 0
        return kept | ~kept.any()

    def scale_values_(self, factor: Float[Tensor, ""]) -> None:
        """Multiply every stored V, after the network that gave them changed so."""
        for name in ("value", "final_value"):
            self.data[name].mul_(factor)

    def shift_values_(self, by: Float[Tensor, ""]) -> None:
        """Add to every stored V, after the network that gave them changed so."""
        for name in ("value", "final_value"):
            self.data[name].add_(by)

    def flat(self) -> Rows:
        """All decisions as rows (views of the storage)."""
        return {name: mapped(entry, lambda tensor: tensor.flatten(0, 1)) for name, entry in self.data.items()}

    def minibatches(
        self,
        size: int,
        generator: torch.Generator | None = None,
        names: Collection[str] | None = None,
        overwrite: bool = False,
    ) -> Iterator[Rows]:
        """One shuffled pass over all rows in equal batches of at most `size`, so that no small rest gets a full step.

        `size` counts the rows of all processes. `names` limits what is gathered. With `overwrite` every minibatch takes
        the place of the one before it, in memory that stays.
        """
        yield from self.gathered(self.shuffled(size, generator), names, overwrite)

    def shuffled(self, size: int, generator: torch.Generator | None = None) -> tuple[Int[Tensor, "b"], ...]:
        """The rows of each minibatch of one pass, as `minibatches` gives them."""
        order = torch.randperm(self.buffer_size, generator=generator, device=self.device)
        count = min(math.ceil(self.buffer_size * distributed.world_size() / size), self.buffer_size)
        return order.tensor_split(count)

    def gathered(
        self, batches: Iterable[Int[Tensor, "b"]], names: Collection[str] | None = None, overwrite: bool = False
    ) -> Iterator[Rows]:
        """Those rows of each entry, of all entries or of the `names` alone."""
        rows = {name: tensor for name, tensor in self.flat().items() if names is None or name in names}
        for index in batches:
            if overwrite:
                yield {name: self._gather(name, entry, index) for name, entry in rows.items()}
            else:
                yield {name: mapped(entry, itemgetter(index)) for name, entry in rows.items()}

    def replace_(self, index: Int[Tensor, "b"], rows: Rows) -> None:
        """Overwrite these rows in the entries that `rows` has and the rollout keeps."""
        flat = self.flat()
        for name in rows.keys() & flat.keys():
            if isinstance(flat[name], dict):
                for part, values in rows[name].items():
                    flat[name][part][index] = values
            else:
                flat[name][index] = rows[name]

    def _gather(self, name: str, entry: Tensor | Obs, index: Int[Tensor, "b"]) -> Any:
        """Rows of an entry, in its own part of the memory that all minibatches share."""
        if isinstance(entry, dict):
            return {part: self._gather(f"{name}.{part}", tensor, index) for part, tensor in entry.items()}
        place = self._gathered.get(name)
        if place is None or len(place) < len(index):
            self._gathered[name] = place = entry.new_empty(len(index), *entry.shape[1:])
        return torch.index_select(entry, 0, index, out=place[: len(index)])


def blank_(entry: Float[Tensor, "r n ..."], rows: Bool[Tensor, "r n"], blank: float) -> Tensor:
    """Overwrite those rows of an entry."""
    return entry.masked_fill_(rows.view(*rows.shape, *(1,) * (entry.dim() - rows.dim())), blank)
