"""Any task that gymnasium knows by name, one env after another: those of gymnasium-robotics, and the user's own.

What it observes becomes one row of numbers, a dict in the order of its sorted keys; what it takes must be a `Box` with
bounds. Its own time limit is counted by the chunk executor, as in all suites.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from reinflow.envs.config import CompleteEnvConfig
from reinflow.envs.seeding import generator_at, single_seeds
from reinflow.envs.suite import NATIVE, NativeSuite, Task, Wishes, needed
from reinflow.errors import UserError
from reinflow.types import EnvSpec, Seed, StepResult

ROBOTICS = re.compile(
    r"(Fetch(Reach|Push|Slide|PickAndPlace)|Hand(Reach|Manipulate)|AdroitHand|PointMaze_|AntMaze_|FrankaKitchen)\w*-v\d+"
)
"""tasks of gymnasium-robotics, which are registered where it is imported"""
COUNTED = "FrankaKitchen"
"""its return is the number of things done, which says more than whether all of them were"""


class GymnasiumEnv:
    """A `BatchedEnv` of single envs; one whose episode is over waits for its reset, as few envs may be stepped on."""

    device = torch.device("cpu")

    def __init__(self, config: CompleteEnvConfig, num_envs: int, make: Callable[..., Any] | None = None):
        """`make` gives an env by its name and arguments, instead of gymnasium's registry.

        UserError for spaces that policies here have nothing for, or where nothing says how long an episode is.
        """
        self.num_envs = num_envs
        self.terminate_on_success = config.terminate_on_success
        limit = config.max_episode_steps or config.task.limit
        if limit is None:
            raise UserError(f"{config.env_id} has no time limit of its own: give one with --max_episode_steps")
        self.envs = [(make or single)(config.env_id, **config.arguments.kwargs) for _ in range(num_envs)]
        self.actions, self.observations = checked_spaces(self.envs[0], config.env_id)
        self.starts: list[Any] = [None] * num_envs
        """the seed of each env's episode, or its generator's state before it"""
        self.taken: list[list[np.ndarray]] = [[] for _ in self.envs]
        """actions since"""
        self.over = np.zeros(num_envs, dtype=bool)
        self.frames = np.zeros((num_envs, *self.observations.shape), dtype=np.float32)
        self.reset(seed=0)
        low, high = (bound.ravel().astype(np.float32).tolist() for bound in (self.actions.low, self.actions.high))
        self.spec = EnvSpec(
            env_id=config.env_id,
            obs_mode="state",
            control_mode=config.control_mode,
            sim_backend="gymnasium",
            reward_mode=config.reward_mode,
            state_dim=self.frames.shape[1],
            action_low=tuple(low),
            action_high=tuple(high),
            max_episode_steps=limit,
            still=(None,) * len(low),  # whether 0 is rest depends on what an action means, which nothing tells
        )

    def reset(self, seed: Seed = None, env_idx: Int[Tensor, "m"] | None = None) -> dict[str, Tensor]:
        """Env i starts as `gymnasium.make(...).reset(seed=...)` does, with its own of the `single_seeds`."""
        seeds = single_seeds(seed, self.num_envs)
        for row in range(self.num_envs) if env_idx is None else env_idx.tolist():
            self._start(row, moment_of(self.envs[row]) if seeds[row] is None else seeds[row])
        return self._frame()

    def step(self, action: Float[Tensor, "n a"], render: bool = True) -> StepResult:
        """Step those envs whose episodes go on; the others repeat their last frame, for no reward."""
        reward = np.zeros(self.num_envs, dtype=np.float32)
        success, terminated, truncated = (np.zeros(self.num_envs, dtype=bool) for _ in range(3))
        numbers = action.numpy()
        for row in np.flatnonzero(~self.over):
            ends = self._advance(row, numbers[row].copy())
            reward[row], terminated[row], truncated[row], success[row] = ends
        if self.terminate_on_success:
            terminated |= success
        self.over |= terminated | truncated
        flags = (torch.from_numpy(flag) for flag in (success, terminated, truncated))
        return StepResult(self._frame(), torch.from_numpy(reward), *flags)

    def rebuild(self, seeds: list[int] | None = None) -> None:
        """Nothing: what a task draws, it draws at a reset."""

    def state(self) -> dict[str, Any] | None:
        """How every episode began and what was done in it; None where an env has another kind of generator."""
        if any(start is None for start in self.starts):
            return None
        width = len(self.spec.action_low)
        return {
            "starts": list(self.starts),
            "actions": [torch.from_numpy(np.array(taken).reshape(-1, width)) for taken in self.taken],
            "frames": torch.from_numpy(self.frames.copy()),
            "over": torch.from_numpy(self.over.copy()),
        }

    def restore(self, state: dict[str, Any]) -> bool:
        """Play the episodes again; False where that leads to other frames, as in an env that draws elsewhere."""
        for row, (start, actions) in enumerate(zip(state["starts"], state["actions"], strict=True)):
            self._start(row, start)
            for action in actions.cpu().numpy():
                self._advance(row, action)
        self.over = state["over"].cpu().numpy().copy()
        return bool(np.array_equal(self.frames, state["frames"].cpu().numpy()))

    def close(self) -> None:
        """Close every env."""
        for env in self.envs:
            env.close()

    def _start(self, row: int, start: Any) -> None:
        env = self.envs[row]
        if isinstance(start, Mapping):
            env.unwrapped.np_random = generator_at(dict(start))
        obs, _ = env.reset(seed=start if isinstance(start, int) else None)
        self.starts[row], self.taken[row], self.over[row] = start, [], False
        self.frames[row] = self._row(obs)

    def _advance(self, row: int, action: np.ndarray) -> tuple[float, bool, bool, bool]:
        """Reward, terminated, truncated, success."""
        self.taken[row].append(action)
        told = action.astype(self.actions.dtype).reshape(self.actions.shape)
        obs, reward, terminated, truncated, info = self.envs[row].step(told)
        self.frames[row] = self._row(obs)
        return float(reward), bool(terminated), bool(truncated), succeeded(info)

    def _row(self, obs: Any) -> np.ndarray:
        from gymnasium import spaces

        return cast(np.ndarray, spaces.flatten(self.envs[0].observation_space, obs))

    def _frame(self) -> dict[str, Tensor]:
        return {"state": torch.from_numpy(self.frames.copy())}


def single(env_id: str, **arguments: Any) -> Any:
    """One env without a time limit; UserError with gymnasium's own words where it can't be made."""
    import gymnasium

    register_robotics(env_id)
    try:
        return gymnasium.make(env_id, max_episode_steps=-1, disable_env_checker=True, **arguments)
    except (gymnasium.error.Error, ImportError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"gymnasium can't make --env_id {env_id} ({reason}): install or choose what it names") from None
    except TypeError as error:
        if not arguments:
            raise
        raise UserError(f"--env_id {env_id} does not take {arguments} ({error}): mend --env_kwargs") from None


def checked_spaces(env: Any, env_id: str) -> tuple[Any, Any]:
    """The space of actions, and that of flattened observations; UserError where policies can't use them."""
    from gymnasium import spaces

    actions, observed = env.action_space, env.observation_space
    if not isinstance(actions, spaces.Box):
        raise UserError(
            f"--env_id {env_id} takes {actions} and policies here act in continuous numbers: "
            "choose a task whose action space is a Box"
        )
    if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
        raise UserError(
            f"--env_id {env_id} takes actions without bounds and policies here need them: "
            "wrap it in gymnasium.wrappers.RescaleAction, or register it with bounds"
        )
    row = spaces.flatten_space(observed) if observed.is_np_flattenable else None
    if not isinstance(row, spaces.Box) or any(len(space.shape or ()) > 1 for space in leaves(observed)):
        raise UserError(
            f"--env_id {env_id} observes {observed} and policies here see rows of numbers: "
            "wrap it so that it observes a Box of one axis, or a dict of such"
        )
    return actions, row


def leaves(space: Any) -> list[Any]:
    """The spaces that a dict or tuple of spaces is made of."""
    parts = getattr(space, "spaces", None)
    if parts is None:
        return [space]
    return [leaf for part in (parts.values() if isinstance(parts, Mapping) else parts) for leaf in leaves(part)]


def succeeded(info: Mapping[str, Any]) -> bool:
    """By whichever name a task says so; one that lists what is left to do has done it where nothing is."""
    for name in ("success", "is_success"):
        if name in info:
            return bool(info[name])
    return "tasks_to_complete" in info and not info["tasks_to_complete"]


def moment_of(env: Any) -> dict[str, Any] | None:
    """The state of an env's generator; None where it isn't gymnasium's kind."""
    bits = env.unwrapped.np_random.bit_generator
    return dict(bits.state) if isinstance(bits, np.random.PCG64) else None


def limit_of(env_id: str) -> int | None:
    """Env steps of an episode; None where its registration doesn't say, or isn't there."""
    import gymnasium

    register_robotics(env_id)
    spec = gymnasium.registry.get(env_id)
    return None if spec is None else spec.max_episode_steps


def register_robotics(env_id: str) -> None:
    """Let gymnasium know the tasks of gymnasium-robotics, where it is installed."""
    if ROBOTICS.fullmatch(env_id):
        try:
            import gymnasium_robotics  # noqa: F401
        except ImportError:
            return  # `refuse` says so


def of_maniskill(spec: Any) -> bool:
    """Whether a registration is ManiSkill's, whose tasks gymnasium knows as well once they are imported."""
    maker = getattr(spec.entry_point, "func", spec.entry_point)
    module = maker if isinstance(maker, str) else getattr(maker, "__module__", "")
    return module.startswith("mani_skill.")


class GymnasiumSuite(NativeSuite):
    """All that gymnasium has registered and no other suite owns."""

    def owns(self, env_id: str) -> bool:
        """Registered names, and those of gymnasium-robotics whether it is there or not."""
        import gymnasium

        if ROBOTICS.fullmatch(env_id):
            return True
        return env_id in gymnasium.registry and not of_maniskill(gymnasium.registry[env_id])

    def task(self, env_id: str) -> Task:
        """Robots are ranked by success, others by return; what ends by itself always does."""
        succeeds = ROBOTICS.fullmatch(env_id) and not env_id.startswith(COUNTED)
        return Task(
            NATIVE,
            limit_of(env_id),
            headline="success_once" if succeeds else "return",
            terminates_on="failure",
            reward_modes=(NATIVE,),
            takes_kwargs=True,
        )

    def refuse(self, config: CompleteEnvConfig, wishes: Wishes) -> None:
        """UserError without gymnasium-robotics, too."""
        super().refuse(config, wishes)
        if ROBOTICS.fullmatch(config.env_id):
            needed("gymnasium_robotics", extra="robotics", env_id=config.env_id)

    def make(self, config: CompleteEnvConfig, num_envs: int, wishes: Wishes) -> GymnasiumEnv:
        """Envs in this process, stepped one after another."""
        return GymnasiumEnv(config, num_envs)
