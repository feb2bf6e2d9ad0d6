"""Where an env step of the batched CPU simulator goes: PhysX, inverse kinematics, contacts, observation, reward, rest.

CPU time of one process, sampled by a timer: Python notes a sample as soon as the running compiled call returns, so
nothing is added to a call, where a tracing profiler puts 1 us on each of an env step's hundred.
"""

from __future__ import annotations

import math
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from benchmarks._compare import parser, save

EPISODE_STEPS = 50
SAMPLE_SECONDS = 0.004
"""the resolution of a process timer on common kernels"""
PHYSX = "PhysX"
REST = "rest of ManiSkill"
PARTS = {
    PHYSX: {"run_substeps"},
    "inverse kinematics": {"solve_with_pinocchio", "compute_ik"},
    "contacts": {"_read_contacts"},
    "controller": {"set_action"},
    "state and targets": {"run_pending_steps", "_unpack", "_apply_targets"},
    "observation": {"get_obs", "_flatten_raw_obs"},
    "evaluation": {"get_info"},
    "reward": {"get_reward"},
}
"""part -> names of its functions; the innermost one counts"""


def part_of(frame: FrameType | None) -> str:
    """The part that a stack is in."""
    while frame is not None:
        for part, functions in PARTS.items():
            if frame.f_code.co_name in functions:
                return part
        frame = frame.f_back
    return REST


@contextmanager
def sampled() -> Iterator[Counter[str]]:
    """Samples per part, one every `SAMPLE_SECONDS` of this process's CPU time."""
    samples: Counter[str] = Counter()

    def note(number: int, frame: FrameType | None) -> None:
        samples[part_of(frame)] += 1

    before = signal.signal(signal.SIGPROF, note)
    signal.setitimer(signal.ITIMER_PROF, SAMPLE_SECONDS, SAMPLE_SECONDS)
    try:
        yield samples
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def measured(env_id: str, num_envs: int, ik: str, seconds: float) -> tuple[float, Counter[str]]:
    """Microseconds of CPU time per env step, and samples per part, of about so many seconds."""
    import gymnasium as gym

    from reinflow.envs.cpu_batch import backend_name, install
    from reinflow.envs.maniskill import quiet_maniskill

    quiet_maniskill()
    install()
    env = gym.make(
        env_id, num_envs=num_envs, sim_backend=backend_name(ik), obs_mode="state", control_mode="pd_ee_delta_pose",
        reward_mode="normalized_dense", render_backend="none", max_episode_steps=10**6,
    ).unwrapped  # type: ignore[arg-type]  # fmt: skip
    width = env.single_action_space.shape[0]
    actions = torch.rand(EPISODE_STEPS, num_envs, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    env.reset(seed=0)
    for action in actions[:5]:
        env.step(action)
    steps, spent, samples = 0, 0.0, Counter[str]()
    while spent < seconds:
        env.reset(seed=0)
        with sampled() as found:
            began = time.process_time()
            for action in actions:
                env.step(action)
            spent += time.process_time() - began
        samples += found
        steps += EPISODE_STEPS
    env.close()
    return 1e6 * spent / steps / num_envs, samples


def main() -> None:
    """Sample the CPU time of env steps for each number of envs and kind of inverse kinematics; print the parts."""
    flags = parser(__doc__)
    flags.add_argument("--env_id", default="PickCube-v1", help="task")
    flags.add_argument("--num_envs", type=int, nargs="+", default=[16, 64, 128], help="envs of the process")
    flags.add_argument("--ik", nargs="+", default=["pin", "geo"], help="inverse kinematics")
    flags.add_argument("--seconds", type=float, default=8.0, help="CPU time of a case; more make the shares exacter")
    args = flags.parse_args()
    torch.set_num_threads(args.threads or 1)
    rows = []
    for ik in args.ik:
        for num_envs in args.num_envs:
            microseconds, samples = measured(args.env_id, num_envs, ik, args.seconds)
            total = samples.total()
            shares = {part: samples[part] / total for part in (*PARTS, REST)}
            error = math.sqrt(shares[PHYSX] * (1 - shares[PHYSX]) / total)
            listed = ", ".join(f"{part} {microseconds * share:.1f}" for part, share in shares.items())
            print(
                f"{ik}, {num_envs} envs: PhysX {shares[PHYSX]:.1%} (standard error {error:.1%}), "
                f"{1e6 / microseconds:,.0f} env steps/s of {1e6 / microseconds / shares[PHYSX]:,.0f} with PhysX alone; "
                f"us per env step: {listed}"
            )
            case = {"ik": ik, "num_envs": num_envs, "microseconds": microseconds, "samples": total}
            rows.append({**case, "shares": shares, "physx_standard_error": error})
    save("simulator", args, rows)


if __name__ == "__main__":
    main()
