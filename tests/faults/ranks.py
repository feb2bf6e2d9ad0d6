"""F13: one of several processes of a run killed or stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reinflow.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from reinflow.envs import EnvConfig, make_env
from reinflow.policies import PolicySpec, build_policy

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "train_online_finetune.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SPEC = PolicySpec(
    net="mlp", state_dim=3, action_dim=2, obs_horizon=1, act_horizon=4, pred_horizon=4, num_inference_steps=2,
    mlp_hidden_dim=32, mlp_depth=1,
)  # fmt: skip
NUM_ENVS, DECISIONS, ITERATIONS = 4, 4, 30
STEPS = NUM_ENVS * DECISIONS * SPEC.act_horizon
SECONDS = 60
"""after which nothing may still hang"""


def ranks(folder: Path, full: bool) -> str:
    """The survivor of a killed or stopped process ends and says why; under torchrun the run goes on and ends whole."""
    ends = {number: [end(folder / f"{number.name}{i}", number, i % 2) for i in range(times)] for number, times in (
        (signal.SIGKILL, 6 if full else 1), (signal.SIGSTOP, 3 if full else 0)
    )}  # fmt: skip
    restarts = 5 if full else 1
    for index in range(restarts):
        restart(folder / f"restart{index}", victim=(index + 1) % 2)
    told = ", ".join(
        f"{len(seconds)} x {number.name}: the other ended with a sentence after {max(seconds):.1f} s at most"
        for number, seconds in ends.items()
        if seconds
    )
    return f"{told}; {restarts} kills under torchrun: restarted, every iteration logged once"


def end(folder: Path, number: signal.Signals, victim: int) -> float:
    """Seconds until the other of two processes has ended."""
    folder.mkdir()
    both = two_processes(TRAIN, *toy_run(folder, iterations=100_000), folder=folder)
    try:
        wait_for(lambda: status(folder).get("step", 0) > 0)
        time.sleep(random.random())
        both[victim].send_signal(number)
        began = time.monotonic()
        output, _ = both[1 - victim].communicate(timeout=SECONDS)
        seconds = time.monotonic() - began
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


def restart(folder: Path, victim: int) -> None:
    """A run under torchrun ends whole although one of its processes was killed."""
    folder.mkdir()
    command = [*TORCHRUN, "--max_restarts", "1", TRAIN, *toy_run(folder, ITERATIONS)]
    job = subprocess.Popen(
        command, cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    run = folder / "runs/run"
    wait_for(lambda: any(run.glob("checkpoints/step_*")))
    os.kill(processes_of(folder)[victim], signal.SIGKILL)
    output, _ = job.communicate(timeout=2 * SECONDS)
    assert job.returncode == 0, output
    assert (status(folder)["state"], status(folder)["step"]) == ("done", ITERATIONS * STEPS)
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
            [sys.executable, *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder,
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


def processes_of(folder: Path) -> list[int]:
    """The training processes that run in `folder`, without torchrun itself, the first one first."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            values = dict(pair.split(b"=", 1) for pair in (entry / "environ").read_bytes().split(b"\0") if b"=" in pair)
            here = (entry / "cwd").resolve() == folder.resolve()
        except (OSError, ValueError):
            continue
        if here and b"RANK" in values and b"train_online" in command:
            found.append((int(values[b"RANK"]), int(entry.name)))
    return [pid for _, pid in sorted(found)]


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def status(folder: Path) -> dict[str, Any]:
    path = folder / "runs/run/status.json"
    return json.loads(path.read_text()) if path.exists() else {}
