"""Plays a trained policy in a stock ManiSkill env, as code of your own would.

python examples/inference.py runs/reinflow-PickCube-v1-seed0 --episodes 20
"""

from __future__ import annotations

import argparse
import importlib

import gymnasium
import mani_skill.envs  # noqa: F401  (registers the tasks)

import reinflow
from reinflow.envs.headless import use_stand_ins_without_renderer


def main() -> None:
    """Print how many episodes succeed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="file or run directory")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=50_000)
    arguments = parser.parse_args()

    policy = reinflow.load(arguments.checkpoint)
    task = policy.task
    if task.env_module:
        importlib.import_module(task.env_module)  # registers a task of your own
    if task.obs_mode == "state":
        use_stand_ins_without_renderer()  # states need no graphics driver
    env = gymnasium.make(
        task.env_id,
        obs_mode=task.obs_mode,
        control_mode=task.control_mode,
        sim_backend="physx_cpu",
        render_backend="none" if task.obs_mode == "state" else "cpu",
        max_episode_steps=task.max_episode_steps,
        **task.env_kwargs,
    )
    successes = 0
    for episode in range(arguments.episodes):
        obs, _ = env.reset(seed=arguments.seed + episode)
        policy.reset()
        success = over = False
        while not over:
            obs, _, terminated, truncated, info = env.step(policy(obs))
            success |= bool(info["success"])
            over = bool(terminated) or bool(truncated)
        successes += success
    env.close()
    print(f"{task.env_id}: {successes} of {arguments.episodes} episodes succeed")


if __name__ == "__main__":
    main()
