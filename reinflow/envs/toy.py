"""`Toy-v0`: a two-mode reach in the plane that proves a trainer in two minutes (pure torch, batched, any device).

A point starts left of a wall with a door near each end, and has to come within `GOAL_RADIUS` of a goal on the right.
Demonstrations use either door, so their mean runs into the wall; and they are noisy, so their imitation reaches the
goal in about half of the episodes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reinflow.envs.config import CompleteEnvConfig
from reinflow.envs.seeding import drawn
from reinflow.envs.suite import EnvSuite, Setup, Task, Wishes
from reinflow.types import EnvSpec, Seed, StepResult

STEP = 0.12
"""distance of a full action"""
WALL = 0.35
"""|y| below which the wall at x = 0 lets nothing pass"""
GOAL_X = 0.8
GOAL_RADIUS = 0.06
EPISODE = 24
"""env steps"""


class ToyEnv:
    """A `BatchedEnv`: state is (x, y, goal y), an action is a step in x and y.

    Half of the dense reward is 1 - distance/3. The other half, the sparse reward, is for being at the goal: without it
    precision hardly pays.
    """

    def __init__(
        self,
        num_envs: int,
        device: torch.device | str = "cpu",
        terminate_on_success: bool = False,
        reward_mode: str = "normalized_dense",
        max_episode_steps: int = EPISODE,
    ):
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.terminate_on_success = terminate_on_success
        self.generator = torch.Generator(self.device).manual_seed(0)
        self.position = torch.zeros(num_envs, 2, device=self.device)
        self.goal = torch.zeros(num_envs, 2, device=self.device)
        self.spec = EnvSpec(
            env_id="Toy-v0",
            obs_mode="state",
            control_mode="toy",
            sim_backend="torch",
            reward_mode=reward_mode,
            state_dim=3,
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            max_episode_steps=max_episode_steps,
            still=(0.0, 0.0),
        )

    def reset(self, seed: Seed = None, env_idx: Int[Tensor, "m"] | None = None) -> dict[str, Tensor]:
        """Draw start points and goal heights of all envs, or of those in `env_idx`."""
        where = slice(None) if env_idx is None else env_idx
        rows = self.num_envs if env_idx is None else len(env_idx)
        place = drawn(torch.rand, (rows, 3), self.generator, seed) * 2 - 1
        start = torch.stack((-0.8 + 0.1 * place[:, 0], 0.1 * place[:, 1]), 1)
        goal = torch.stack((torch.full_like(place[:, 2], GOAL_X), 0.3 * place[:, 2]), 1)
        self.position = self.position.clone()
        self.goal = self.goal.clone()
        self.position[where], self.goal[where] = start, goal
        return self._obs()

    def step(self, action: Float[Tensor, "n 2"], render: bool = True) -> StepResult:
        """Move each point by its action, at most `STEP` in x and in y; the wall stops x outside the doors."""
        before = self.position
        after = (before + STEP * action.clamp(-1, 1)).clamp(-1, 1)
        blocked = (before[:, 0] * after[:, 0] <= 0) & (after[:, 1].abs() < WALL)
        after[:, 0] = torch.where(blocked, before[:, 0], after[:, 0])
        self.position = after
        distance = (after - self.goal).norm(dim=1)
        success = distance < GOAL_RADIUS
        sparse = self.spec.reward_mode == "sparse"
        reward = success.float() if sparse else 0.5 * (1 - distance / 3) + 0.5 * success
        return StepResult(self._obs(), reward, success, success & self.terminate_on_success)

    def rebuild(self, seeds: list[int] | None = None) -> None:
        """Nothing, since the wall is the same in every env."""

    def state(self) -> dict[str, Tensor]:
        """Random generator, positions and goals, which are all there is."""
        return {"generator": self.generator.get_state(), "position": self.position, "goal": self.goal}

    def restore(self, state: dict[str, Tensor]) -> bool:
        """Always exact."""
        self.generator.set_state(state["generator"].cpu())
        self.position, self.goal = (state[name].to(self.device) for name in ("position", "goal"))
        return True

    def close(self) -> None:
        """Nothing, since tensors need no closing."""

    def _obs(self) -> dict[str, Tensor]:
        return {"state": torch.cat((self.position, self.goal[:, 1:]), 1)}


class ToySuite(EnvSuite):
    """The toy alone, simulated where the learner is."""

    def owns(self, env_id: str) -> bool:
        """That one name and no other."""
        return env_id == "Toy-v0"

    def task(self, env_id: str) -> Task:
        """A fixed number of env steps, dense or sparse rewards, and nothing to see."""
        return Task(control_mode="toy", limit=EPISODE, reward_modes=("normalized_dense", "sparse"))

    def setup(self, config: CompleteEnvConfig) -> Setup:
        """All envs stay in the learner's process."""
        return Setup(config, spread=False)

    def make(self, config: CompleteEnvConfig, num_envs: int, wishes: Wishes) -> ToyEnv:
        """Envs on the learner's device; only reward mode, limit and termination can be chosen."""
        limit = config.max_episode_steps or EPISODE
        return ToyEnv(num_envs, wishes.device, config.terminate_on_success, config.reward_mode, limit)


def toy_demos(num: int, noise: float, seed: int) -> list[dict[str, Tensor]]:
    """`num` scripted episodes, half of them through either door, with Gaussian action noise of std `noise`.

    Each has `obs` (T+1 s), `actions` (T a), `rewards` (T) and `success` (T).
    """
    env = ToyEnv(num)
    generator = torch.Generator().manual_seed(seed)
    frame = env.reset(seed=seed)["state"]
    side = (torch.arange(num) % 2 * 2 - 1).float()
    frames, actions, rewards, successes = [frame], [], [], []
    for _ in range(EPISODE):
        position = env.position
        door = torch.stack((torch.full_like(side, 0.1), side * (WALL + 0.12)), 1)
        target = torch.where((position[:, :1] < 0.05), door, env.goal)
        action = (target - position) / STEP + noise * torch.randn(num, 2, generator=generator)
        action = action.clamp(-1, 1)
        step = env.step(action)
        frames.append(step.obs["state"])
        actions.append(action)
        rewards.append(step.reward)
        successes.append(step.success)
    columns = {"obs": frames, "actions": actions, "rewards": rewards, "success": successes}
    stacked = {name: torch.stack(values, 1) for name, values in columns.items()}
    return [{name: value[index] for name, value in stacked.items()} for index in range(num)]
