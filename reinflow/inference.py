"""A trained policy that acts step by step: it keeps the history of observations and the rest of its chunk itself.

    policy = reinflow.load("runs/reinflow-PickCube-v1-seed0")
    policy.reset()
    action = policy(obs)

It decides as `reinflow.training.evaluation` does: the same noise for an episode's seed, actions inside the task's
bounds, no exploration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reinflow.envs.cameras import frame_of
from reinflow.envs.wrappers import ObsHistory
from reinflow.errors import UserError
from reinflow.policies.base import Policy
from reinflow.policies.spec import PolicySpec
from reinflow.run.run import pick_device
from reinflow.storage.checkpoint import load_policy
from reinflow.training.evaluation import BLOCK, in_blocks, noises
from reinflow.types import EnvSpec, Obs

PICTURES = {"rgb": (torch.uint8, 3), "depth": (torch.int16, 1)}
"""dtype and channels of what cameras see; depth is in millimetres"""


def load(
    path: str | Path,
    *,
    device: torch.device | str | None = None,
    act_horizon: int | None = None,
    num_inference_steps: int | None = None,
    seed: int = 0,
    exact: bool = False,
) -> StepwisePolicy:
    """The policy of a checkpoint or run directory, ready to act; UserError where there is none or a number is wrong.

    `device` None is the GPU if there is one. After `act_horizon` env steps the next chunk is decided, whatever is left
    of the last one; None is the checkpoint's. So is None for `num_inference_steps`, the denoising steps. The first
    episode has noise of `seed`, the next ones count up. With `exact` an episode is to the bit that of an evaluation of
    its seed on the same CPU, which takes the time of 50 observations a decision; without, a product may round the last
    bits otherwise.
    """
    policy, checkpoint = load_policy(path, device or pick_device(cuda=True))
    spec = policy.spec
    policy.spec = replace(
        spec,
        act_horizon=spec.act_horizon if act_horizon is None else act_horizon,
        num_inference_steps=spec.num_inference_steps if num_inference_steps is None else num_inference_steps,
    )
    return StepwisePolicy(policy, checkpoint.env_spec, seed=seed, exact=exact)


class StepwisePolicy:
    """One action for one observation, or one for each row of a batch: make it with `load`."""

    def __init__(self, policy: Policy, task: EnvSpec, *, seed: int = 0, exact: bool = False):
        self.policy = policy.eval()
        """the whole policy, which predicts chunks of actions from histories"""
        self.task = task
        """what it was trained for: env, observation and control mode, bounds of the actions, cameras"""
        self.exact = exact
        self._next_seed = seed
        device, spec = policy.device, policy.spec
        self._low, self._high = (torch.tensor(bound, device=device) for bound in (task.action_low, task.action_high))
        self._noise_shape = (math.ceil(task.max_episode_steps / spec.act_horizon), *spec.chunk_shape)
        self._history: ObsHistory
        self._chunks: Float[Tensor, "n e a"]
        """what each row executes now"""
        self._age: Int[Tensor, "n"]
        """env steps of it that are over"""
        self._noises: list[Iterator[Tensor]]
        """of the decisions to come, for each row's episode"""
        self.reset()

    def reset(self, ended: Any = None) -> None:
        """Call it before the first observation of an episode.

        `ended`, one bool for each row of a batch, begins new episodes in those rows alone; the others go on.
        """
        if ended is None:
            self._fresh: Bool[Tensor, "n"] | None = None
            return
        mask = torch.as_tensor(ended, dtype=torch.bool, device=self.policy.device)
        if self._fresh is None or mask.shape != self._fresh.shape:
            rows = "no" if self._fresh is None else len(self._fresh)
            raise UserError(f"reset got {tuple(mask.shape)} for {rows} rows: pass one bool for each observed row")
        self._fresh = self._fresh | mask

    @torch.no_grad()
    def __call__(self, obs: Any) -> Any:
        """The action in env units for one observation (a,), or for each of a batch (n a): numpy for numpy, else torch.

        `obs` is what the env of `task` observes: a state (s,) or (n s), a dict with `state`, `rgb` (v y x 3) uint8 and
        `depth` (v y x 1) int16 in millimetres as far as the policy sees them, v cameras, which one camera may leave
        out; or ManiSkill's own dict. UserError for anything else.
        """
        frame, form = read(obs, self.policy.spec)
        frame = {name: value.to(self.policy.device) for name, value in frame.items()}
        self._look(frame)
        assert self._fresh is not None
        due = self._fresh | (self._age == self.policy.spec.act_horizon)
        if bool(due.any()):
            self._decide(due)
        actions = self._chunks[torch.arange(len(due), device=due.device), self._age]
        self._age = self._age + 1
        self._fresh = torch.zeros_like(self._fresh)
        return form.returned(actions)

    def _look(self, frame: dict[str, Tensor]) -> None:
        """Append the frame to the histories; where an episode begins it fills them."""
        rows = len(frame["state"])
        if self._fresh is None:
            self._begin(rows)
        elif len(self._fresh) != rows:
            raise UserError(f"got {rows} observations after {len(self._fresh)}: call reset() before another number")
        for name in self._history.frames:
            self._history.extend(name, [frame[name]], self._ones, looks=True)
        assert self._fresh is not None
        self._history.refill(frame, self._fresh)

    def _begin(self, rows: int) -> None:
        spec, device = self.policy.spec, self.policy.device
        self._ones = torch.ones(rows, dtype=torch.long, device=device)
        self._fresh = self._ones.bool()
        self._age = torch.zeros_like(self._ones)
        self._history = ObsHistory(spec.obs_horizon)
        self._chunks = torch.zeros(rows, spec.act_horizon, spec.action_dim, device=device)
        self._noises = [iter(())] * rows
        self._place = self._next_seed % BLOCK

    def _decide(self, due: Bool[Tensor, "n"]) -> None:
        """Predict the next chunk of the rows that are `due`."""
        assert self._fresh is not None
        rows = len(due)
        for row in self._fresh.nonzero().flatten().tolist():
            self._noises[row] = noises(self._next_seed, self._noise_shape)
            self._next_seed += 1
        noise = torch.zeros(rows, *self.policy.spec.chunk_shape)
        for row in due.nonzero().flatten().tolist():
            noise[row] = next(self._noises[row])
        inputs = {**self._history.snapshot(), "noise": noise.to(self.policy.device)}
        offset, size = (self._place, BLOCK) if self.exact else (0, rows)
        chunks = in_blocks(self._predict, inputs, due, offset, size).clamp(self._low, self._high)
        self._chunks = torch.where(due[:, None, None], chunks, self._chunks)
        self._age = torch.where(due, 0, self._age)

    def _predict(self, inputs: Obs) -> Float[Tensor, "b e a"]:
        obs = {name: value for name, value in inputs.items() if name != "noise"}
        return self.policy.act(obs, noise=inputs["noise"])


@dataclass(frozen=True)
class Form:
    """What an observation was, and so what its action has to be."""

    batched: bool
    numpy: bool
    device: torch.device

    def returned(self, actions: Float[Tensor, "n a"]) -> Any:
        """The actions as the observation came."""
        actions = actions if self.batched else actions[0]
        return actions.cpu().numpy() if self.numpy else actions.to(self.device)


def read(obs: Any, spec: PolicySpec) -> tuple[dict[str, Tensor], Form]:
    """A raw observation as a frame of a batch, and what it was; UserError where it isn't what the policy sees."""
    if isinstance(obs, Mapping) and "agent" in obs:
        parts = {name: obs[name] for name in ("agent", "extra", "state", "sensor_data") if name in obs}
        first = leaf_of(parts["agent"])
        form = form_of(first, batched=np.ndim(first) == 2)
        tensors = tree_of_tensors(parts, form.batched)
        frame = frame_of(tensors, form.device)
    elif isinstance(obs, tuple):
        raise UserError("the policy got a tuple: of `obs, info = env.reset()` it takes obs alone")
    else:
        parts = dict(obs) if isinstance(obs, Mapping) else {"state": obs}
        if "state" not in parts:
            raise UserError(f"the observation holds {', '.join(map(str, parts))}: this policy needs {needed(spec)}")
        form = form_of(parts["state"], batched=np.ndim(parts["state"]) == 2)
        frame = tree_of_tensors(parts, form.batched)
    return {name: checked(name, frame, spec) for name in spec.observed}, form


def needed(spec: PolicySpec) -> str:
    """What a policy sees, in words."""
    return ", ".join(f"{name} {shape_of(name, spec)}" for name in spec.observed)


def shape_of(name: str, spec: PolicySpec) -> tuple[int, ...]:
    """Of one observation."""
    if name == "state" or spec.image is None:
        return (spec.state_dim,)
    return (len(spec.image.cameras), spec.image.height, spec.image.width, PICTURES[name][1])


def checked(name: str, frame: Mapping[str, Tensor], spec: PolicySpec) -> Tensor:
    """One part of a frame, (n ...); UserError where it is missing or of another shape or type."""
    if name not in frame:
        raise UserError(f"the observation has no {name}: this policy needs {needed(spec)}")
    value, shape = frame[name], shape_of(name, spec)
    if name in PICTURES and shape[0] == 1 and value.dim() == len(shape):
        value = value.unsqueeze(1)
    if tuple(value.shape[1:]) != shape or len(value) != len(frame["state"]):
        raise UserError(f"{name} of the observation is {tuple(value.shape)}: each row has to be {shape}")
    if name == "state":
        return value.float()
    if value.dtype != PICTURES[name][0]:
        raise UserError(f"{name} of the observation is {value.dtype}: this policy needs {PICTURES[name][0]}")
    return value


def leaf_of(tree: Any) -> Any:
    """The first array of a tree."""
    while isinstance(tree, Mapping):
        tree = next(iter(tree.values()))
    return tree


def form_of(array: Any, batched: bool) -> Form:
    """What an observation with such an array is."""
    tensor = isinstance(array, Tensor)
    return Form(batched, not tensor, array.device if tensor else torch.device("cpu"))


def tree_of_tensors(tree: Any, batched: bool) -> Any:
    """The same tree of tensors that are batches, copies of whatever arrays there were."""
    if isinstance(tree, Mapping):
        return {name: tree_of_tensors(value, batched) for name, value in tree.items()}
    tensor = tree if isinstance(tree, Tensor) else torch.as_tensor(np.array(tree))
    return tensor if batched else tensor.unsqueeze(0)
