"""What rendering only the frames that a policy sees is worth: env steps per second of image chunks on this machine.

Both variants run the same env code in this process; the baseline renders after every step, as stock ManiSkill does.
First they play the same chunks and must agree bit by bit, then they are timed in turn, round after round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack, closing
from pathlib import Path

import torch

from benchmarks._compare import save
from reinflow.envs import EnvConfig
from reinflow.envs.cpu_batch import BACKEND
from reinflow.envs.maniskill import ManiSkillEnv
from reinflow.envs.wrappers import ActionChunk
from reinflow.types import ChunkStep, StepResult


class EveryFrame(ManiSkillEnv):
    """The straightforward variant."""

    def step(self, action: torch.Tensor, render: bool = True) -> StepResult:
        """Render this frame, even where nobody will look at it."""
        return super().step(action, render=True)


def play(env: ActionChunk, actions: torch.Tensor) -> list[ChunkStep]:
    """What the env returns for each chunk of `actions` (c n e a), played from the start states of seed 0."""
    env.reset(seed=0)
    return [env.step_chunk(chunk) for chunk in actions]


def seconds(env: ActionChunk, actions: torch.Tensor) -> float:
    """Wall time of the chunks of one episode."""
    env.reset(seed=0)
    start = time.perf_counter()
    for chunk in actions:
        env.step_chunk(chunk)
    return time.perf_counter() - start


def agree(one: list[ChunkStep], other: list[ChunkStep]) -> bool:
    """Whether rewards, observations and final observations of two runs are equal bit by bit."""
    return all(
        torch.equal(a.reward, b.reward)
        and all(torch.equal(a.obs[name], b.obs[name]) for name in a.obs)
        and all(torch.equal(a.final_obs[name], b.final_obs[name]) for name in a.final_obs)
        for a, b in zip(one, other, strict=True)
    )


def main() -> None:
    """Check that both variants show the same, then time them in turn and print env steps per second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env_id", default="PickCube-v1", help="ManiSkill task")
    parser.add_argument("--obs_mode", default="rgb", help="observation mode")
    parser.add_argument("--num_envs", type=int, default=8, help="scenes of each variant")
    parser.add_argument("--act_horizon", type=int, default=8, help="env steps of a chunk")
    parser.add_argument("--obs_horizon", type=int, default=2, help="frames of a history")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved measurements per variant")
    parser.add_argument("--out", type=Path, default=None, help="write the result to this JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = EnvConfig(args.env_id, args.obs_mode).completed()
    with ExitStack() as stack:
        variants = {
            name: stack.enter_context(
                closing(ActionChunk(kind(config, args.num_envs, BACKEND), args.act_horizon, args.obs_horizon, 1.0))
            )
            for name, kind in (("every frame", EveryFrame), ("on demand", ManiSkillEnv))
        }
        spec = variants["on demand"].spec
        chunks = spec.max_episode_steps // args.act_horizon  # none of them ends an episode
        generator = torch.Generator().manual_seed(0)
        shape = (chunks, args.num_envs, args.act_horizon, spec.action_dim)
        actions = torch.rand(shape, generator=generator) * 2 - 1
        if not agree(*(play(env, actions) for env in variants.values())):
            raise SystemExit("the variants do not agree: nothing was timed")
        times: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(args.rounds):
            for name, env in variants.items():
                times[name].append(seconds(env, actions))
    env_steps = chunks * args.act_horizon * args.num_envs
    ratios = [slow / fast for slow, fast in zip(times["every frame"], times["on demand"], strict=True)]
    print(
        f"on demand is {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f}) rendering every frame"
    )
    speeds = {name: [env_steps / value for value in values] for name, values in times.items()}
    for name, values in speeds.items():
        print(f"{name:12} {statistics.median(values):6.0f} env steps/s ({min(values):.0f} to {max(values):.0f})")
    agreement = "states, rewards and seen pictures are bit-identical"
    ratio = {"median": statistics.median(ratios), "rounds": ratios}
    save("rendering", args, [{"agreement": agreement, "ratio": ratio, "env_steps_per_s": speeds}])


if __name__ == "__main__":
    main()
