"""A task of robosuite as one of gymnasium's envs: a row of numbers, and success in `info`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float

HERTZ = 20
"""decisions per second"""


class RobosuiteEnv(gymnasium.Env):
    """Pandas with robosuite's own controllers of poses; no episode ends by itself."""

    def __init__(self, name: str, arms: int, rows: Sequence[str], shaped: bool):
        """`rows` are robosuite's names of what is observed, in their order; `shaped` rewards are dense ones."""
        import robosuite

        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # it names each part that a Panda hasn't
        self.rows = rows
        self.inner: Any = robosuite.make(
            name,
            robots=["Panda"] * arms,
            controller_configs=robosuite.load_composite_controller_config(controller="BASIC", robot="Panda"),
            reward_shaping=shaped,
            control_freq=HERTZ,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            ignore_done=True,
            hard_reset=False,
            **({"env_configuration": "opposed"} if arms > 1 else {}),
        )
        low, high = (bound.astype(np.float32) for bound in self.inner.action_spec)
        self.action_space = gymnasium.spaces.Box(low, high)
        width = len(self._row(self.inner.reset()))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start states are drawn from gymnasium's generator, in place: robosuite's samplers hold on to their own."""
        super().reset(seed=seed)
        bits = self.inner.rng.bit_generator
        bits.state = self.np_random.bit_generator.state
        obs = self._row(self.inner.reset())
        self.np_random.bit_generator.state = bits.state
        return obs, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, bool]]:
        """One decision, which is 25 steps of the simulation."""
        obs, reward, _, _ = self.inner.step(action)
        return self._row(obs), reward, False, False, {"success": bool(self.inner._check_success())}

    def close(self) -> None:
        """Free robosuite's simulator."""
        self.inner.close()

    def _row(self, obs: dict[str, Any]) -> Float[np.ndarray, "s"]:
        return np.concatenate([np.ravel(obs[name]) for name in self.rows])
