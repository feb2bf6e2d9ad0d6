"""Where an env step of the batched CPU simulator goes: PhysX, inverse kinematics, the stand-in, ManiSkill and torch.

CPU time of one process. The profiler's own cost is in the parts that are not PhysX and inverse kinematics, which are
one call each; the speed is measured without it.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from collections import Counter

import torch

from benchmarks._compare import parser, save

EPISODE_STEPS = 50
PARTS = ("PhysX", "inverse kinematics", "other SAPIEN calls", "stand-in", "ManiSkill and torch")


def part_of(place: tuple[str, int, str]) -> str:
    file, _, function = place
    if "sapien" in function:
        if "pysapien.step" in function:
            return PARTS[0]
        return PARTS[1] if "compute_inverse_kinematics" in function else PARTS[2]
    return PARTS[3] if "cpu_batch" in file else PARTS[4]


def measured(env_id: str, num_envs: int, ik: str, steps: int) -> tuple[float, dict[str, float]]:
    """Env steps per second of CPU time, and every part's share of it."""
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

    def run(count: int) -> float:
        began = time.process_time()
        for index in range(count):
            env.step(actions[index % EPISODE_STEPS])
        return time.process_time() - began

    run(5)
    speed = num_envs * steps / run(steps)
    env.reset(seed=0)
    with cProfile.Profile(time.process_time) as profile:
        run(steps)
    env.close()
    seconds: Counter[str] = Counter()
    for place, (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        seconds[part_of(place)] += own
    total = sum(seconds.values())
    return speed, {part: seconds[part] / total for part in PARTS}


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--env_id", default="PickCube-v1", help="task")
    flags.add_argument("--num_envs", type=int, nargs="+", default=[16, 64, 128], help="envs of the process")
    flags.add_argument("--ik", nargs="+", default=["pin", "geo"], help="inverse kinematics")
    flags.add_argument("--steps", type=int, default=40, help="env steps of every env")
    args = flags.parse_args()
    torch.set_num_threads(args.threads or 1)
    rows = []
    for ik in args.ik:
        for num_envs in args.num_envs:
            speed, shares = measured(args.env_id, num_envs, ik, args.steps)
            ceiling = speed / shares[PARTS[0]]
            listed = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
            print(f"{ik}, {num_envs} envs: {speed:,.0f} env steps/s of {ceiling:,.0f} with PhysX alone; {listed}")
            rows.append({"ik": ik, "num_envs": num_envs, "env_steps_per_s": speed, "shares": shares})
    save("simulator", args, rows)


if __name__ == "__main__":
    main()
