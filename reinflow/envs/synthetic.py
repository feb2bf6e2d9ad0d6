"""`SyntheticChunk-v0`: an env of any size and cost, to measure what surrounds a simulator; its numbers mean nothing."""

from __future__ import annotations

import time

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reinflow.envs.config import CompleteEnvConfig
from reinflow.envs.seeding import drawn
from reinflow.envs.suite import EnvSuite, Setup, Task, Wishes
from reinflow.types import EnvSpec, ImageSpec, Seed, StepResult

CAMERA, PIXELS = "camera", 128
EPISODE = 48
"""env steps"""


class SyntheticEnv:
    """A `BatchedEnv`: the state is a random walk driven by the action; each step may take a given time.

    Pictures are a fixed noise whose brightness follows the state.
    """

    def __init__(
        self,
        num_envs: int,
        device: torch.device | str = "cpu",
        state_dim: int = 42,
        action_dim: int = 7,
        max_episode_steps: int = EPISODE,
        step_seconds: float = 0.0,
        image: ImageSpec | None = None,
    ):
        """`step_seconds` of sleep per step stand for a simulator that keeps no core of this process busy."""
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.step_seconds = step_seconds
        self.generator = torch.Generator(self.device).manual_seed(0)
        self.mix = torch.randn(action_dim, state_dim, generator=self.generator, device=self.device) / action_dim
        self.walk = torch.zeros(num_envs, state_dim, device=self.device)
        size = (len(image.cameras), image.height, image.width, 3) if image else (0, 0, 0, 3)
        self.texture = torch.randint(0, 256, size, generator=self.generator, device=self.device, dtype=torch.uint8)
        self.spec = EnvSpec(
            env_id="SyntheticChunk-v0",
            obs_mode="+".join(image.names) if image else "state",
            control_mode="synthetic",
            sim_backend="torch",
            reward_mode="normalized_dense",
            state_dim=state_dim,
            action_low=(-1.0,) * action_dim,
            action_high=(1.0,) * action_dim,
            max_episode_steps=max_episode_steps,
            image=image,
            still=(None,) * action_dim,
        )

    def reset(self, seed: Seed = None, env_idx: Int[Tensor, "m"] | None = None) -> dict[str, Tensor]:
        """Draw standard normal states for all envs, or for those in `env_idx`."""
        fresh = drawn(torch.randn, tuple(self.walk.shape), self.generator, seed)
        if env_idx is None:
            self.walk = fresh
        else:
            self.walk = self.walk.index_copy(0, env_idx, fresh[: len(env_idx)])
        return self._frame(render=True)

    def step(self, action: Float[Tensor, "n a"], render: bool = True) -> StepResult:
        """Let the walk decay by a tenth and add the action's share; reward is exp of minus its mean square."""
        if self.step_seconds:
            time.sleep(self.step_seconds)
        self.walk = torch.addmm(0.9 * self.walk, action, self.mix)
        reward = (-self.walk.square().mean(1)).exp()
        return StepResult(self._frame(render), reward, reward > 0.9, torch.zeros_like(reward, dtype=torch.bool))

    def _frame(self, render: bool) -> dict[str, Tensor]:
        frame = {"state": self.walk}
        if self.spec.image is None or not render:
            return frame
        brightness = (255 * self.walk[:, 0].sigmoid()).to(torch.uint8)
        rgb = self.texture // 2 + (brightness // 2).view(-1, 1, 1, 1, 1)
        made = {"rgb": rgb, "depth": rgb[..., :1].to(torch.int16) * 8}
        return frame | {name: made[name] for name in self.spec.image.names}

    def rebuild(self, seeds: list[int] | None = None) -> None:
        """Nothing, since there is no geometry."""

    def state(self) -> dict[str, Tensor]:
        """The random generator and the walk, which are all there is."""
        return {"generator": self.generator.get_state(), "walk": self.walk}

    def restore(self, state: dict[str, Tensor]) -> bool:
        """Always exact."""
        self.generator.set_state(state["generator"].cpu())
        self.walk = state["walk"].to(self.device)
        return True

    def close(self) -> None:
        """Nothing, since tensors need no closing."""


class SyntheticSuite(EnvSuite):
    """That env alone, simulated where the learner is."""

    def owns(self, env_id: str) -> bool:
        """That one name and no other."""
        return env_id == "SyntheticChunk-v0"

    def task(self, env_id: str) -> Task:
        """A fixed number of env steps, the default rewards and one camera."""
        return Task(control_mode="synthetic", limit=EPISODE, cameras=(CAMERA,))

    def setup(self, config: CompleteEnvConfig) -> Setup:
        """All envs stay in the learner's process."""
        return Setup(config, spread=False)

    def make(self, config: CompleteEnvConfig, num_envs: int, wishes: Wishes) -> SyntheticEnv:
        """Envs on the learner's device, with pictures where `obs_mode` asks for them."""
        parts = config.obs_mode.split("+")
        image = None
        if parts != ["state"]:
            image = ImageSpec((CAMERA,), PIXELS, PIXELS, "rgb" in parts, "depth" in parts)
        limit = config.max_episode_steps or EPISODE
        return SyntheticEnv(num_envs, wishes.device, max_episode_steps=limit, image=image)
