"""The contract of `ChunkEnv`, over every implementation: the same facts hold for a toy, a simulator and its workers."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reinflow.envs import EnvConfig, make_env
from reinflow.envs.gymnasium_suite import GymnasiumEnv
from reinflow.envs.maniskill import ManiSkillEnv
from reinflow.envs.mujoco import MujocoEnv
from reinflow.envs.seeding import SINGLE_STRIDE, worker_seed
from reinflow.envs.synthetic import SyntheticEnv
from reinflow.envs.toy import ToyEnv, toy_demos
from reinflow.envs.workers import MOST_FAILURES, WorkerChunkEnv, WorkerError
from reinflow.envs.wrappers import ActionChunk
from reinflow.errors import UserError
from reinflow.runtime.interrupts import EXIT_CODES
from reinflow.types import BatchedEnv, ChunkEnv, ChunkStep, EnvSpec, StepResult
from tests.faults.processes import give_up_soon_on
from tests.waiting import HANGS

CHUNK, FRAMES, GAMMA, LIMIT = 3, 2, 0.5, 5
"""actions per decision, frames per observation, discount per env step, env steps per episode"""


@dataclass(frozen=True)
class Case:
    """An implementation, and the batched envs it stands for: (maker, what becomes of the seed) each."""

    config: EnvConfig
    num_envs: int
    parts: list[tuple[Callable[[], BatchedEnv], Callable[[int], int]]]


def maniskill(num_workers: int, backend: str) -> EnvConfig:
    return EnvConfig("PickCube-v1", max_episode_steps=LIMIT, num_workers=num_workers, sim_backend=backend).completed()


def cases() -> dict[str, Callable[[], Case]]:
    batched, stock = "physx_cpu_batched", "physx_cpu"
    limited = {"max_episode_steps": LIMIT}

    def part(config: EnvConfig, num_envs: int, backend: str) -> Callable[[], BatchedEnv]:
        return partial(ManiSkillEnv, config, num_envs, backend)

    def as_it_is(seed: int) -> int:
        return seed

    def next_single(seed: int) -> int:
        return seed + SINGLE_STRIDE

    def single(env_id: str, num_envs: int) -> Case:
        config = EnvConfig(env_id, **limited, num_workers=0).completed()
        return Case(config, num_envs, [(partial(GymnasiumEnv, config, num_envs), as_it_is)])

    second_worker = partial(worker_seed, worker=1)

    def simulated(num_workers: int, backend: str, num_envs: int, sizes: list[int], *seeds: Callable) -> Case:
        config = maniskill(num_workers, backend)
        return Case(config, num_envs, [(part(config, n, backend), s) for n, s in zip(sizes, seeds, strict=True)])

    return {
        "toy": lambda: Case(EnvConfig("Toy-v0", **limited), 4, [(partial(ToyEnv, 4, **limited), as_it_is)]),
        "synthetic": lambda: Case(
            EnvConfig("SyntheticChunk-v0", **limited), 4, [(partial(SyntheticEnv, 4, **limited), as_it_is)]
        ),
        "mujoco": lambda: Case(
            EnvConfig("Pusher-v5", **limited, num_workers=0), 3, [(partial(MujocoEnv, "Pusher-v5", 3, LIMIT), as_it_is)]
        ),
        "gymnasium": lambda: single("Pendulum-v1", 3),
        "maniskill_batched": lambda: simulated(0, batched, 4, [4], as_it_is),
        "maniskill_stock": lambda: simulated(0, stock, 2, [1, 1], as_it_is, next_single),
        "workers_batched": lambda: simulated(2, batched, 4, [2, 2], as_it_is, second_worker),
        "workers_stock": lambda: simulated(2, stock, 2, [1, 1], as_it_is, second_worker),
        "maniskill_cuda": lambda: simulated(0, "physx_cuda", 4, [4], as_it_is),
    }


@pytest.fixture(scope="module", params=list(cases()))
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "maniskill_cuda" and not torch.cuda.is_available():
        pytest.skip("physx_cuda needs a GPU")
    if request.param.startswith(("maniskill", "workers")):
        pytest.importorskip("mani_skill")
    if request.param == "mujoco":
        pytest.importorskip("mujoco")
    torch.set_num_threads(1)
    return cases()[request.param]()


@pytest.fixture(scope="module")
def env(case: Case) -> Iterator[ChunkEnv]:
    device = "cuda" if case.config.sim_backend == "physx_cuda" else "cpu"
    env = make_env(case.config, case.num_envs, CHUNK, FRAMES, GAMMA, device)
    yield env
    env.close()


def chunks(env: ChunkEnv, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    shape = (env.num_envs, CHUNK, env.spec.action_dim)
    return [torch.rand(shape, generator=generator).mul(2).sub(1).to(env.device) for _ in range(count)]


def flat(step: ChunkStep) -> dict[str, Tensor]:
    """Every tensor of a step by name."""
    values = {field.name: getattr(step, field.name) for field in fields(step) if field.name != "ends"}
    episode = {f"episode.{name}": value for name, value in vars(values.pop("episode")).items()}
    states = {name: values.pop(name)["state"] for name in ("obs", "final_obs")}
    return {**values, **episode, **states}


def test_shapes_dtypes_and_devices(env: ChunkEnv):
    count, spec = env.num_envs, env.spec
    obs = env.reset(seed=0)["state"]
    step = env.step_chunk(torch.zeros(count, CHUNK, spec.action_dim, device=env.device))
    wanted = {
        "obs": ((count, FRAMES, spec.state_dim), torch.float32),
        "final_obs": ((count, FRAMES, spec.state_dim), torch.float32),
        "reward": ((count,), torch.float32),
        "executed": ((count,), torch.long),
        "terminated": ((count,), torch.bool),
        "truncated": ((count,), torch.bool),
        "broken": ((count,), torch.bool),
        "episode.return_": ((count,), torch.float32),
        "episode.length": ((count,), torch.long),
        "episode.success_once": ((count,), torch.bool),
        "episode.success_at_end": ((count,), torch.bool),
    }
    assert {name: (tuple(value.shape), value.dtype) for name, value in flat(step).items()} == wanted
    assert all(value.device.type == env.device.type for value in flat(step).values())
    assert tuple(obs.shape) == (count, FRAMES, spec.state_dim)
    assert len(spec.action_low) == len(spec.action_high) == spec.action_dim
    assert spec.max_episode_steps == LIMIT
    assert env.obs_horizon == FRAMES


def test_the_host_knows_of_every_end(env: ChunkEnv):
    env.reset(seed=0)
    steps = [env.step_chunk(actions) for actions in chunks(env, 4)]  # of three env steps, so episodes of 5 end in two
    ends = [bool((step.terminated | step.truncated | step.broken).any()) for step in steps]
    assert [step.ends for step in steps] == ends
    assert ends[1]


def test_a_seed_repeats_everything_also_after_the_restart_within(env: ChunkEnv):
    actions = chunks(env, 4)

    def play(seed: int) -> list[Tensor]:
        start = env.reset(seed=seed)["state"]
        torch.rand(1)  # the trainer's own random numbers play no part
        return [start, *(value for action in actions for value in flat(env.step_chunk(action)).values())]

    first, again, other = play(1), play(1), play(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_the_time_limit_truncates_inside_a_chunk_and_restarts_once(env: ChunkEnv):
    # limit 5, chunks of 3: the first executes 3, the second 2
    start = env.reset(seed=3)["state"]
    first, second = (env.step_chunk(action) for action in chunks(env, 2))
    assert first.executed.tolist() == [3] * env.num_envs
    assert not first.ended.any()
    assert torch.equal(first.final_obs["state"], first.obs["state"])
    assert second.executed.tolist() == [2] * env.num_envs
    assert second.truncated.all()
    assert not second.terminated.any()
    assert second.episode.length.tolist() == [5] * env.num_envs
    restarted = second.obs["state"]
    assert torch.equal(restarted[:, 0], restarted[:, 1])  # the history of a fresh episode is its first frame
    assert not torch.equal(second.final_obs["state"], restarted)
    assert not torch.equal(restarted, start)  # new start states, not those of the seed again
    third = env.step_chunk(chunks(env, 1)[0])
    assert third.episode.length.tolist() == [3] * env.num_envs


def test_start_states_differ_between_envs_also_after_a_restart(env: ChunkEnv):
    start = env.reset(seed=5)["state"][:, 0]
    restarted = [env.step_chunk(action) for action in chunks(env, 2)][-1].obs["state"][:, 0]
    for states in (start, restarted):
        assert len({tuple(row) for row in states.tolist()}) == env.num_envs


def test_results_stay_as_they_are_when_the_env_moves_on(env: ChunkEnv):
    actions = chunks(env, 3)
    obs = env.reset(seed=4)["state"]
    kept = obs.clone()
    steps = [env.step_chunk(action) for action in actions[:2]]
    copies = [{name: value.clone() for name, value in flat(step).items()} for step in steps]
    env.step_chunk(actions[2])
    env.reset(seed=9)
    assert torch.equal(obs, kept)
    for step, copy in zip(steps, copies, strict=True):
        assert all(torch.equal(value, copy[name]) for name, value in flat(step).items())


def brute_force(env: BatchedEnv, actions: list[Tensor], seed: int) -> list[list[dict[str, Any]]]:
    """Decisions of each env, by loops over steps and envs; ended envs restart together at the chunk's end."""
    frame = env.reset(seed=seed)["state"].clone()
    history = [[row] * FRAMES for row in frame]
    totals = [{"return_": 0.0, "length": 0, "once": False} for _ in range(env.num_envs)]
    decisions = []
    for chunk in actions:
        rows = [{"reward": 0.0, "executed": 0, "ended": False} for _ in range(env.num_envs)]
        for index in range(CHUNK):
            result = env.step(chunk[:, index])
            for i, (row, total) in enumerate(zip(rows, totals, strict=True)):
                if row["ended"]:
                    continue
                reward, success = float(result.reward[i]), bool(result.success[i])
                row["reward"] += GAMMA**index * reward
                row["executed"] += 1
                total.update(return_=total["return_"] + reward, length=total["length"] + 1)
                total.update(once=total["once"] or success, at_end=success)
                history[i] = [*history[i][1:], result.obs["state"][i].clone()]
                row["ended"] = total["length"] == LIMIT
        for row, total, frames in zip(rows, totals, history, strict=True):
            row.update(total, final_obs=torch.stack(frames))
        ended = [i for i, row in enumerate(rows) if row["ended"]]
        if ended:
            fresh = env.reset(env_idx=torch.tensor(ended, device=env.device))["state"].clone()
            for i in ended:
                history[i] = [fresh[i]] * FRAMES
                totals[i] = {"return_": 0.0, "length": 0, "once": False}
        for row, frames in zip(rows, history, strict=True):
            row["obs"] = torch.stack(frames)
        decisions.append(rows)
    return decisions


def test_every_number_equals_a_brute_force_loop_over_the_envs_of_one_process(case: Case, env: ChunkEnv):
    actions = chunks(env, 4)
    env.reset(seed=11)
    steps = [env.step_chunk(action) for action in actions]
    first = 0
    for make, own_seed in case.parts:
        part = make()
        mine = slice(first, first + part.num_envs)
        wanted = brute_force(part, [action[mine] for action in actions], own_seed(11))
        part.close()
        for step, rows in zip(steps, wanted, strict=True):
            for i, row in enumerate(rows, start=first):
                assert step.reward[i].item() == pytest.approx(row["reward"], abs=1e-6)
                assert step.episode.return_[i].item() == pytest.approx(row["return_"], abs=1e-6)
                assert step.executed[i].item() == row["executed"]
                assert step.episode.length[i].item() == row["length"]
                assert step.truncated[i].item() == row["ended"]
                assert step.episode.success_once[i].item() == row["once"]
                assert step.episode.success_at_end[i].item() == row["at_end"]
                assert torch.equal(step.obs["state"][i], row["obs"])
                assert torch.equal(step.final_obs["state"][i], row["final_obs"])
        first += part.num_envs
    assert first == env.num_envs


@pytest.mark.parametrize("name", ["toy", "synthetic", "maniskill_batched"])
def test_a_step_result_stays_as_it_is_when_the_env_goes_on(name: str):
    if name == "maniskill_batched":
        pytest.importorskip("mani_skill")
    make, _ = cases()[name]().parts[0]
    env = make()
    env.reset(seed=0)
    actions = torch.tensor(env.spec.action_high).expand(env.num_envs, -1)
    first = env.step(actions)
    kept = {name: value.clone() for name, value in {**first.obs, "reward": first.reward}.items()}
    second = env.step(actions)
    assert all(torch.equal({**first.obs, "reward": first.reward}[name], value) for name, value in kept.items())
    assert not torch.equal(first.obs["state"], second.obs["state"])
    env.close()


def test_actions_of_another_shape_are_refused(env: ChunkEnv):
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"takes actions of shape \(\d, 3, \d\), got \(\d, 2, \d\)"):
        env.step_chunk(torch.zeros(env.num_envs, 2, env.spec.action_dim, device=env.device))


# -- exact arithmetic on an env whose rewards and ends are written down --


class Scripted:
    """Reward, success and termination of every env and step come from tables; the state is (env, episode, step)."""

    device = torch.device("cpu")

    def __init__(self, rewards: list[list[float]], ends: dict[int, int] | None = None, limit: int = 100):
        """`ends` maps env -> step of its first episode at which the task ends, with success."""
        self.rewards = torch.tensor(rewards)
        self.num_envs = len(rewards)
        self.ends = torch.full((self.num_envs,), 10**6)
        for index, step in (ends or {}).items():
            self.ends[index] = step
        self.spec = EnvSpec("Scripted-v0", "state", "delta_pos", "torch", "dense", 3, (-1.0,), (9.0,), limit)
        self.frame = torch.zeros(self.num_envs, 3)
        self.actions: list[Tensor] = []
        self.resets: list[list[int]] = []

    def reset(self, seed: int | None = None, env_idx: Tensor | None = None) -> dict[str, Tensor]:
        if env_idx is None:
            self.frame[:] = 0
            self.frame[:, 0] = torch.arange(self.num_envs)
        else:
            self.resets.append(env_idx.tolist())
            self.frame[env_idx, 1] += 1
            self.frame[env_idx, 2] = 0
        return {"state": self.frame.clone()}

    def step(self, action: Tensor, render: bool = True) -> StepResult:
        self.actions.append(action[:, 0].clone())
        self.frame[:, 2] += 1
        step = self.frame[:, 2].long()
        ended = (step == self.ends) & (self.frame[:, 1] == 0)
        reward = self.rewards[torch.arange(self.num_envs), (step - 1) % self.rewards.shape[1]]
        return StepResult({"state": self.frame.clone()}, reward, ended, ended)

    def state(self) -> None:
        """Nothing is random here, and nothing is resumed."""

    def close(self) -> None:
        """Nothing to release."""


def play(env: Scripted, decisions: int = 1, actions: Tensor | None = None) -> list[ChunkStep]:
    chunk = ActionChunk(env, act_horizon=3, obs_horizon=2, gamma=0.5)
    chunk.reset(seed=0)
    return [chunk.step_chunk(torch.zeros(env.num_envs, 3, 1) if actions is None else actions) for _ in range(decisions)]


def test_the_reward_of_a_chunk_is_discounted_per_env_step():
    # 1 + .5 * 2 + .25 * 4 = 3, while the return is undiscounted: 7
    (step,) = play(Scripted([[1, 2, 4]]))
    assert step.reward.tolist() == [3.0]
    assert step.episode.return_.tolist() == [7.0]
    assert step.executed.tolist() == [3]


def test_an_env_that_ends_inside_a_chunk_is_not_counted_further_while_another_finishes():
    # env 0 ends at its 2nd step: 1 + .5 * 2 = 2; env 1 goes on: 8 + .5 * 8 + .25 * 8 = 14
    env = Scripted([[1, 2, 4], [8, 8, 8]], ends={0: 2})
    (step,) = play(env)
    assert step.reward.tolist() == [2.0, 14.0]
    assert step.executed.tolist() == [2, 3]
    assert step.terminated.tolist() == [True, False]
    assert not step.truncated.any()
    assert step.episode.return_.tolist() == [3.0, 24.0]
    assert step.episode.success_at_end.tolist() == [True, False]
    # (env, episode, step) of the two newest frames: the true end, then the fresh episode; env 1 is untouched
    assert step.final_obs["state"].tolist() == [[[0, 0, 1], [0, 0, 2]], [[1, 0, 2], [1, 0, 3]]]
    assert step.obs["state"].tolist() == [[[0, 1, 0], [0, 1, 0]], [[1, 0, 2], [1, 0, 3]]]
    assert env.resets == [[0]]


def test_envs_that_end_at_different_steps_are_reset_together_once():
    env = Scripted([[1], [1], [1]], ends={0: 1, 2: 3})
    (step,) = play(env)
    assert step.executed.tolist() == [1, 3, 3]
    assert env.resets == [[0, 2]]


def test_stepping_stops_when_no_env_is_left():
    env = Scripted([[1], [1]], ends={0: 1, 1: 2})
    play(env)
    assert len(env.actions) == 2


def test_a_task_that_ends_at_the_time_limit_is_terminated_not_truncated():
    (step,) = play(Scripted([[1], [1]], ends={0: 2}, limit=2))
    assert step.terminated.tolist() == [True, False]
    assert step.truncated.tolist() == [False, True]
    assert step.ended.tolist() == [True, True]


def test_statistics_start_again_with_the_next_episode():
    # rewards 1, 2, 4 repeated; limit 4: chunks of 3 and 1 steps, then 3 of the next episode
    first, second, third = play(Scripted([[1, 2, 4]], limit=4), decisions=3)
    assert [s.episode.length.item() for s in (first, second, third)] == [3, 4, 3]
    assert [s.episode.return_.item() for s in (first, second, third)] == [7.0, 8.0, 7.0]
    assert second.truncated.item()
    assert second.executed.item() == 1
    assert third.obs["state"][0].tolist() == [[0, 1, 2], [0, 1, 3]]


def test_success_once_stays_and_success_at_end_is_that_of_the_last_step():
    class Flicker(Scripted):
        def step(self, action: Tensor, render: bool = True) -> StepResult:
            result = super().step(action)
            result.success = self.frame[:, 2] == 2  # only at the second step
            return result

    (step,) = play(Flicker([[0.0]]))
    assert step.episode.success_once.tolist() == [True]
    assert step.episode.success_at_end.tolist() == [False]


def test_a_ramp_executes_its_indices_in_order_and_is_clipped_to_the_bounds():
    env = Scripted([[0.0], [0.0]])  # bounds -1 .. 9
    ramp = torch.tensor([[[0.0], [1.0], [2.0]], [[8.0], [10.0], [-5.0]]])
    play(env, actions=ramp)
    assert torch.stack(env.actions, 1).tolist() == [[0.0, 1.0, 2.0], [8.0, 9.0, -1.0]]


def test_a_reward_that_is_nan_after_the_end_does_not_count():
    (step,) = play(Scripted([[1, float("nan"), 1], [1, 1, 1]], ends={0: 1}))
    assert step.reward.tolist() == [1.0, 1.75]


def test_an_action_that_is_nan_breaks_its_env_and_is_not_executed():
    actions = torch.zeros(2, 3, 1)
    actions[0, 1] = float("nan")
    env = Scripted([[1.0, 1.0, 1.0]] * 2)
    (step,) = play(env, actions=actions)
    assert step.broken.tolist() == [True, False]
    assert step.executed.tolist() == [0, 3]
    assert torch.stack(env.actions).isfinite().all()


# -- ManiSkill's partial resets --


@pytest.mark.parametrize("control_mode", ["pd_ee_delta_pose", "pd_joint_target_delta_pos"])
def test_resetting_one_env_leaves_the_others_bit_identical(control_mode: str):
    pytest.importorskip("mani_skill")
    config = EnvConfig("PickCube-v1", control_mode=control_mode).completed()
    env = ManiSkillEnv(config, 2, "physx_cpu_batched")
    actions = torch.rand(8, 2, env.spec.action_dim, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def frames_of_env_0(reset_env_1: bool) -> list[Tensor]:
        env.reset(seed=1)
        frames = []
        for index, action in enumerate(actions):
            frames.append(env.step(action).obs["state"][0])
            if reset_env_1 and index == 3:
                frames.append(env.reset(env_idx=torch.tensor([1]))["state"][0])
        return frames

    alone, beside = frames_of_env_0(False), frames_of_env_0(True)
    env.close()
    assert torch.equal(beside[4], beside[3])
    assert all(torch.equal(a, b) for a, b in zip(alone, beside[:4] + beside[5:], strict=True))


# -- worker processes that fail --


class Failing(ToyEnv):
    """Raises at the fourth step of the worker whose first env is env 1."""

    def __init__(self, num_envs: int, first: int, error: type[Exception]):
        super().__init__(num_envs)
        self.countdown = 4 if first == 1 else 10**6
        self.error = error

    def step(self, action: Tensor, render: bool = True) -> StepResult:
        self.countdown -= 1
        if self.countdown == 0:
            raise self.error("the gripper melted")
        return super().step(action)


def failing(error: type[Exception], num_envs: int, first: int) -> ActionChunk:
    return ActionChunk(Failing(num_envs, first, error), 3, 2, 0.5)


def unmakeable(num_envs: int, first: int) -> ActionChunk:
    raise UserError("no such asset: download it")


def healthy(num_envs: int, first: int) -> ActionChunk:
    return ActionChunk(ToyEnv(num_envs), 3, 2, 0.5)


def test_uneven_shares_and_closed_envs():
    env = WorkerChunkEnv(healthy, num_envs=3, num_workers=2, act_horizon=3)
    assert env.reset(seed=0)["state"].shape == (3, 2, 3)  # 2 envs and 1
    assert env.step_chunk(torch.zeros(3, 3, 2)).executed.tolist() == [3, 3, 3]
    env.close()
    with pytest.raises(WorkerError, match="closed"):
        env.reset()


def test_a_worker_that_dies_is_replaced_and_the_other_one_does_not_notice():
    env, alone = WorkerChunkEnv(healthy, 3, 2, 3), healthy(2, 0)
    actions = 0.3 * torch.ones(3, 3, 2)
    env.reset(seed=0)
    alone.reset(seed=0)
    env._workers[1].process.kill()
    step, expected = env.step_chunk(actions), alone.step_chunk(actions[:2])
    assert step.broken.tolist() == [False, False, True]
    assert step.executed.tolist() == [3, 3, 0]
    assert step.ended.tolist() == [False] * 3
    assert torch.equal(step.obs["state"][:2], expected.obs["state"])
    assert env.step_chunk(actions).executed.tolist() == [3, 3, 3]
    env.close()


def test_a_worker_that_dies_between_chunks_loses_its_next_one_which_was_decided_for_its_old_episodes():
    env = WorkerChunkEnv(healthy, 3, 2, 3)
    env.reset(seed=0)
    env._workers[1].process.kill()
    assert env.state() is None  # asking for it is when its death is noticed
    steps = [env.step_chunk(torch.zeros(3, 3, 2)) for _ in range(2)]
    assert [step.broken.tolist() for step in steps] == [[False, False, True], [False] * 3]
    assert [step.executed.tolist() for step in steps] == [[3, 3, 0], [3, 3, 3]]
    assert env.state() is not None
    env.close()


def test_an_env_that_nobody_closed_takes_its_workers_along():
    env = WorkerChunkEnv(healthy, num_envs=2, num_workers=2, act_horizon=3)
    processes = [worker.process for worker in env._workers]
    del env
    gc.collect()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 2


def test_a_script_that_closes_nothing_ends(tmp_path):
    script = (
        "from reinflow.envs.workers import WorkerChunkEnv\n"
        "from tests.envs.test_chunk_contract import healthy\n"
        "if __name__ == '__main__':\n"
        "    env = WorkerChunkEnv(healthy, num_envs=2, num_workers=2, act_horizon=3)\n"
    )
    path = tmp_path / "script.py"  # a spawned worker imports the main script
    path.write_text(script)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, path], env=environment, timeout=HANGS, check=False).returncode == 0


def test_a_signal_to_the_whole_group_leaves_the_workers_to_the_trainer():
    env = WorkerChunkEnv(healthy, 1, 1, 3)
    env.reset(seed=0)
    for number in EXIT_CODES:
        os.kill(env._workers[0].process.pid, number)
    assert env.step_chunk(torch.zeros(1, 3, 2)).broken.tolist() == [False]
    env.close()


def slow_to_recover(flag: Path, num_envs: int, first: int) -> ActionChunk:
    """Dies at its second start."""
    if flag.exists() and not flag.with_suffix(".again").exists():
        flag.with_suffix(".again").touch()
        os._exit(1)
    flag.touch()
    return healthy(num_envs, first)


def test_a_worker_that_dies_while_it_starts_again_is_started_once_more(tmp_path):
    env = WorkerChunkEnv(partial(slow_to_recover, tmp_path / "started"), 1, 1, 3)
    env.reset(seed=0)
    env._workers[0].process.kill()
    assert env.step_chunk(torch.zeros(1, 3, 2)).broken.tolist() == [True]
    assert env.step_chunk(torch.zeros(1, 3, 2)).broken.tolist() == [False]
    env.close()


def test_a_worker_that_hangs_is_replaced():
    env = WorkerChunkEnv(healthy, 2, 2, 3)
    env.reset(seed=0)
    os.kill(env._workers[0].process.pid, signal.SIGSTOP)
    give_up_soon_on(env._workers[0])
    assert env.step_chunk(torch.zeros(2, 3, 2)).broken.tolist() == [True, False]
    env.close()


def test_an_error_that_comes_back_ends_the_run_with_its_message():
    env = WorkerChunkEnv(partial(failing, RuntimeError), num_envs=2, num_workers=2, act_horizon=3)
    env.reset(seed=0)
    # worker 1 fails at its fourth step: in the second chunk, and in the second chunk after each new start
    broken = [env.step_chunk(torch.zeros(2, 3, 2)).broken.tolist() for _ in range(4)]
    assert broken == [[False, False], [False, True]] * 2
    env.step_chunk(torch.zeros(2, 3, 2))
    env._workers[1].failures = MOST_FAILURES - 1
    with pytest.raises(WorkerError, match=r"worker 1 failed:(.|\n)*the gripper melted"):
        env.step_chunk(torch.zeros(2, 3, 2))


def test_a_user_error_in_a_worker_stays_one():
    with pytest.raises(UserError, match="no such asset: download it"):
        WorkerChunkEnv(unmakeable, num_envs=2, num_workers=1, act_horizon=3)


# -- the toy --


def test_toy_demonstrations_are_noisy_and_use_both_doors():
    demos = toy_demos(50, noise=0.4, seed=0)
    demo = demos[0]
    steps = demo["actions"].shape[0]
    assert demo["obs"].shape == (steps + 1, 3)
    assert demo["rewards"].shape == demo["success"].shape == (steps,)
    assert 0 <= demo["rewards"].min() <= demo["rewards"].max() <= 1
    heights = torch.stack([d["obs"][:, 1][d["obs"][:, 0].abs().argmin()] for d in demos])
    assert (heights > 0.3).any()
    assert (heights < -0.3).any()
    again = toy_demos(50, noise=0.4, seed=0)
    assert torch.equal(demo["actions"], again[0]["actions"])
