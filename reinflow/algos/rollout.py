"""Storage for the decisions of one PPO iteration, on the learner's device."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reinflow.algos.advantages import gae


class RolloutBuffer:
    """Decisions in time-major order; what the policy *did* is a denoising chain, its last state the action chunk.

    `minibatches` and `flat` give dicts of tensors: `obs`, `actions`, `log_probs`, `advantages`, `returns` and the
    other arguments of `add`; `means` and `stds` only where they were given.
    """

    def __init__(
        self,
        buffer_size: int,
        obs_dim: int,
        pred_horizon: int,
        act_dim: int,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        num_inference_steps: int = 8,
        device: torch.device | str = "cpu",
    ):
        """`buffer_size` is rollout_steps * num_envs; the number of envs is that of the first `add`."""
        self.buffer_size = buffer_size
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.device = torch.device(device)
        self._moments = (num_inference_steps, pred_horizon, act_dim)
        self._shapes = {
            "obs": (obs_dim,),
            "actions": (num_inference_steps + 1, pred_horizon, act_dim),
            **dict.fromkeys(("reward", "value", "log_probs", "executed", "final_value"), ()),
        }
        self._flags = ("done", "terminated")
        self.data: dict[str, Tensor] = {}
        self.count = 0

    @property
    def full(self) -> bool:
        return bool(self.data) and self.count == len(self.data["reward"])

    def reset(self) -> None:
        """Forget the decisions, keep the storage."""
        self.count = 0

    @torch.no_grad()
    def add(
        self,
        obs: Float[Tensor, "n z"],
        actions: Float[Tensor, "n k1 h a"],
        reward: Float[Tensor, "n"],
        value: Float[Tensor, "n"],
        log_prob: Float[Tensor, "n"],
        done: Bool[Tensor, "n"],
        *,
        executed: Tensor | None = None,
        terminated: Bool[Tensor, "n"] | None = None,
        final_value: Float[Tensor, "n"] | None = None,
        means: Float[Tensor, "n k h a"] | None = None,
        stds: Float[Tensor, "n k h a"] | None = None,
    ) -> None:
        """Store one decision of every env.

        `executed` env steps count 1 when left out; a `done` decision without `terminated` is taken as terminated; one
        that was truncated needs `final_value`, V of its true last observation. `means` and `stds` are for the
        closed-form KL: pass them always or never. Raises ValueError when full, or when `actions` is a chunk instead of
        the chain that produced it.
        """
        if not self.data:
            self._allocate(len(reward), with_moments=means is not None)
        if self.full:
            raise ValueError(f"the rollout buffer holds its {self.count} decisions per env: call reset() first")
        if actions.shape[1:] != self._shapes["actions"]:
            expected = ", ".join(map(str, self._shapes["actions"]))
            raise ValueError(
                f"actions must be the denoising chain (n, K+1, H, A) = (n, {expected}), got {tuple(actions.shape)}"
            )
        row: dict[str, Any] = {
            "obs": obs, "actions": actions, "reward": reward, "value": value, "log_probs": log_prob, "done": done,
            "executed": 1.0 if executed is None else executed,
            "terminated": done if terminated is None else terminated,
            "final_value": 0.0 if final_value is None else final_value,
        } | ({"means": means, "stds": stds} if "means" in self.data else {})  # fmt: skip
        for name, entry in row.items():
            self.data[name][self.count] = entry
        self.count += 1

    def _allocate(self, num_envs: int, with_moments: bool) -> None:
        if self.buffer_size % num_envs:
            raise ValueError(f"buffer_size {self.buffer_size} is not a multiple of the {num_envs} envs added")
        lead = (self.buffer_size // num_envs, num_envs)
        shapes = self._shapes | (dict.fromkeys(("means", "stds"), self._moments) if with_moments else {})
        self.data = {name: torch.zeros(*lead, *shape, device=self.device) for name, shape in shapes.items()}
        self.data |= {name: torch.zeros(lead, dtype=torch.bool, device=self.device) for name in self._flags}

    @torch.no_grad()
    def compute_returns_and_advantages(
        self, last_value: Float[Tensor, "n"], last_done: Bool[Tensor, "n"] | None = None
    ) -> None:
        """GAE with discount gamma ** executed; `last_value` is V of the observation after the last stored decision.

        `last_done` repeats the last `done`, as callers of other buffers pass it; the stored flag is what counts.
        Raises ValueError when decisions are missing.
        """
        if not self.full:
            raise ValueError(f"the rollout buffer holds {self.count} of its decisions per env: add the others first")
        data = self.data
        following = torch.cat((data["value"][1:], last_value[None].to(self.device)))
        data["advantages"] = gae(
            data["reward"],
            data["value"],
            torch.where(data["done"], data["final_value"], following),
            self.gamma ** data["executed"],
            data["terminated"],
            data["done"],
            self.gae_lambda,
        )
        data["returns"] = data["advantages"] + data["value"]

    def flat(self) -> dict[str, Tensor]:
        """All decisions as rows (views of the storage)."""
        return {name: tensor.flatten(0, 1) for name, tensor in self.data.items()}

    def minibatches(
        self, size: int, generator: torch.Generator | None = None, names: Collection[str] | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """One shuffled pass over all rows in equal batches of at most `size`, so that no small rest gets a full step.

        `names` limits what is gathered.
        """
        rows = {name: tensor for name, tensor in self.flat().items() if names is None or name in names}
        order = torch.randperm(self.buffer_size, generator=generator, device=self.device)
        for index in order.tensor_split(math.ceil(self.buffer_size / size)):
            yield {name: tensor[index] for name, tensor in rows.items()}
