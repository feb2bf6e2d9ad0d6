"""One `BatchedEnv` over ManiSkill's own env class: physx_cuda, N scenes on the CPU, or a single stock env."""

from __future__ import annotations

import difflib
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from reinflow.envs.builds import Builds
from reinflow.envs.cameras import (
    FILM_SIZE,
    Shutter,
    frame_of,
    has_pictures,
    hold_renderer,
    image_spec,
    privileged_state,
    render_device,
)
from reinflow.envs.config import CompleteEnvConfig
from reinflow.envs.seeding import batch_seed, one_by_one
from reinflow.envs.still import still_action
from reinflow.errors import UserError
from reinflow.runtime.rng import numpy_state, set_numpy_state_
from reinflow.types import EnvSpec, Seed, StepResult

NO_LIMIT = 10**9
"""episodes are counted by the chunk executor"""
RESTARTS = 2**31
"""added to the seed for the stream of unseeded resets; torch's CPU generator looks at 32 bits only"""


class ManiSkillEnv:
    """Steps and resets a ManiSkill env; it neither auto-resets nor counts steps."""

    def __init__(
        self,
        config: CompleteEnvConfig,
        num_envs: int,
        backend: str,
        seed: int = 0,
        *,
        builds: Builds | None = None,
        privileged: bool = False,
        filmed: bool = False,
    ):
        """`backend` is physx_cuda, physx_cpu_batched or physx_cpu (one env); `builds` tells the geometry of its envs.

        `privileged` adds the full state to every observation, under that name; `filmed` makes `picture` work.
        UserError for what can't be made, with the fix.
        """
        self.config = config
        self.ends_early = config.terminate_on_success
        self.num_envs = num_envs
        self.builds = builds or Builds()
        self.env = make(config, num_envs, backend, self.builds.every, filmed)
        self.device = torch.device(self.env.device)
        self.shutter = Shutter(self.env)
        self.privileged = privileged
        self._randomness: list[Tensor] = []
        self._generation = 0
        self._geometry: list[int] | None = None
        """seeds of the scenes, where they are drawn and not built at every reset"""
        limit = config.max_episode_steps or task_spec(config.env_id).max_episode_steps
        if limit is None:
            raise UserError(f"{config.env_id} has no time limit of its own: give one with --max_episode_steps")
        space = self.env.single_action_space
        if not hasattr(space, "low"):
            raise UserError(f"{config.env_id} has several robots, which is not supported: choose a task with one")
        if num_envs > 1:
            reset_controllers_of_reset_envs_only(self.env)
        self.rebuild(self.builds.seeds(num_envs, generation=0))
        frame = self.reset(seed=seed)
        self.spec = EnvSpec(
            env_id=config.env_id,
            obs_mode=config.obs_mode,
            control_mode=config.control_mode,
            sim_backend=backend.partition(":")[0],
            reward_mode=config.reward_mode,
            state_dim=frame["state"].shape[-1],
            action_low=tuple(space.low.tolist()),
            action_high=tuple(space.high.tolist()),
            max_episode_steps=limit,
            image=image_spec(self.env, config.env_id, frame) if has_pictures(config.obs_mode) else None,
            still=still_action(self.env.agent.controller),
            robot=str(self.env.agent.uid),
        )

    def reset(self, seed: Seed = None, env_idx: Int[Tensor, "m"] | None = None) -> dict[str, Tensor]:
        """A seed, or one per env, determines the start states, and those of the unseeded resets that follow.

        With one per env, each starts as a stock single env does that is reset with its seed.
        """
        options = {} if env_idx is None else {"env_idx": env_idx}
        self.shutter.open = True
        with self._own_randomness(seed), one_by_one(self.env, seed):
            obs, info = self.env.reset(seed=seed, options=options)
        return self._frame(obs, info)

    def rebuild(self, seeds: list[int] | None = None) -> None:
        """Build the scenes anew as `BatchedEnv.rebuild` says; stock single envs do so by themselves at every reset."""
        if not self.env.draws_geometry or self.env.reconfiguration_freq == 1:
            return
        if seeds is None:
            self._generation += 1
            seeds = self.builds.seeds(self.num_envs, self._generation)
        self.shutter.open = False
        self.env.reset(seed=list(seeds), options={"reconfigure": True})
        self._geometry = list(seeds)

    def step(self, action: Float[Tensor, "n a"], render: bool = True) -> StepResult:
        """Copies of what the simulator holds after the step; `terminated` only where the task's end counts."""
        self.shutter.open = render
        try:
            obs, reward, _, _, info = self.env.step(action)
        except NotImplementedError as error:
            raise explained(error, self.config) from error
        nothing = torch.zeros(self.num_envs, dtype=torch.bool, device=reward.device)
        success = info.get("success", nothing)
        terminated = success | info.get("fail", nothing) if self.config.terminate_on_success else nothing
        # the simulator writes the next frame into the buffers behind these
        return StepResult(self._frame(obs, info), reward.float().clone(), success.clone(), terminated)

    def _frame(self, obs: Any, info: dict[str, Any]) -> dict[str, Tensor]:
        frame = frame_of(obs, self.env.device)
        if self.privileged:
            frame["privileged"] = privileged_state(self.env, info)
        return frame

    def picture(self) -> UInt8[Tensor, "n y x 3"]:
        """What the camera for people sees now."""
        return self.env.render_rgb_array()

    def state(self) -> dict[str, Any] | None:
        """None on a GPU, whose simulation does not repeat to the bit."""
        if self.device.type == "cuda":
            return None
        from reinflow.envs import moments

        memory, numbers = moments.memory_of(self.env), moments.numbers_of_env(self.env)
        moments.go_on_from(self.env, numbers)
        return {
            "geometry": moments.geometry_of_env(self.env),
            "built": self._geometry,
            "generation": self._generation,
            "numbers": numbers,
            "reached": moments.numbers_of_env(self.env),
            "memory": memory,
            "torch": list(self._randomness),
            "numpy": numpy_state(*self._numpy_generators()),
        }

    def restore(self, state: Any) -> bool:
        """On a CPU: builds the saved geometry, writes poses, memory and random states, and checks what was reached."""
        if not isinstance(state, dict) or self.device.type == "cuda":
            return False
        from reinflow.envs import moments

        if state["built"] is not None and state["built"] != self._geometry:
            self.rebuild(state["built"])
        self._generation = state["generation"]
        if not torch.equal(moments.geometry_of_env(self.env), state["geometry"].cpu()):
            return False
        moments.go_on_from(self.env, state["numbers"])
        moments.remember(self.env, state["memory"])
        self._randomness = [generator.cpu() for generator in state["torch"]]
        set_numpy_state_(state["numpy"], *self._numpy_generators())
        return torch.equal(moments.numbers_of_env(self.env), state["reached"].cpu())

    def close(self) -> None:
        """Close ManiSkill's env, and with it its scenes."""
        self.env.close()

    def _numpy_generators(self) -> list[Any]:
        """ManiSkill's own, one of each kind per env."""
        return [*self.env._batched_main_rng.rngs, *self.env._batched_episode_rng.rngs]

    @contextmanager
    def _own_randomness(self, seed: Seed) -> Iterator[None]:
        """ManiSkill draws unseeded start states from torch's global generators; give it a stream of this env's own.

        Otherwise a run could not be repeated, and simulating in the trainer's process would disturb its noise.
        """
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            if seed is not None:
                torch.manual_seed(RESTARTS + batch_seed(seed))
            elif self._randomness:
                torch.set_rng_state(self._randomness[0])
                for device, state in zip(cuda, self._randomness[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            yield
            self._randomness = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in cuda)]


def reset_controllers_of_reset_envs_only(env: Any) -> None:
    """ManiSkill 3.0.1 lifts its reset mask too early, so a partial reset would move the targets of running envs.

    Only the `*_target_*` control modes notice.
    """
    reset = env.reset
    chosen = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)

    def mask_controller() -> None:
        reset_controller = env.agent.controller.reset

        def masked_reset() -> None:
            everywhere, env.scene._reset_mask = env.scene._reset_mask, chosen
            reset_controller()
            env.scene._reset_mask = everywhere

        env.agent.controller.reset = masked_reset

    def remembering_reset(seed: Any = None, options: dict | None = None) -> Any:
        env_idx = (options or {}).get("env_idx")
        chosen.fill_(env_idx is None)
        if env_idx is not None:
            chosen[env_idx] = True
        agent = env.agent
        result = reset(seed=seed, options=options)
        if env.agent is not agent:  # the scenes were built anew, and their robots with them
            mask_controller()
        return result

    mask_controller()
    env.reset = remembering_reset


def forget_contacts_at_reset(env: Any) -> None:
    """PhysX reports a scene's contacts of before its reset until it steps again, on every ManiSkill backend.

    An episode would then start with `is_grasped` of the last one: a policy that just succeeded believes at once that it
    holds the next cube. Here an env has no contacts between its bodies from its reset to its next step, also while
    others are reset.
    """
    reset, step = env.reset, env.step
    unstepped = torch.zeros(env.num_envs, dtype=torch.bool, device=env.device)

    def fresh_reset(seed: Any = None, options: dict | None = None) -> Any:
        env_idx = (options or {}).get("env_idx")
        unstepped[slice(None) if env_idx is None else env_idx] = True
        if "get_pairwise_contact_impulses" not in vars(env.scene):
            cover(env.scene)
        return reset(seed=seed, options=options)

    def cover(scene: Any) -> None:
        impulses = scene.get_pairwise_contact_impulses

        def without_stale_ones(first: Any, second: Any) -> Float[Tensor, "n 3"]:
            return impulses(first, second).masked_fill(unstepped.unsqueeze(1), 0.0)

        scene.get_pairwise_contact_impulses = without_stale_ones

    def uncovered_step(action: Any) -> Any:
        unstepped.fill_(False)
        vars(env.scene).pop("get_pairwise_contact_impulses", None)
        return step(action)

    env.reset, env.step = fresh_reset, uncovered_step


def forget_episode_at_reset(env: Any) -> None:
    """A single stock env on the CPU; the batched backend does so itself."""
    from reinflow.envs.moments import forget_everything

    clear = env._clear_sim_state

    def forget_and_clear() -> None:
        forget_everything(env)
        clear()

    env._clear_sim_state = forget_and_clear


def quiet_maniskill() -> None:
    """Import ManiSkill without its warnings about optional packages and unset asset folders."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mani_skill.envs
    mani_skill.logger.setLevel(logging.ERROR)


def task_spec(env_id: str) -> Any:
    """ManiSkill's registration of a task; UserError with near names for an unknown one."""
    quiet_maniskill()
    from mani_skill.utils.registration import REGISTERED_ENVS

    if env_id not in REGISTERED_ENVS:
        near = difflib.get_close_matches(env_id, REGISTERED_ENVS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see ManiSkill's task list, e.g. PickCube-v1"
        hint += ", or name the module that registers your own with --env_module"
        raise UserError(f"--env_id {env_id} is not a registered task: {hint}")
    return REGISTERED_ENVS[env_id]


@contextmanager
def noticing_drawn_geometry() -> Iterator[None]:
    """Let an env that is made within know, as `draws_geometry`, whether building its scenes took random numbers.

    ManiSkill has no list of such tasks; some hold one geometry per env unless the scenes are built again.
    """
    from mani_skill.envs.sapien_env import BaseEnv

    build = BaseEnv._reconfigure

    def noticed_build(env: Any, options: dict[str, Any]) -> None:
        before = drawn_so_far(env)
        build(env, options)
        env.draws_geometry = drawn_so_far(env) != before

    BaseEnv._reconfigure = noticed_build
    try:
        yield
    finally:
        BaseEnv._reconfigure = build


def drawn_so_far(env: Any) -> list[Any]:
    """What changes with every random number that a task draws."""
    own = [rng.get_state(legacy=True) for rng in env._batched_episode_rng.rngs]
    return [torch.get_rng_state().tolist(), [(keys.tolist(), *rest) for _, keys, *rest in own]]


def make(
    config: CompleteEnvConfig, num_envs: int, backend: str, rebuild_every: int | None = None, filmed: bool = False
) -> Any:
    """The unwrapped ManiSkill env: no time limit, no auto-reset; `filmed` ones can be rendered for people.

    Stock single envs build their own scenes anew, after `rebuild_every` episodes or as often as the task asks.
    """
    task_spec(config.env_id)
    import gymnasium

    from reinflow.envs import cpu_batch
    from reinflow.envs.headless import refuse_without_renderer, use_stand_ins_without_renderer

    rendered = has_pictures(config.obs_mode) or filmed
    if rendered:
        refuse_without_renderer("--capture_video" if filmed else f"--obs_mode {config.obs_mode}")
        if not torch.cuda.is_available():
            hold_renderer(render_device(rendered))
    sim_backend = backend
    size = {"width": FILM_SIZE, "height": FILM_SIZE}
    options: dict[str, Any] = {"render_mode": "rgb_array", "human_render_camera_configs": size} if filmed else {}
    if backend != "physx_cpu" or rebuild_every is not None:
        options["reconfiguration_freq"] = rebuild_every if backend == "physx_cpu" else 0
    try:
        with no_questions(), noticing_drawn_geometry():
            use_stand_ins_without_renderer()
            if backend == cpu_batch.BACKEND:
                cpu_batch.install()
                sim_backend = cpu_batch.backend_name(config.ik)
            env = gymnasium.make(
                config.env_id,
                num_envs=num_envs,
                obs_mode=config.obs_mode,
                control_mode=config.control_mode,
                reward_mode=config.reward_mode,
                sim_backend=sim_backend,
                render_backend=render_device(rendered, backend),
                **options,
                **config.arguments.kwargs,
                max_episode_steps=NO_LIMIT,
            )
    except (EOFError, FileNotFoundError):
        raise UserError(
            f"{config.env_id} needs assets that are not on this machine: run "
            f"python -m mani_skill.utils.download_asset {config.env_id}"
        ) from None
    except (KeyError, AssertionError, NotImplementedError) as error:
        raise explained(error, config) from error
    except TypeError as error:
        if not config.arguments.kwargs or "unexpected keyword" not in str(error):
            raise
        raise UserError(f"{config.env_id} does not take --env_kwargs {config.arguments.env_kwargs}: {error}") from error
    forget_contacts_at_reset(env.unwrapped)
    if backend == "physx_cpu":
        forget_episode_at_reset(env.unwrapped)
    return env.unwrapped


@contextmanager
def no_questions() -> Iterator[None]:
    """ManiSkill asks whether to download what is missing: nobody answers, so `input()` raises EOFError."""
    stdin, sys.stdin = sys.stdin, StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdin = stdin


def explained(error: Exception, config: CompleteEnvConfig) -> UserError:
    """ManiSkill's complaint about a setting as one sentence."""
    text = " ".join(str(error).split())[:300]
    if "supported modes" in text:
        return UserError(f"{config.env_id} does not take --control_mode {config.control_mode}: {text}")
    if "reward" in text:
        modes = ", ".join(mode for mode in task_spec(config.env_id).cls.SUPPORTED_REWARD_MODES if mode != "none")
        fix = f"use one of {modes}" if modes else "it has no reward at all, choose another task"
        return UserError(f"{config.env_id} does not take --reward_mode {config.reward_mode}: {fix}")
    return UserError(f"{config.env_id} could not be made ({type(error).__name__}: {text}): check the env flags")
