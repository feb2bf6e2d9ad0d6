"""What checkpoints and guards cost: seconds that the default UNet's copy stops training, and shares of an iteration.

A checkpoint is copied in memory, which stops training, and written by a thread, which does not.

Variants are measured in turn, round after round, so a change of the machine's load meets all alike. A guard is left out
by putting what it would return in its place.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from benchmarks._machine import fingerprint
from reinflow.agent import ReinFlowAgent
from reinflow.algos.guard import StepGuard
from reinflow.algos.ppo import PPO, PPOConfig
from reinflow.algos.rollout import RolloutBuffer
from reinflow.checkpoint import Checkpoint
from reinflow.envs import EnvConfig, make_env
from reinflow.envs.replay import EpisodeLog
from reinflow.envs.wrappers import ActionChunk
from reinflow.loops import collect
from reinflow.policies import PolicyConfig, build_policy
from reinflow.resumable import save_training
from reinflow.rng import rng_state
from reinflow.trees import copied


def unguarded_step(self: StepGuard, loss: torch.Tensor, parts: list) -> None:
    for optimizer, _ in parts:
        optimizer.found_inf = None
        optimizer.step()


def nothing(*arguments: object) -> None: ...


def seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def run(env_id: str, num_envs: int, decisions: int, rounds: int, folder: Path) -> dict[str, object]:
    """Medians over rounds, in seconds, of one iteration with and without guards, of a mark and of a save."""
    torch.manual_seed(0)
    config = PolicyConfig()
    env = make_env(EnvConfig(env_id, num_workers=0), num_envs, config.act_horizon, config.obs_horizon, 0.97)
    assert isinstance(env, ActionChunk)
    spec = config.for_env(env.spec, 4)
    agent = ReinFlowAgent.from_policy(build_policy(spec), PPOConfig(minibatch_size=num_envs * decisions, ppo_epochs=1))
    learner = PPO(agent, agent.config)
    shape = (num_envs * decisions, spec.cond_dim, spec.pred_horizon, spec.action_dim)
    buffer = RolloutBuffer(*shape, 0.97, 0.9, agent.actor.num_steps)
    generator = torch.Generator().manual_seed(0)
    obs = env.reset(seed=0)
    usable = torch.ones(num_envs, dtype=torch.bool)

    def training() -> dict[str, object]:
        return {"agent": agent.state_dict(), "learner": learner.state_dict(), "env": env.state(), "rng": rng_state()}

    def iterate() -> None:
        nonlocal obs
        obs, _ = collect(agent, env, obs, buffer, generator)
        learner.update(buffer, generator)

    def save() -> None:
        save_training(folder, 1, Checkpoint(spec, env.spec, agent.policy.state_dict(), training=training()))

    iterate()
    times: dict[str, list[float]] = {"guarded": [], "unguarded": [], "mark": [], "save": []}
    for _ in range(rounds):
        times["guarded"].append(seconds(iterate))
        with (
            mock.patch.object(StepGuard, "step", unguarded_step),
            mock.patch.object(StepGuard, "metrics", return_value={}),
            mock.patch.object(ActionChunk, "_usable", return_value=usable),
            mock.patch.object(EpisodeLog, "add", nothing),
            mock.patch.object(EpisodeLog, "turn", nothing),
        ):
            times["unguarded"].append(seconds(iterate))
        times["mark"].append(seconds(lambda: copied(training())))
        times["save"].append(seconds(save))
    env.close()
    size = sum(path.stat().st_size for path in (folder / "checkpoints" / "latest").iterdir())
    return {"times": times, "megabytes": size / 1e6, "parameters": sum(p.numel() for p in agent.policy.parameters())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env_id", default="PickCube-v1")
    parser.add_argument("--num_envs", type=int, default=16)
    parser.add_argument("--decisions", type=int, default=4, help="per env and iteration")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dir", type=Path, default=None, help="where checkpoints are written; default a temporary one")
    parser.add_argument("--out", type=Path, default=None, help="append the result as one JSON line to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=arguments.dir))
    try:
        result = run(arguments.env_id, arguments.num_envs, arguments.decisions, arguments.rounds, folder)
    finally:
        shutil.rmtree(folder)
    times = result["times"]
    assert isinstance(times, dict)
    middle = {name: statistics.median(values) for name, values in times.items()}
    ratios = [with_ / without - 1 for with_, without in zip(times["guarded"], times["unguarded"], strict=True)]
    print(f"{result['parameters']:,} parameters, a state is {result['megabytes']:.0f} MB")
    print(f"copied in {middle['mark']:.3f} s (worst {max(times['mark']):.3f}), written in {middle['save']:.3f} s")
    print(f"iteration {middle['unguarded']:.3f} s, with guards {statistics.median(ratios):+.2%} (median of pairs)")
    if arguments.out:
        row = {"arguments": {**vars(arguments), "dir": None, "out": None}, **result, "machine": fingerprint()}
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
