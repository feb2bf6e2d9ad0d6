"""Gymnasium's MuJoCo tasks as a batch in one process: one model, and an `MjData` and random generator per env.

Gymnasium's own code starts the episodes of one env after another. What it computes after a step is computed for all
envs at once here, by its formulas and with its numbers, so that a test can hold both equal to the bit. As there, the
position of a body is that of a simulation substep before the joints', so nothing is computed anew after a step.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reinflow.envs.config import CompleteEnvConfig
from reinflow.envs.gymnasium_suite import GymnasiumEnv
from reinflow.envs.seeding import generator_at, single_seeds
from reinflow.envs.suite import NATIVE, NativeSuite, Task, Wishes, needed
from reinflow.types import BatchedEnv, EnvSpec, Seed, StepResult

Fields = dict[str, np.ndarray]
"""of `MjData`, of all envs: (n ...) in float64"""

SCALAR = (np.float32(0) * 1.0).dtype
"""gymnasium multiplies a single-precision cost by a float: NumPy 1 makes that double precision, NumPy 2 doesn't"""


class Rules:
    """What a task computes of all envs after a step; `task` is gymnasium's, which has the numbers."""

    reads: ClassVar[tuple[str, ...]] = ("qpos", "qvel")
    limit: ClassVar[int] = 1000

    def __init__(self, task: Any):
        self.task = task

    def observation(self, now: Fields) -> Float[np.ndarray, "n s"]:
        """Positions but the first one, and velocities."""
        return np.concatenate((now["qpos"][:, 1:], now["qvel"]), 1)

    def place(self, now: Fields) -> Float[np.ndarray, "n"]:
        """x in metres, whose change is what is paid for."""
        return now["qpos"][:, 0]

    def fallen(self, now: Fields) -> Bool[np.ndarray, "n"]:
        """Where an episode is over."""
        return np.zeros(len(now["qpos"]), dtype=bool)

    def reward(self, before: Fields, now: Fields, action: Float[np.ndarray, "n a"]) -> Float[np.ndarray, "n"]:
        """Speed along x, minus the cost of torques."""
        return self.forward(before, now) - self.effort(action)

    def forward(self, before: Fields, now: Fields) -> Float[np.ndarray, "n"]:
        """Weighted mean speed of a step."""
        return self.task._forward_reward_weight * ((self.place(now) - self.place(before)) / self.task.dt)

    def effort(self, action: Float[np.ndarray, "n a"]) -> Float[np.ndarray, "n"]:
        """Weighted sum of squared torques."""
        return self.task._ctrl_cost_weight * squares(action)


class Upright(Rules):
    """Also paid for not falling."""

    def reward(self, before: Fields, now: Fields, action: Float[np.ndarray, "n a"]) -> Float[np.ndarray, "n"]:
        """Speed along x and a constant where it has not fallen, minus costs."""
        healthy = ~self.fallen(now) * self.task._healthy_reward
        return self.forward(before, now) + healthy - self.costs(now, action)

    def costs(self, now: Fields, action: Float[np.ndarray, "n a"]) -> Float[np.ndarray, "n"]:
        """Of torques."""
        return self.effort(action)


class Walker2d(Upright):
    """Two legs; falls by height or angle."""

    def observation(self, now: Fields) -> Float[np.ndarray, "n s"]:
        """As any, but with limited velocities."""
        return super().observation(now | {"qvel": now["qvel"].clip(-10, 10)})

    def fallen(self, now: Fields) -> Bool[np.ndarray, "n"]:
        """Where height or angle are beyond their ranges."""
        (low_z, high_z), (low, high) = self.task._healthy_z_range, self.task._healthy_angle_range
        z, angle = now["qpos"][:, 1], now["qpos"][:, 2]
        return ~((low_z < z) & (z < high_z) & (low < angle) & (angle < high))


class Hopper(Walker2d):
    """One leg; falls as two do, or by any other number beyond its range."""

    def fallen(self, now: Fields) -> Bool[np.ndarray, "n"]:
        """Where height, angle or another number are beyond their ranges."""
        low, high = self.task._healthy_state_range
        numbers = np.concatenate((now["qpos"], now["qvel"]), 1)[:, 2:]
        return super().fallen(now) | ~((low < numbers) & (numbers < high)).all(1)


class Ant(Upright):
    """Four legs, and contact forces among the observations; falls by its height."""

    reads = ("qpos", "qvel", "cfrc_ext", "xpos")

    def observation(self, now: Fields) -> Float[np.ndarray, "n s"]:
        """Positions but x and y, velocities, and limited forces on all bodies but the world."""
        return np.concatenate((now["qpos"][:, 2:], now["qvel"], flat(self.forces(now)[:, 1:])), 1)

    def forces(self, now: Fields) -> Float[np.ndarray, "n bodies 6"]:
        """External forces and torques on bodies, within limits."""
        return now["cfrc_ext"].clip(*self.task._contact_force_range)

    def place(self, now: Fields) -> Float[np.ndarray, "n"]:
        """x of the torso."""
        return now["xpos"][:, self.task.data.body(self.task._main_body).id, 0]

    def fallen(self, now: Fields) -> Bool[np.ndarray, "n"]:
        """Where the height is beyond its range, or a number is none."""
        low, high = self.task._healthy_z_range
        z = now["qpos"][:, 2]
        return ~(np.isfinite(now["qpos"]).all(1) & np.isfinite(now["qvel"]).all(1) & (low <= z) & (z <= high))

    def costs(self, now: Fields, action: Float[np.ndarray, "n a"]) -> Float[np.ndarray, "n"]:
        """Of torques and of contacts."""
        return self.effort(action) + self.task._contact_cost_weight * squares(flat(self.forces(now)))


class Humanoid(Upright):
    """A body with arms; what is observed has inertias, body velocities and joint forces, too."""

    reads = ("qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext", "xipos")

    def observation(self, now: Fields) -> Float[np.ndarray, "n s"]:
        """Positions but x and y, velocities, then inertias, velocities and forces of all bodies but the world."""
        inertia, velocity, force = (flat(now[name][:, 1:]) for name in ("cinert", "cvel", "cfrc_ext"))
        parts = (now["qpos"][:, 2:], now["qvel"], inertia, velocity, now["qfrc_actuator"][:, 6:], force)
        return np.concatenate(parts, 1)

    def place(self, now: Fields) -> Float[np.ndarray, "n"]:
        """x of the centre of mass."""
        mass = self.task.model.body_mass
        return np.einsum("b,nb->n", mass, now["xipos"][:, :, 0]) / mass.sum()

    def fallen(self, now: Fields) -> Bool[np.ndarray, "n"]:
        """Where the height is beyond its range."""
        low, high = self.task._healthy_z_range
        return ~((low < now["qpos"][:, 2]) & (now["qpos"][:, 2] < high))

    def costs(self, now: Fields, action: Float[np.ndarray, "n a"]) -> Float[np.ndarray, "n"]:
        """Of torques, in the simulator's double precision, and of contacts, within limits."""
        contact = self.task._contact_cost_weight * squares(flat(now["cfrc_ext"]))
        return self.effort(action.astype(np.float64)) + contact.clip(*self.task._contact_cost_range)


class Pusher(Rules):
    """An arm that moves a cylinder to a goal."""

    reads = ("qpos", "qvel", "xpos")
    limit = 100

    def __init__(self, task: Any):
        super().__init__(task)
        self.tip, self.cylinder, self.goal = (task.model.body(name).id for name in ("tips_arm", "object", "goal"))

    def observation(self, now: Fields) -> Float[np.ndarray, "n s"]:
        """Angles and speeds of the seven joints, then where tip, cylinder and goal are."""
        bodies = now["xpos"][:, [self.tip, self.cylinder, self.goal]]
        return np.concatenate((now["qpos"][:, :7], now["qvel"][:, :7], flat(bodies)), 1)

    def reward(self, before: Fields, now: Fields, action: Float[np.ndarray, "n a"]) -> Float[np.ndarray, "n"]:
        """Minus the distances of the cylinder from goal and tip, and minus the cost of torques."""
        place = now["xpos"]
        near = np.linalg.norm(place[:, self.cylinder] - place[:, self.tip], axis=1)
        far = np.linalg.norm(place[:, self.cylinder] - place[:, self.goal], axis=1)
        effort = squares(action) * self.task._reward_control_weight
        return -far * self.task._reward_dist_weight - effort - near * self.task._reward_near_weight


RULES: dict[str, type[Rules]] = {
    "Hopper-v5": Hopper,
    "Walker2d-v5": Walker2d,
    "HalfCheetah-v5": Rules,
    "Ant-v5": Ant,
    "Humanoid-v5": Humanoid,
    "Pusher-v5": Pusher,
}


def squares(numbers: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n"]:
    """The sum of squares of each row, added up as NumPy does it for a single one."""
    total = np.square(numbers).sum(1)
    return total.astype(SCALAR) if total.dtype == np.float32 else total


def flat(numbers: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n m"]:
    """A row per env."""
    return numbers.reshape(len(numbers), -1)


class MujocoEnv:
    """A `BatchedEnv` on the CPU; env i draws its episodes from a generator of its own, as gymnasium's env does."""

    device = torch.device("cpu")

    def __init__(self, env_id: str, num_envs: int, max_episode_steps: int | None = None):
        import gymnasium
        import mujoco

        self.mujoco = mujoco
        self.num_envs = num_envs
        self.task = cast(Any, gymnasium.make(env_id, disable_env_checker=True).unwrapped)
        self.model = self.task.model
        self.rules = RULES[env_id](self.task)
        self.data = [mujoco.MjData(self.model) for _ in range(num_envs)]
        self.views = {name: [getattr(data, name) for data in self.data] for name in self.rules.reads}
        self.generators: list[np.random.Generator] = [np.random.default_rng(0)] * num_envs
        self.now: Fields = {name: np.stack(views) for name, views in self.views.items()}
        """what the last step or reset left in `data`; a restored simulator has positions and velocities alone"""
        frame = self.reset(seed=0)["state"]
        low, high = self.task.action_space.low, self.task.action_space.high
        self.spec = EnvSpec(
            env_id=env_id,
            obs_mode="state",
            control_mode=NATIVE,
            sim_backend="mujoco",
            reward_mode=NATIVE,
            state_dim=frame.shape[1],
            action_low=tuple(low.tolist()),
            action_high=tuple(high.tolist()),
            max_episode_steps=max_episode_steps or self.rules.limit,
            still=(0.0,) * len(low),
        )

    def reset(self, seed: Seed = None, env_idx: Int[Tensor, "m"] | None = None) -> dict[str, Tensor]:
        """Let gymnasium draw start states; of a seed per env those that `gymnasium.make(...).reset(seed=...)` has."""
        rows = range(self.num_envs) if env_idx is None else env_idx.tolist()
        seeds = single_seeds(seed, self.num_envs)
        for row in rows:
            self.task.data, self.task.np_random = self.data[row], self.generators[row]
            self.task.reset(seed=seeds[row])
            self.generators[row] = self.task.np_random
            for name, views in self.views.items():
                self.now[name][row] = views[row]
        return self._frame()

    def step(self, action: Float[Tensor, "n a"], render: bool = True) -> StepResult:
        """Simulate one env after another; success is not known to these tasks."""
        torques = action.numpy()
        for data, own in zip(self.data, torques, strict=True):
            data.ctrl[:] = own
            self.mujoco.mj_step(self.model, data, self.task.frame_skip)
            self.mujoco.mj_rnePostConstraint(self.model, data)
        before, self.now = self.now, {name: np.stack(views) for name, views in self.views.items()}
        reward = torch.from_numpy(self.rules.reward(before, self.now, torques)).float()
        fallen = torch.from_numpy(self.rules.fallen(self.now))
        return StepResult(self._frame(), reward, torch.zeros(self.num_envs, dtype=torch.bool), fallen)

    def rebuild(self, seeds: list[int] | None = None) -> None:
        """Nothing, since no task draws its geometry."""

    def state(self) -> dict[str, Any]:
        """What the simulator goes on from, what it left of the last step, and the generators."""
        physics = np.empty((self.num_envs, self.mujoco.mj_stateSize(self.model, self._kind)))
        for data, row in zip(self.data, physics, strict=True):
            self.mujoco.mj_getState(self.model, data, row, self._kind)
        return {
            "physics": torch.from_numpy(physics),
            "now": {name: torch.from_numpy(field.copy()) for name, field in self.now.items()},
            "generators": [generator.bit_generator.state for generator in self.generators],
        }

    def restore(self, state: dict[str, Any]) -> bool:
        """Always exact."""
        for data, row in zip(self.data, state["physics"].cpu().numpy(), strict=True):
            self.mujoco.mj_setState(self.model, data, row, self._kind)
        self.now = {name: field.cpu().numpy().copy() for name, field in state["now"].items()}
        self.generators = [generator_at(saved) for saved in state["generators"]]
        return True

    def close(self) -> None:
        """Nothing: the simulator frees itself."""

    @property
    def _kind(self) -> int:
        """All that a next step depends on, the solver's warm start included."""
        return int(self.mujoco.mjtState.mjSTATE_INTEGRATION)

    def _frame(self) -> dict[str, Tensor]:
        return {"state": torch.from_numpy(self.rules.observation(self.now)).float()}


class MujocoSuite(NativeSuite):
    """Six tasks of gymnasium; the suite of all of its tasks steps the others one by one."""

    def owns(self, env_id: str) -> bool:
        """The tasks whose rules are here."""
        return env_id in RULES

    def task(self, env_id: str) -> Task:
        """Ranked by return; a fall ends an episode, and so no value lies beyond it."""
        limit = RULES[env_id].limit
        ranked: dict[str, Any] = {"headline": "return", "terminates_on": "failure"}
        return Task(NATIVE, limit, reward_modes=(NATIVE,), takes_kwargs=True, **ranked)

    def refuse(self, config: CompleteEnvConfig, wishes: Wishes) -> None:
        """UserError without MuJoCo, too."""
        super().refuse(config, wishes)
        needed("mujoco", extra="mujoco", env_id=config.env_id)

    def make(self, config: CompleteEnvConfig, num_envs: int, wishes: Wishes) -> BatchedEnv:
        """Envs in this process; with arguments, which may change the rules, gymnasium's own one after another."""
        if config.arguments.kwargs:
            return GymnasiumEnv(config, num_envs)
        return MujocoEnv(config.env_id, num_envs, config.max_episode_steps)
