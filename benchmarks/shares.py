"""Where an iteration of Stage 3 on a real task goes: simulation and rendering, encoder, policy, update.

Rendering is what the same envs take longer with pictures than with states. Settings that are not flags are the
defaults of Stage 3.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks._compare import parser, save, stopwatch
from benchmarks._training import Training
from reinflow.algos.config import PPOConfig
from reinflow.envs import EnvConfig
from reinflow.policies import PolicyConfig


def measured(obs_mode: str, args: Any) -> dict[str, list[float]]:
    """Seconds of the parts of every round, and of a whole iteration."""
    policy = PolicyConfig(net=args.net, obs_horizon=1, act_horizon=4, pred_horizon=4)
    ppo = PPOConfig(minibatch_size=min(768, args.num_envs * args.decisions))
    freeze = not args.train_encoder
    training = Training(EnvConfig(args.env_id, obs_mode), policy, args.num_envs, args.decisions, ppo, args.k, freeze)
    parts = {
        "envs": (training.env, "step_chunk"),
        "encoder": (training.agent, "encode"),
        "policy": (training.agent, "get_action"),
        "update": (training.learner, "update"),
    }
    rounds: dict[str, list[float]] = {name: [] for name in (*parts, "whole")}
    try:
        training.iterate()
        for _ in range(args.rounds):
            with stopwatch(parts) as seconds:
                start = time.perf_counter()
                training.iterate()
                seconds["whole"] = time.perf_counter() - start
            for name, values in rounds.items():
                values.append(seconds[name])
    finally:
        training.env.close()
    return rounds


def main() -> None:
    """Time the parts of an iteration in every observation mode and print their shares of the whole."""
    flags = parser(__doc__)
    flags.set_defaults(rounds=3)
    flags.add_argument("--env_id", default="PickCube-v1", help="task")
    flags.add_argument("--obs_mode", nargs="+", default=["state", "rgb"], help="state first, for the rendering share")
    flags.add_argument("--net", default="mlp", help="network")
    flags.add_argument("--num_envs", type=int, default=16, help="envs")
    flags.add_argument("--decisions", type=int, default=8, help="decisions per env")
    flags.add_argument("--k", type=int, default=4, help="denoising steps")
    flags.add_argument("--train_encoder", action="store_true", help="the update looks at the pictures again")
    args = flags.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows, envs_alone = [], None
    for obs_mode in args.obs_mode:
        seconds = measured(obs_mode, args)
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        whole, shares = middle.pop("whole"), {}
        if obs_mode == "state":
            envs_alone = middle["envs"]
        elif envs_alone is not None:
            shares["rendering"] = (middle["envs"] - envs_alone) / whole
        shares |= {name: value / whole for name, value in middle.items()}
        print(f"{obs_mode}: {whole:.2f} s; " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
        rows.append({"obs_mode": obs_mode, "shares": shares, "seconds": seconds})
    save("shares", args, rows)


if __name__ == "__main__":
    main()
