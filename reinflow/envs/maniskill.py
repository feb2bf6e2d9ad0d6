"""One `BatchedEnv` over ManiSkill's own env class: physx_cuda, N scenes on the CPU, or a single stock env."""

from __future__ import annotations

import difflib
import logging
import warnings
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reinflow.envs.config import EnvConfig
from reinflow.errors import UserError
from reinflow.types import EnvSpec, StepResult

NO_LIMIT = 10**9
"""episodes are counted by the chunk executor"""


class ManiSkillEnv:
    """Steps and resets a ManiSkill env; it neither auto-resets nor counts steps."""

    def __init__(self, config: EnvConfig, num_envs: int, backend: str, seed: int = 0):
        """`backend` is physx_cuda, physx_cpu_batched or physx_cpu (one env).

        UserError for what can't be made, with the fix.
        """
        self.config = config
        self.num_envs = num_envs
        self.env = make(config, num_envs, backend)
        self.seed = seed
        frame, _ = self.env.reset(seed=seed)
        self.device = frame.device
        space = self.env.single_action_space
        self.spec = EnvSpec(
            env_id=config.env_id,
            obs_mode=config.obs_mode,
            control_mode=config.control_mode,
            sim_backend=backend,
            reward_mode=config.reward_mode,
            state_dim=frame.shape[-1],
            action_low=tuple(space.low.tolist()),
            action_high=tuple(space.high.tolist()),
            max_episode_steps=config.max_episode_steps or task_spec(config.env_id).max_episode_steps,
        )

    def reset(self, seed: int | None = None, env_idx: Int[Tensor, "m"] | None = None) -> dict[str, Tensor]:
        options = {} if env_idx is None else {"env_idx": env_idx}
        frame, _ = self.env.reset(seed=seed, options=options)
        return {"state": frame.clone()}

    def step(self, action: Float[Tensor, "n a"]) -> StepResult:
        frame, reward, _, _, info = self.env.step(action)
        nothing = torch.zeros(self.num_envs, dtype=torch.bool, device=frame.device)
        success = info.get("success", nothing)
        terminated = success | info.get("fail", nothing) if self.config.terminate_on_success else nothing
        # the simulator writes the next frame into the buffers behind these
        return StepResult({"state": frame.clone()}, reward.float().clone(), success.clone(), terminated)

    def close(self) -> None:
        self.env.close()


def quiet_maniskill() -> None:
    """Import ManiSkill without its warnings about optional packages and unset asset folders."""
    warnings.filterwarnings("ignore")
    logging.getLogger("mani_skill").setLevel(logging.ERROR)
    import mani_skill.envs  # noqa: F401  (registers the tasks)


def task_spec(env_id: str) -> Any:
    """ManiSkill's registration of a task; UserError with near names for an unknown one."""
    quiet_maniskill()
    from mani_skill.utils.registration import REGISTERED_ENVS

    if env_id not in REGISTERED_ENVS:
        near = difflib.get_close_matches(env_id, REGISTERED_ENVS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see ManiSkill's task list, e.g. PickCube-v1"
        raise UserError(f"--env_id {env_id} is not a registered task: {hint}")
    return REGISTERED_ENVS[env_id]


def make(config: EnvConfig, num_envs: int, backend: str) -> Any:
    """The unwrapped ManiSkill env: no time limit, no auto-reset."""
    task_spec(config.env_id)
    if config.obs_mode != "state":
        raise UserError(f"--obs_mode {config.obs_mode} is not supported yet: use state")
    import gymnasium

    from reinflow.envs import cpu_batch
    from reinflow.envs.headless import use_stand_ins_without_renderer

    use_stand_ins_without_renderer()
    sim_backend = backend
    if backend == cpu_batch.BACKEND:
        cpu_batch.install()
        sim_backend = cpu_batch.backend_name(config.ik)
    try:
        env = gymnasium.make(
            config.env_id,
            num_envs=num_envs,
            obs_mode=config.obs_mode,
            control_mode=config.control_mode,
            reward_mode=config.reward_mode,
            sim_backend=sim_backend,
            render_backend="none" if backend != "physx_cuda" else "gpu",
            max_episode_steps=NO_LIMIT,
        )
    except EOFError:
        raise UserError(
            f"{config.env_id} needs assets that are not on this machine: run "
            f"python -m mani_skill.utils.download_asset {config.env_id}"
        ) from None
    except (KeyError, AssertionError, NotImplementedError) as error:
        raise explained(error, config) from error
    return env.unwrapped


def explained(error: Exception, config: EnvConfig) -> UserError:
    """ManiSkill's complaint about a setting as one sentence."""
    text = " ".join(str(error).split())
    if "control_mode" in text or config.control_mode in text:
        return UserError(f"{config.env_id} does not take --control_mode {config.control_mode}: {text[:300]}")
    if "reward_mode" in text or "reward mode" in text:
        return UserError(f"{config.env_id} does not take --reward_mode {config.reward_mode}: {text[:300]}")
    return UserError(f"{config.env_id} could not be made ({type(error).__name__}: {text[:300]}): check the env flags")
