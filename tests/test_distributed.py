"""Several processes for one run equal one, and end together. Run as a script, this file is one of the processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from reinflow.agent import ReinFlowAgent
from reinflow.algos.awr import AdvantageWeightedRegression
from reinflow.algos.config import AWRConfig, BCConfig, CriticConfig, PPOConfig
from reinflow.algos.guard import StepGuard
from reinflow.algos.ppo import PPO
from reinflow.algos.reinflow import ReinFlow, rollout_buffer
from reinflow.data.chunks import ChunkDataset
from reinflow.data.trajectories import Demos, Trajectory
from reinflow.envs import EnvConfig, make_env
from reinflow.envs.toy import toy_demos
from reinflow.errors import UserError
from reinflow.policies import PolicySpec, build_policy
from reinflow.run.config import RunConfig
from reinflow.run.metrics import to_host
from reinflow.run.run import Run
from reinflow.runtime import distributed
from reinflow.runtime.watch import MEETING_PLACE, Watch
from reinflow.storage.resumable import latest_training
from reinflow.training.config import EvalConfig, OfflineConfig, OnPolicyConfig
from reinflow.training.loops import Offline, OnPolicy
from reinflow.training.trainer import Trainer
from tests.faults.ranks import ROOT, SPEC, TORCHRUN, TRAIN, environment, toy_run, two_processes
from tests.test_acceleration import Graphs
from tests.waiting import HANGS

pytestmark = pytest.mark.slow

NUM_ENVS, DECISIONS = 8, 6
UNEVEN = ([1.0, 2.0, 3.0], [10.0, 14.0])
"""values of two processes"""


# ---- what every process computes ------------------------------------------------------------------------------------


@contextmanager
def draws_of_all() -> Iterator[None]:
    """Every process draws the random rows of all of them and keeps its own; minibatches are not shuffled.

    So two processes with half of the rows see what one with all rows sees.
    """
    rank, size = distributed.rank(), distributed.world_size()

    def own_rows(draw: Any) -> Any:
        def drawn(*shape: Any, **options: Any) -> torch.Tensor:
            shape = tuple(shape[0] if len(shape) == 1 else shape)
            place = int(len(shape) == 4)  # the noise of a chain, (k b h a), has its rows second
            rows = shape[place]
            everything = draw(*shape[:place], rows * size, *shape[place + 1 :], **options)
            return everything.narrow(place, rank * rows, rows).clone()

        return drawn

    def in_order(rows: int, generator: Any = None, device: Any = None) -> torch.Tensor:
        return torch.arange(rows, device=device)

    with (
        mock.patch("torch.randn", own_rows(torch.randn)),
        mock.patch("torch.rand", own_rows(torch.rand)),
        mock.patch("torch.randperm", in_order),
    ):
        yield


def fine_tuned() -> dict[str, Any]:
    """Stage 3 on the toy: three iterations of two minibatches, the first of them critic warm-up."""
    torch.manual_seed(distributed.rank())  # unequal weights, until the first process's are sent
    env = make_env(EnvConfig("Toy-v0"), distributed.share(NUM_ENVS, "num_envs"), SPEC.act_horizon, 1, gamma=0.97)
    ppo = PPOConfig(minibatch_size=NUM_ENVS * DECISIONS // 2, critic_warmup_steps=1, ppo_epochs=2)
    agent = ReinFlowAgent.from_policy(build_policy(SPEC), ppo)
    distributed.broadcast_(agent.state_dict())
    learner = ReinFlow(agent, PPO(agent, ppo), rollout_buffer(agent, ppo, DECISIONS * env.num_envs))
    if distributed.active():  # processes meet between the gradients, which may be a graph, and the step
        learner.ppo.gradients = Graphs(learner.ppo.add_gradients)
        learner.ppo.critic_gradients = Graphs(learner.ppo.add_critic_gradients)
    config = OnPolicyConfig(NUM_ENVS, DECISIONS, total_timesteps=3 * NUM_ENVS * DECISIONS * SPEC.act_horizon)
    logged: list[dict[str, float]] = []

    def log(metrics: Any, step: int) -> dict[str, float]:
        logged.append(to_host(metrics) | {"step": step})
        return logged[-1]

    nothing = mock.Mock()
    run = SimpleNamespace(config=SimpleNamespace(seed=3), log=log, status=nothing, alarm=nothing, progress=nothing)
    with draws_of_all():
        loop = OnPolicy(learner, env, config, run, torch.Generator().manual_seed(5))
        loop.begin()
        while not loop.over:
            loop.iterate()
    return {"agent": agent.state_dict(), "logged": [line for line in logged if len(line) > 1]}


def stage_2() -> tuple[AdvantageWeightedRegression, ChunkDataset]:
    """Of a Gaussian, whose loss draws nothing; unequal weights, until the first process's are sent."""
    trajectories = []
    for demo in toy_demos(8, noise=0.5, seed=0):
        nothing = torch.zeros(len(demo["actions"]), dtype=torch.bool)
        trajectories.append(Trajectory(**demo, terminated=nothing, truncated=nothing))
    demos = Demos(trajectories, env_id="Toy-v0", control_mode="toy")
    dataset = ChunkDataset(demos, 1, 4, 4, gamma=0.97, still=(0.0, 0.0))
    torch.manual_seed(distributed.rank())
    policy = build_policy(PolicySpec.from_dict(SPEC.to_dict() | {"family": "gaussian", "num_inference_steps": 1}))
    policy.fit_normalizers_(*dataset.statistics())
    critics = CriticConfig(num_qs=2, num_min_qs=2, q_hidden_dim=32)
    return AdvantageWeightedRegression(policy, BCConfig(lr_warmup=1), AWRConfig(), critics, total_iters=50), dataset


def weighted() -> dict[str, Any]:
    """Five iterations of Stage 2."""
    learner, dataset = stage_2()
    distributed.broadcast_(learner.state_dict())
    generator, own = torch.Generator().manual_seed(0), distributed.share(64, "batch_size")
    for _ in range(5):
        rows = torch.randint(len(dataset), (64,), generator=generator)
        learner.update(dataset.transition(rows[distributed.rank() * own :][:own]))
    return learner.state_dict()


def offline_run(folder: Path) -> None:
    """A whole run of Stage 2, as its script sets it up."""
    config = OfflineConfig(total_iters=4, batch_size=16, log_freq=2, eval_freq=0, save_freq=2)
    with Run.open(
        RunConfig(runs_dir=str(folder), cuda=False), name="offline", full_config=config, total=4, unit="iterations"
    ) as run:
        learner, dataset = stage_2()
        env = make_env(EnvConfig("Toy-v0"), 2, SPEC.act_horizon, 1, gamma=0.97)
        loop = Offline(learner, dataset.sample_transitions, config, run, run.generator())
        Trainer(loop, env, EvalConfig(num_eval_envs=2, num_eval_episodes=2), hand_over=True).train()


def guarded(first_losses: tuple[float, float]) -> tuple[list[float], float]:
    """Weights after a step whose loss is this process's of `first_losses`, and after a good one; skipped steps."""
    weight, guard = torch.nn.Parameter(torch.ones(())), StepGuard()
    optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)
    weights = []
    for loss in (first_losses[distributed.rank()], 1.0):
        weight.grad = torch.ones(())
        guard.step(torch.tensor(loss), [(optimizer, torch.tensor(1.0))])
        weights.append(weight.item())
    return weights, float(guard.skipped)


def small_things() -> dict[str, Any]:
    rank = distributed.rank()
    own = torch.tensor(UNEVEN[rank])
    halves = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(()))
    halves[0].grad, halves[1].grad = torch.tensor([1.0, 2.0]) * (rank + 1), torch.tensor(10.0 * rank)
    distributed.average_gradients_(halves)
    mean, std = distributed.moments(own)
    kept = distributed.moments(own, torch.tensor(([0.0, 1.0, 1.0], [1.0, 0.0])[rank]))
    averaged = distributed.averaged({"kl": torch.tensor(2.0 * rank)})
    return {
        "moments": [float(mean), float(std)],
        "kept": [float(value) for value in kept],
        "row_moments": [float(value) for value in distributed.row_moments(own.reshape(-1, 1))],
        "gradients": [half.grad.tolist() for half in halves],
        "averaged": {name: float(value) for name, value in averaged.items()},
        "largest": float(distributed.largest(torch.tensor(float(rank)))),
        "guarded": guarded((1.0, float("nan"))),
        "seed": distributed.own_seed(7),
        "share": distributed.share(6, "num_envs"),
    }  # fmt: skip


def take_part(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.join(cuda=False)
    result = {"small": small_things(), "fine_tuned": fine_tuned(), "weighted": weighted()}
    torch.save(result, folder / f"{distributed.rank()}.pt")
    offline_run(folder)  # its end is the end of the group


# ---- what comes of it -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes computed."""
    folder = tmp_path_factory.mktemp("pair")
    processes = two_processes(str(Path(__file__)), str(folder))
    outputs = [process.communicate(timeout=HANGS)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [torch.load(folder / f"{rank}.pt") | {"folder": folder} for rank in range(2)]


def test_what_processes_share_by_hand(pair):
    first, second = pair[0]["small"], pair[1]["small"]
    # 1, 2, 3 and 10, 14: mean 6; squared deviations 25 + 16 + 9 + 16 + 64 = 130, over 4 degrees of freedom 32.5
    assert first["moments"] == second["moments"] == pytest.approx([6.0, 32.5**0.5])
    # 2, 3 and 10 are valid: mean 5; squared deviations 9 + 4 + 25 = 38, over 2 degrees of freedom 19
    assert first["kept"] == second["kept"] == pytest.approx([5.0, 19.0**0.5])
    # a normaliser takes the std of all rows: (130 / 5)^.5
    assert first["row_moments"] == second["row_moments"] == pytest.approx([6.0, 26.0**0.5])
    # gradients 1, 2 and 2, 4: mean 1.5, 3; 0 and 10: mean 5
    assert first["gradients"] == second["gradients"] == [[1.5, 3.0], 5.0]
    assert first["averaged"] == second["averaged"] == {"kl": 1.0}
    assert first["largest"] == second["largest"] == 1.0
    assert (first["share"], second["share"]) == (3, 3)
    # the NaN of one process keeps both from stepping; Adam's first step is the learning rate, .1
    assert first["guarded"] == second["guarded"] == (pytest.approx([1.0, 0.9]), 1.0)
    assert first["seed"] == 7
    assert abs(second["seed"] - 7) > 10**6  # no counting up of seeds, envs or workers gets there


def test_two_processes_with_half_of_the_envs_train_what_one_with_all_of_them_trains(pair):
    alone = fine_tuned()
    for together in pair:
        torch.testing.assert_close(together["fine_tuned"]["agent"], alone["agent"], atol=1e-5, rtol=0)
    logged = [pair[0]["fine_tuned"]["logged"], alone["logged"]]
    assert len(logged[0]) == len(logged[1]) == 3
    assert [line["step"] for line in logged[0]] == [192, 384, 576]  # 8 envs x 6 decisions x 4 steps, all processes
    for ours, theirs in zip(*logged, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("losses/advantage_std", "losses/explained_variance", "losses/final_kl", "losses/value_loss"):
            assert ours.get(name) == pytest.approx(theirs.get(name), abs=1e-4)


def test_stage_2_is_the_same_on_two_processes(pair):
    alone = weighted()
    for together in pair:
        for part in ("policy", "critics"):
            mine, theirs = together["weighted"][part], alone[part]
            tensors = zip(distributed.tensors_of(mine), distributed.tensors_of(theirs), strict=True)
            for ours, other in tensors:
                torch.testing.assert_close(ours, other, atol=1e-5, rtol=0)


def test_the_first_process_writes_the_run_and_the_random_states_of_all(pair):
    folder = pair[0]["folder"] / "offline"
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4, 4]  # evaluations at 0 and 4, losses at 2 and 4, each once
    randomness = latest_training(folder).training["randomness"]
    assert len(randomness) == 2
    assert not torch.equal(randomness[0]["generator"], randomness[1]["generator"])


def test_all_processes_stop_at_the_mean_kl():
    learner = SimpleNamespace()
    with mock.patch.object(distributed, "mean", lambda value: (value + 3.0) / 2):  # the other process's KL is 3
        kl = PPO.mean_kl(learner, [{"approx_kl": torch.tensor(0.5)}, {"approx_kl": torch.tensor(1.5)}])
    assert kl == 2.0  # (1 + 3) / 2


def test_a_single_process_pays_nothing():
    values, metrics = torch.tensor([1.0, 2.0]), {"kl": torch.tensor(1.0)}
    assert distributed.mean(values) is distributed.total(values) is distributed.largest(values) is values
    assert distributed.averaged(metrics) is metrics
    assert distributed.moments(values) == (values.mean(), values.std())
    assert not distributed.active()
    assert (distributed.share(7, "num_envs"), distributed.own_seed(7), distributed.leads()) == (7, 7, True)


def test_what_can_not_be_shared_is_a_sentence(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="--num_envs 7 can't be split over 2"):
        distributed.share(7, "num_envs")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(UserError, match="share 2 GPUs"):
        distributed.take_own_gpu()


@pytest.mark.parametrize(("visible", "local", "own"), [(None, 1, "1"), ("4,5", 1, "5"), ("", 1, ""), ("3", 0, "3")])
def test_every_process_sees_its_own_gpu_alone(monkeypatch, visible, local, own):
    monkeypatch.setenv("LOCAL_RANK", str(local))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    distributed.take_own_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


# ---- processes that go wrong ------------------------------------------------------------------------------------


def test_a_mistake_ends_all_processes_with_one_sentence(tmp_path):
    words = toy_run(tmp_path, iterations=1)
    (tmp_path / "runs/run").mkdir(parents=True)
    both = two_processes(TRAIN, *words, folder=tmp_path)
    outputs = [process.communicate(timeout=HANGS)[0] for process in both]
    assert [process.returncode for process in both] == [2, 2]
    assert ["--exp_name" in output for output in outputs] == [True, False]  # "runs/run exists: ...", said once


def test_a_start_that_torchrun_repeats_leaves_an_earlier_run_alone(tmp_path):
    words = toy_run(tmp_path, iterations=1)
    earlier = tmp_path / "runs/run"
    earlier.mkdir(parents=True)
    (earlier / "config.json").write_text('{"config": {}, "flags": {}, "argv": [], "versions": {}}')
    (earlier / "best_model.safetensors").write_text("of days")
    done = subprocess.run(
        [*TORCHRUN, "--max_restarts", "1", TRAIN, *words], cwd=tmp_path, env=environment(), capture_output=True,
        text=True, timeout=HANGS, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("runs/run exists") == 2, done.stderr
    assert (earlier / "best_model.safetensors").read_text() == "of days"


def test_a_process_that_can_not_say_why_it_ends_ends(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        with pytest.raises(OSError, match="No space left"):  # only because nothing ends this process
            Watch.give_up(None, "no sign of life")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    assert codes == [1]


VICTIM_HANGS = """
import signal, sys
sys.path.insert(0, {root!r})
import torch
from reinflow.runtime import distributed, watch
watch.BEAT_SECONDS = 0.2
distributed.join(cuda=False)
distributed.Watch.on_lost = lambda reason: print("told", flush=True)
print("joined", flush=True)
if distributed.rank() == {victim}:
    signal.pause()
sys.stdin.readline()
watch.LOST_SECONDS = 2.0  # impatient only now that the other one is stopped
distributed.mean(torch.zeros(1))
"""


@pytest.mark.parametrize(("victim", "named"), [(1, "process 1"), (0, MEETING_PLACE)])
def test_a_process_that_hangs_is_noticed_by_the_others(tmp_path, victim, named):
    (tmp_path / "hangs.py").write_text(VICTIM_HANGS.format(root=str(ROOT), victim=victim))
    both = two_processes(str(tmp_path / "hangs.py"))
    for process in both:
        assert process.stdout.readline() == "joined\n"
    os.kill(both[victim].pid, signal.SIGSTOP)
    output, _ = both[1 - victim].communicate("it is stopped\n", timeout=HANGS)
    both[victim].kill()
    assert both[1 - victim].returncode == 1
    assert "told" in output
    assert f"error: no sign of life from {named} of this run" in output


if __name__ == "__main__":
    take_part(Path(sys.argv[1]))
