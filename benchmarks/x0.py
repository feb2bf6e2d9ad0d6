"""What x_0 alone does to the return of a flow: its variance from one start state, and what V can still explain.

    python -m benchmarks x0 --checkpoint runs/shortcut_flow-PickCube-v1-seed0

Every start state is played `--repeats` times: with x_0 ~ N(0, I) and no other noise, with Stage 3's exploration noise
from x_0 = 0, and with both. PPO can credit the chain's noise, whose densities it has, but what x_0 does is no part of
the ratio: to the gradient it is noise. V sees the state alone, so the share of the variance that lies between start
states is the most that it can explain. Then a V is trained on such rollouts, from either x_0, with returns to the end
of the episode, and measured on the rollout after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks._compare import parser, save
from reinflow.agent import ReinFlowAgent
from reinflow.algos.config import PPOConfig
from reinflow.algos.ppo import PPO
from reinflow.algos.reinflow import ReinFlow, rollout_buffer
from reinflow.envs import EnvConfig, make_env
from reinflow.storage.checkpoint import load_policy
from reinflow.training.rollouts import collect
from reinflow.types import ChunkEnv, Obs

CASES = {"neither": (0.0, False), "x_0": (1.0, False), "noise": (0.0, True), "both": (1.0, True)}
"""scale of x_0, and whether Stage 3's exploration noise is on"""


def main() -> None:
    """Play every case from the same start states and print what share of the return's variance noise makes."""
    flags = parser(__doc__)
    flags.add_argument("--checkpoint", required=True, help="of a flow: a file or a run directory")
    flags.add_argument("--states", type=int, default=64, help="start states")
    flags.add_argument("--repeats", type=int, default=8, help="episodes from each of them")
    flags.add_argument("--decisions", type=int, default=26, help="of each env in a rollout that V trains on")
    args = flags.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    policy, checkpoint = load_policy(args.checkpoint, "cpu")
    config = PPOConfig(gae_lambda=1.0, minibatch_size=64)
    horizons = {"act_horizon": policy.spec.act_horizon, "obs_horizon": policy.spec.obs_horizon}
    task = replace(EnvConfig(), num_workers=0).completed(checkpoint.env_spec)
    with closing(make_env(task, args.states, gamma=config.gamma, **horizons)) as env:
        agent = ReinFlowAgent.from_policy(policy, config)
        rows = [played(agent, env, case, args.repeats if any(CASES[case]) else 2) for case in CASES]
        rows += [explained(agent, env, scale, args.rounds, args.decisions) for scale in (0.0, 1.0)]
    given = {row["case"]: row["variance_given_state"] for row in rows if "variance_given_state" in row}
    share = given["noise"] / max(given["both"], 1e-12)
    print(f"exploration noise makes {share:.1%} of the variance that it makes together with x_0")
    save("x0", args, [*rows, {"noise_share_of_variance_given_state": share}])


def played(agent: ReinFlowAgent, env: ChunkEnv, case: str, repeats: int) -> dict[str, Any]:
    """The variance of discounted returns from the same start states, within and between them."""
    scale, noisy = CASES[case]
    generator = torch.Generator().manual_seed(1)

    def act(obs: Obs) -> Tensor:
        if not noisy:
            return agent.policy.act(obs, generator)
        return agent.to_action(agent.get_action(agent.view(obs).cond, generator=generator).chunk)

    with starting(agent, scale):
        episodes = [episode(act, env, agent.config.gamma) for _ in range(repeats)]
    returns, successes = (torch.stack(column) for column in zip(*episodes, strict=True))
    within, between = variances(returns)
    row = {
        "success_once": successes.mean().item(),
        "mean": returns.mean().item(),
        "variance_given_state": within,
        "variance_between_states": between,
        "most_that_v_explains": between / max(within + between, 1e-12),
        "states_that_sometimes_succeed": ((successes.mean(0) > 0) & (successes.mean(0) < 1)).float().mean().item(),
    }
    print(f"{case}: " + ", ".join(f"{name} {value:.3f}" for name, value in row.items()))
    return {"case": case, **row}


def variances(returns: Float[Tensor, "r n"]) -> tuple[float, float]:
    """Within and between the `n` states, unbiased: `r` returns of a state also differ in their mean by chance."""
    within = returns.var(0).mean()
    between = returns.mean(0).var() - within / len(returns)
    return within.item(), max(between.item(), 0.0)


@torch.no_grad()
def episode(act: Callable[[Obs], Tensor], env: ChunkEnv, gamma: float) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Discounted return and success of every env's first episode; start states are always the same."""
    obs = env.reset(seed=20_000)
    pending = torch.ones(env.num_envs)
    returns, success, discount = torch.zeros_like(pending), torch.zeros_like(pending), pending.clone()
    while pending.any():
        step = env.step_chunk(act(obs))
        returns += pending * discount * step.reward
        discount *= gamma**step.executed
        over = (step.ended | step.broken).float()
        success += pending * over * step.episode.success_once
        pending *= 1 - over
        obs = step.obs
    return returns, success


def explained(agent: ReinFlowAgent, env: ChunkEnv, scale: float, rounds: int, decisions: int) -> dict[str, Any]:
    """Explained variance of the returns of each rollout by a V that was trained on those before."""
    torch.manual_seed(0)
    config = agent.config
    fresh, size = ReinFlowAgent.from_policy(agent.policy, config), env.num_envs * decisions
    learner = ReinFlow(fresh, PPO(fresh, config), rollout_buffer(fresh, config, size))
    generator = torch.Generator().manual_seed(0)
    obs, shares = env.reset(seed=0), []
    with starting(fresh, scale):
        for _ in range(rounds):
            learner.begin(env_steps=0)  # critic warm-up
            obs, _ = collect(learner, env, obs, generator)
            shares.append(learner.update(generator)["losses/explained_variance"].item())
    print(f"V explains {', '.join(f'{share:.3f}' for share in shares)} of the returns from x_0 times {scale:g}")
    return {"initial_noise_scale": scale, "explained_variance": shares}


@contextmanager
def starting(agent: ReinFlowAgent, scale: float) -> Iterator[None]:
    """The agent with another scale of x_0, for a while."""
    before = agent.policy.spec
    agent.policy.spec = before.starting_with(scale)
    try:
        yield
    finally:
        agent.policy.spec = before


if __name__ == "__main__":
    main()
