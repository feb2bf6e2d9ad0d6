"""Simulation on all cores: seconds of a step over the envs of a process, fitted, and the envs that a core deserves."""

from __future__ import annotations

import os
import statistics
from contextlib import closing

import torch

from benchmarks._compare import parser, save, timed
from reinflow.envs import EnvConfig, make_env
from reinflow.envs.cores import StepCost

ACT_HORIZON = 8


def seconds_of_a_step(config: EnvConfig, envs: int, rounds: int) -> list[float]:
    """Of all processes at once, each with its share of the envs, per env step."""
    with closing(make_env(config, envs, ACT_HORIZON, 2, gamma=1.0)) as env:
        env.reset(seed=0)
        actions = torch.zeros(envs, ACT_HORIZON, env.spec.action_dim)
        env.step_chunk(actions)
        return [timed(lambda: env.step_chunk(actions), 1) / ACT_HORIZON for _ in range(rounds)]


def main() -> None:
    """Print speed and fit, and the number of envs whose fixed cost is a tenth of a step."""
    flags = parser(__doc__)
    flags.add_argument("--env_id", default="PickCube-v1", help="task")
    flags.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="simulator processes")
    flags.add_argument("--per_worker", type=int, nargs="+", default=[4, 16, 64], help="envs of a process")
    args = flags.parse_args()
    config = EnvConfig(args.env_id, num_workers=args.workers, sim_backend="physx_cpu_batched")
    rows = []
    for count in args.per_worker:
        seconds = seconds_of_a_step(config, count * args.workers, args.rounds)
        middle = statistics.median(seconds)
        speed = count * args.workers / middle
        print(f"{args.workers} x {count:>4} envs: {1e3 * middle:.1f} ms, {speed:,.0f} env steps/s")
        rows.append({"workers": args.workers, "per_worker": count, "seconds": seconds})
    cost = StepCost.fitted({row["per_worker"]: statistics.median(row["seconds"]) for row in rows})
    more = args.workers * cost.enough()
    print(f"a step costs {1e3 * cost.fixed:.2f} ms and {1e3 * cost.per_env:.3f} ms per env of a process")
    print(f"--num_envs {more} would make {cost.speed(more, args.workers):,.0f} env steps/s")
    save("cores", args, [*rows, {"fixed": cost.fixed, "per_env": cost.per_env, "num_envs": more}])


if __name__ == "__main__":
    main()
