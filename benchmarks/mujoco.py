"""Env steps per second of CPU time on MuJoCo tasks, random actions: the batch in one process, and gymnasium's own env.

Both play the same actions and start again where they fall; they take turns, and the median of the rounds counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks._compare import parser, save
from reinflow.envs.mujoco import RULES, MujocoEnv


def seconds_of(play: Callable[[], object]) -> float:
    """CPU time of this process."""
    began = time.process_time()
    play()
    return time.process_time() - began


def in_a_batch(env: MujocoEnv, actions: torch.Tensor) -> None:
    """All envs at once; `actions` are (t n a)."""
    env.reset(seed=0)
    for action in actions:
        over = env.step(action).terminated
        if over.any():
            env.reset(env_idx=over.nonzero().squeeze(1))


def one_by_one(env: Any, actions: np.ndarray) -> None:
    """The same number of steps of one of gymnasium's envs; `actions` are (t n a)."""
    env.reset(seed=0)
    for action in actions.reshape(-1, actions.shape[-1]):
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()


def main() -> None:
    """Print both speeds of every task and their ratio."""
    import gymnasium

    flags = parser(__doc__)
    flags.add_argument("--env_ids", nargs="+", default=list(RULES), help="tasks")
    flags.add_argument("--num_envs", type=int, default=16, help="envs of the batch")
    flags.add_argument("--steps", type=int, default=100, help="env steps of each of them, per round")
    args = flags.parse_args()
    rows = []
    for env_id in args.env_ids:
        batch, stock = MujocoEnv(env_id, args.num_envs), gymnasium.make(env_id)
        low, high = (torch.tensor(bound) for bound in (batch.spec.action_low, batch.spec.action_high))
        drawn = torch.rand(args.steps, args.num_envs, len(low), generator=torch.Generator().manual_seed(0))
        actions = low + (high - low) * drawn
        plays = {
            "batch": partial(in_a_batch, batch, actions),
            "gymnasium": partial(one_by_one, stock, actions.numpy()),
        }
        rounds = [{name: seconds_of(play) for name, play in plays.items()} for _ in range(args.rounds)]
        steps = args.steps * args.num_envs
        speeds = {name: steps / median(one[name] for one in rounds) for name in plays}
        ratio = median(one["gymnasium"] / one["batch"] for one in rounds)
        print(f"{env_id:15} batch {speeds['batch']:8,.0f}  gymnasium {speeds['gymnasium']:8,.0f}  ratio {ratio:.2f}")
        rows.append({"env_id": env_id, "num_envs": args.num_envs, "steps_per_second": speeds, "ratio": ratio})
    save("mujoco", args, rows)


if __name__ == "__main__":
    main()
