"""F13: one of several processes of a run killed or stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from reinflow.envs import EnvConfig, make_env
from reinflow.policies import PolicySpec, build_policy
from reinflow.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.faults.strikes import Strike, since
from tests.waiting import HANGS

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "train_online_finetune.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SPEC = PolicySpec.of(
    net="mlp", state_dim=3, action_dim=2, obs_horizon=1, act_horizon=4, pred_horizon=4, num_inference_steps=2,
    mlp_hidden_dim=32, mlp_depth=1,
)  # fmt: skip
NUM_ENVS, DECISIONS, ITERATIONS = 4, 4, 30
STEPS = NUM_ENVS * DECISIONS * SPEC.act_horizon
TRAINING = (40, 120)
"""checks for signals in the middle of it: 4 decisions and 2 minibatches an iteration, after an evaluation"""


def ranks(folder: Path, full: bool) -> str:
    """The survivor of a killed or stopped process ends and says why; under torchrun the run goes on and ends whole."""
    draw = random.Random(0)
    times = {signal.SIGKILL: 6 if full else 1, signal.SIGSTOP: 3 if full else 0}
    ends = {
        number: [end(folder / f"{number.name}{index}", number, index % 2, draw) for index in range(count)]
        for number, count in times.items()
    }
    restarts = 5 if full else 1
    for index in range(restarts):
        restart(folder / f"restart{index}", (index + 1) % 2, draw)
    told = ", ".join(
        f"{len(seconds)} x {number.name}: the other ended with a sentence after {max(seconds):.1f} s at most"
        for number, seconds in ends.items()
        if seconds
    )
    return f"{told}; {restarts} kills under torchrun: restarted, every iteration logged once"


def end(folder: Path, number: signal.Signals, victim: int, draw: random.Random) -> float:
    """Seconds until the other of two processes has ended."""
    folder.mkdir()
    strike = Strike.drawn(draw, number, folder / "struck", TRAINING, rank=victim)
    both = two_processes(*strike.command(TRAIN, *toy_run(folder, ITERATIONS)), folder=folder)
    try:
        output, _ = both[1 - victim].communicate(timeout=HANGS)
        seconds = since(folder / "struck")
        assert both[1 - victim].returncode == 1, output
    finally:
        for process in both:
            process.kill()
            process.wait()
    said = "another process of this run ended" if number == signal.SIGKILL else "no sign of life from"
    assert said in output, output
    if victim == 1:  # the first process writes the status
        assert status(folder)["state"] == "failed"
    return seconds


def restart(folder: Path, victim: int, draw: random.Random) -> None:
    """A run under torchrun ends whole although one of its processes was killed."""
    folder.mkdir()
    strike = Strike.drawn(draw, signal.SIGKILL, folder / "struck", TRAINING, rank=victim)
    command = [*TORCHRUN, "--max_restarts", "1", *strike.command(TRAIN, *toy_run(folder, ITERATIONS))]
    job = subprocess.run(
        command, cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=HANGS, check=False,
    )  # fmt: skip
    assert job.returncode == 0, job.stdout
    assert (folder / "struck").exists()
    assert (status(folder)["state"], status(folder)["step"]) == ("done", ITERATIONS * STEPS)
    run = folder / "runs/run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "losses/value_loss" in line]
    assert steps == [STEPS * (index + 1) for index in range(ITERATIONS)]
    assert len(json.loads((run / "config.json").read_text())["earlier"]) == 1, "it was resumed once"
    load_checkpoint(run)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def two_processes(*words: str, folder: Path | None = None) -> list[subprocess.Popen[str]]:
    """As torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        subprocess.Popen(
            [sys.executable, *words], text=True, cwd=folder,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=environment(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
        )
        for rank in range(2)
    ]  # fmt: skip


def toy_run(folder: Path, iterations: int) -> list[str]:
    """Flags of a Stage 3 run on the toy; writes the checkpoint that it starts from."""
    env = make_env(EnvConfig("Toy-v0"), 1, act_horizon=4, obs_horizon=1, gamma=1.0)
    save_checkpoint(folder / "toy.pt", Checkpoint(SPEC, env.spec, build_policy(SPEC).state_dict()))
    sizes = {
        "num_envs": NUM_ENVS,
        "rollout_steps": DECISIONS,
        "minibatch_size": 8,
        "num_eval_envs": 2,
        "num_eval_episodes": 2,
        "total_timesteps": iterations * STEPS,
        "ppo_epochs": 1,
        "critic_warmup_steps": 0,
        "eval_freq": 0,
        "save_freq": 2,
    }
    words = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    return ["--pretrained_path", "toy.pt", "--exp_name", "run", *words]


def status(folder: Path) -> dict[str, Any]:
    path = folder / "runs/run/status.json"
    return json.loads(path.read_text()) if path.exists() else {}
