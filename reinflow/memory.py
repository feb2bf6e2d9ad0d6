"""Memory and speed of one Stage 3 iteration in a process of its own: `python -m reinflow.memory '<json of Point>'`.

The policy is untrained and the task real: simulation, rollout buffer, critic, update, as `train_online_finetune.py`
does them. Prints one JSON line.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

MEGA = 2**20


@dataclass(frozen=True)
class Point:
    """What is measured."""

    env_id: str
    obs_mode: str
    sim_backend: str
    num_envs: int
    minibatch_size: int
    rollout_steps: int
    num_inference_steps: int
    net: str
    freeze_visual_encoder: bool = False
    micro_batch_size: int | None = None


@dataclass(frozen=True)
class Measurement:
    """MB are 2**20 bytes."""

    torch_peak_mb: float | None
    """most that torch's allocator held on the GPU; None without one"""
    device_peak_mb: float | None
    """most that was in use on the GPU, the simulator and other processes included; None without one"""
    host_peak_mb: float
    """largest resident memory of the trainer and its simulator processes, added"""
    env_steps_per_s: float
    """rollout and update together"""
    limit_mb: float
    """memory of the device that runs out first: the GPU where there is one, else the host"""

    @property
    def used_mb(self) -> float:
        """Peak of the device, or of the host where there is no GPU."""
        return self.host_peak_mb if self.device_peak_mb is None else self.device_peak_mb


class DevicePeak:
    """Watches the memory in use on the GPU from a thread; the simulator's is no part of torch's own count."""

    def __init__(self, seconds: float = 0.05):
        self.peak = 0.0
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> DevicePeak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import torch

        while not self._stop.wait(self._seconds):
            free, total = torch.cuda.mem_get_info()
            self.peak = max(self.peak, (total - free) / MEGA)


def measure(point: Point) -> Measurement:
    """One whole iteration, after a short one that warms everything up. UserError for a point that can't be made."""
    import torch

    from reinflow.agent import ReinFlowAgent
    from reinflow.algos.config import PPOConfig
    from reinflow.algos.ppo import PPO
    from reinflow.algos.reinflow import ReinFlow, rollout_buffer
    from reinflow.envs import EnvConfig, make_env
    from reinflow.policies import PolicyConfig, build_policy
    from reinflow.training.rollouts import collect

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    ppo = PPOConfig(minibatch_size=point.minibatch_size, micro_batch_size=point.micro_batch_size)
    horizons = PolicyConfig(net=point.net)
    config = EnvConfig(point.env_id, obs_mode=point.obs_mode, sim_backend=point.sim_backend)
    env = make_env(config, point.num_envs, horizons.act_horizon, horizons.obs_horizon, ppo.gamma, device)
    try:
        policy = build_policy(horizons.for_env(env.spec, point.num_inference_steps)).to(device)
        agent = ReinFlowAgent.from_policy(policy, ppo, freeze_visual_encoder=point.freeze_visual_encoder)
        optimizer, generator = PPO(agent, ppo), torch.Generator(device).manual_seed(0)
        seconds, steps = 0.0, 0
        with DevicePeak() if cuda else threading.Lock() as watched:
            obs = env.reset(seed=0)
            for decisions in (2, point.rollout_steps):
                learner = ReinFlow(agent, optimizer, rollout_buffer(agent, ppo, decisions * point.num_envs))
                began = time.perf_counter()
                obs, stats = collect(learner, env, obs, generator)
                learner.update(generator)
                steps = int(stats.env_steps)  # waits for the GPU
                seconds = time.perf_counter() - began
        return Measurement(
            torch_peak_mb=torch.cuda.max_memory_allocated() / MEGA if cuda else None,
            device_peak_mb=watched.peak if isinstance(watched, DevicePeak) else None,
            host_peak_mb=host_peak_mb(),
            env_steps_per_s=steps / seconds,
            limit_mb=torch.cuda.mem_get_info()[1] / MEGA if cuda else host_memory_mb(),
        )
    finally:
        env.close()


def host_peak_mb() -> float:
    """Peak resident memory of this process and its living children, as Linux counts it, added up."""
    processes = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
    return sum(proc_kb(f"/proc/{process}/status", "VmHWM") for process in processes) / 1024


def host_memory_mb() -> float:
    """Memory of the machine in MB, as Linux tells it."""
    return proc_kb("/proc/meminfo", "MemTotal") / 1024


def proc_kb(path: str, name: str) -> int:
    """The number on the line `name:` of a file in /proc, in kB."""
    lines = Path(path).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Measure the point given as JSON and print the result; what a user can fix ends it with a message."""
    from reinflow.cli import USER_ERROR, fail
    from reinflow.errors import UserError

    try:
        print(json.dumps(asdict(measure(Point(**json.loads(sys.argv[1]))))))
    except UserError as error:
        fail(str(error), USER_ERROR)


if __name__ == "__main__":
    main()
