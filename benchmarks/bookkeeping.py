"""Chunked env steps with histories and episode statistics: as tensors, against a Python loop over the envs.

The env itself costs nothing: a counter whose episodes end after a time of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks._compare import Variant, compare, parser, report
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
        self.frame = self.frame.clone()
        self.frame[slice(None) if env_idx is None else env_idx] = 0
        return {"state": self.frame}

    def step(self, action: Tensor, render: bool = True) -> StepResult:
        self.frame = self.frame + 1
        return StepResult({"state": self.frame}, self.reward, self.nothing, self.nothing)

    def random_state(self) -> None:
        """Nothing is random here, and nothing is resumed."""

    def close(self) -> None:
        """Nothing to release."""


class Looped:
    """The straightforward executor: lists per env, every number read on its own."""

    def __init__(self, env: Counter, act_horizon: int, obs_horizon: int):
        self.env, self.act_horizon, self.obs_horizon = env, act_horizon, obs_horizon

    def reset(self) -> None:
        frame = self.env.reset()["state"]
        self.history = [[row] * self.obs_horizon for row in frame]
        self.returns, self.lengths = [0.0] * self.env.num_envs, [0] * self.env.num_envs

    def step_chunk(self, actions: Tensor) -> dict[str, Tensor]:
        count = self.env.num_envs
        rewards, executed, ended = [0.0] * count, [0] * count, [False] * count
        for index in range(self.act_horizon):
            step = self.env.step(actions[:, index])
            for i in range(count):
                if ended[i]:
                    continue
                reward = step.reward[i].item()
                rewards[i] += GAMMA**index * reward
                executed[i] += 1
                self.returns[i] += reward
                self.lengths[i] += 1
                self.history[i] = [*self.history[i][1:], step.obs["state"][i]]
                ended[i] = bool(step.terminated[i]) or self.lengths[i] >= LIMIT
        returns = torch.tensor(self.returns)
        for i in range(count):
            if ended[i]:
                fresh = self.env.reset(env_idx=torch.tensor([i]))["state"][i]
                self.history[i] = [fresh] * self.obs_horizon
                self.returns[i], self.lengths[i] = 0.0, 0
        obs = torch.stack([torch.stack(frames) for frames in self.history])
        return {"obs": obs, "reward": torch.tensor(rewards), "executed": torch.tensor(executed), "return": returns}


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--num_envs", type=int, nargs="+", default=[256], help="envs")
    flags.add_argument("--act_horizon", type=int, default=8, help="env steps of a chunk")
    args = flags.parse_args()
    torch.set_num_threads(args.threads or 1)
    comparisons = []
    for count in args.num_envs:
        actions = torch.zeros(count, args.act_horizon, ACTION_DIM)
        looped, chunked = (
            Looped(Counter(count), args.act_horizon, 2),
            ActionChunk(Counter(count), args.act_horizon, 2, GAMMA),
        )
        looped.reset()
        chunked.reset()

        def in_tensors(chunked=chunked, actions=actions) -> dict[str, Tensor]:
            step = chunked.step_chunk(actions)
            names = {"obs": step.obs["state"], "reward": step.reward, "executed": step.executed}
            return {**names, "return": step.episode.return_}

        def in_python(looped=looped, actions=actions) -> dict[str, Tensor]:
            return looped.step_chunk(actions)

        variants = [Variant("loop over envs", in_python), Variant("tensors", in_tensors)]
        case = f"{count} envs, chunks of {args.act_horizon}"
        comparisons.append(compare(case, variants, args.rounds, tolerance=1e-4))
    report("bookkeeping", args, comparisons)


if __name__ == "__main__":
    main()
