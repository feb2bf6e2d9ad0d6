"""Chunked env steps with histories and episode statistics: as tensors, against a Python loop over the envs.

The env itself costs nothing: a counter whose episodes end after a time of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks._compare import Variant, compare, parser, report
from benchmarks._straightforward import LoopedChunks
from reinflow.envs.wrappers import ActionChunk
from reinflow.types import EnvSpec, StepResult

STATE_DIM, ACTION_DIM, LIMIT = 42, 7, 50
GAMMA = 0.97


class Counter:
    """A `BatchedEnv` without physics."""

    device = torch.device("cpu")

    def __init__(self, num_envs: int):
        self.num_envs = num_envs
        bounds = (1.0,) * ACTION_DIM
        low = tuple(-x for x in bounds)
        self.spec = EnvSpec("Counter-v0", "state", "none", "torch", "dense", STATE_DIM, low, bounds, LIMIT)
        self.frame = torch.zeros(num_envs, STATE_DIM)
        self.nothing = torch.zeros(num_envs, dtype=torch.bool)
        self.reward = torch.linspace(0, 1, num_envs)

    def reset(self, seed: int | None = None, env_idx: Tensor | None = None) -> dict[str, Tensor]:
        """Set the frame counters of all envs, or of those in `env_idx`, back to 0; a seed changes nothing."""
        self.frame = self.frame.clone()
        self.frame[slice(None) if env_idx is None else env_idx] = 0
        return {"state": self.frame}

    def step(self, action: Tensor, render: bool = True) -> StepResult:
        """Count one frame in every env, whatever the action."""
        self.frame = self.frame + 1
        return StepResult({"state": self.frame}, self.reward, self.nothing, self.nothing)

    def random_state(self) -> None:
        """Nothing is random here, and nothing is resumed."""

    def close(self) -> None:
        """Nothing to release."""


def main() -> None:
    """Time chunks with both ways of keeping books for every number of envs, once their results agree."""
    flags = parser(__doc__)
    flags.add_argument("--num_envs", type=int, nargs="+", default=[256], help="envs")
    flags.add_argument("--act_horizon", type=int, default=8, help="env steps of a chunk")
    args = flags.parse_args()
    torch.set_num_threads(args.threads or 1)
    comparisons = []
    for count in args.num_envs:
        actions = torch.zeros(count, args.act_horizon, ACTION_DIM)
        chunk = (args.act_horizon, 2, GAMMA)
        variants = []
        for name, kind in (("loop over envs", LoopedChunks), ("tensors", ActionChunk)):
            env = kind(Counter(count), *chunk)
            env.reset()

            def run(env=env, actions=actions) -> dict[str, Tensor]:
                step = env.step_chunk(actions)
                flags = {
                    name: getattr(step, name).float() for name in ("executed", "terminated", "truncated", "broken")
                }
                episode = {name: value.float() for name, value in vars(step.episode).items()}
                frames = {"obs": step.obs["state"], "final_obs": step.final_obs["state"]}
                return {**frames, "reward": step.reward, **flags, **episode}

            variants.append(Variant(name, run))
        case = f"{count} envs, chunks of {args.act_horizon}"
        comparisons.append(compare(case, variants, args.rounds, tolerance=1e-4))
    report("bookkeeping", args, comparisons)


if __name__ == "__main__":
    main()
