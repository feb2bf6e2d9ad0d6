"""How much faster the batched CPU simulator steps than stock ManiSkill: PickCube-v1, state, pd_ee_delta_pose.

Each contestant is a set of worker processes with one torch thread each; actions are random and a reset after every 50
steps is included. All are started first; then each is measured in turn, round after round, while the others wait, so a
change of the machine's load meets all alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks._machine import fingerprint

EPISODE_STEPS = 50
BASELINE = "stock"


@dataclass(frozen=True)
class Contestant:
    """A simulator configuration that every one of its workers runs."""

    name: str
    sim_backend: str
    num_envs: int
    """per worker process"""


def contestants(num_envs: int) -> list[Contestant]:
    """Stock ManiSkill, and the batched simulator with either inverse kinematics and `num_envs` envs a process."""
    from reinflow.envs.cpu_batch import backend_name

    return [
        Contestant(BASELINE, "physx_cpu", 1),
        Contestant("pin", backend_name("pin"), num_envs),
        Contestant("geo", backend_name("geo"), num_envs),
    ]


def worker(pipe: Connection, contestant: Contestant, seed: int) -> None:
    """Answer every number of seconds received with (env steps, seconds) simulated; None ends the process."""
    import gymnasium as gym
    import torch

    from reinflow.envs.cpu_batch import install

    torch.set_num_threads(1)
    install()
    env = gym.make(
        "PickCube-v1",
        num_envs=contestant.num_envs,
        sim_backend=contestant.sim_backend,
        obs_mode="state",
        control_mode="pd_ee_delta_pose",
        reward_mode="normalized_dense",
        render_backend="none",
        max_episode_steps=10**6,
    ).unwrapped
    generator = torch.Generator().manual_seed(seed)
    actions = torch.rand(EPISODE_STEPS, contestant.num_envs, 7, generator=generator) * 2 - 1
    env.reset(seed=seed)
    for action in actions[:5]:
        env.step(action)
    pipe.send("ready")
    while (seconds := pipe.recv()) is not None:
        steps, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            if steps % EPISODE_STEPS == 0:
                env.reset(seed=seed)
            env.step(actions[steps % EPISODE_STEPS])
            steps += 1
        pipe.send((steps * contestant.num_envs, elapsed))


def measure(pipes: list[Connection], seconds: float) -> float:
    """Env steps per second of all workers together."""
    for pipe in pipes:
        pipe.send(seconds)
    return sum(env_steps / elapsed for env_steps, elapsed in (pipe.recv() for pipe in pipes))


def run(num_envs: int, num_workers: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Env steps/s of every contestant in every round."""
    context = get_context("spawn")
    pipes: dict[str, list[Connection]] = {}
    processes = []
    for contestant in contestants(num_envs):
        pipes[contestant.name] = []
        for seed in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=worker, args=(theirs, contestant, seed), daemon=True)
            process.start()
            theirs.close()  # a worker that dies then ends our recv() instead of blocking it
            processes.append(process)
            pipes[contestant.name].append(ours)
        for pipe in pipes[contestant.name]:
            pipe.recv()
    speeds = {name: [] for name in pipes}
    for _ in range(rounds):
        for name, group in pipes.items():
            speeds[name].append(measure(group, seconds))
    for pipe in (pipe for group in pipes.values() for pipe in group):
        pipe.send(None)
    for process in processes:
        process.join()
    return speeds


def summary(values: list[float]) -> dict[str, float]:
    """Median and range of repeated measurements, in their own unit."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    """Measure all contestants in turn and print env steps per second and the ratio to stock."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_envs", type=int, default=64, help="envs per batched worker process")
    parser.add_argument("--num_workers", type=int, default=2, help="worker processes of every contestant")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved measurements per contestant")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement")
    parser.add_argument("--out", type=Path, default=None, help="append the result as one JSON line to this file")
    args = parser.parse_args()
    machine = fingerprint()
    speeds = run(args.num_envs, args.num_workers, args.rounds, args.seconds)
    ratios = {
        name: [speed / base for speed, base in zip(values, speeds[BASELINE], strict=True)]
        for name, values in speeds.items()
        if name != BASELINE
    }
    for name, values in ratios.items():
        print("{0} is {median:.1f} x stock ({min:.1f} to {max:.1f})".format(name, **summary(values)))
    for name, values in speeds.items():
        print("{0:6s} {median:7.0f} env steps/s ({min:.0f} to {max:.0f})".format(name, **summary(values)))
    if args.out:
        row = {
            "benchmark": "simulation",
            "settings": {key: value for key, value in vars(args).items() if key != "out"},
            "ratio_to_stock": {name: summary(values) for name, values in ratios.items()},
            "env_steps_per_s": {name: {**summary(values), "rounds": values} for name, values in speeds.items()},
            "machine": machine,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
