"""The on-policy loop by hand: a scripted env and a scripted agent, against a loop over single envs and plain numbers.

Everything that the loop hands to the learner is looked at, so what it leaves out of an advantage shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nets.critic import ValueNetwork
from reinflow.agent import ReinFlowAgent
from reinflow.algos.actor_critic import View
from reinflow.algos.config import PPOConfig
from reinflow.algos.ppo import value_loss
from reinflow.algos.reinflow import ReinFlow
from reinflow.algos.rollout import RolloutBuffer
from reinflow.policies import build_policy
from reinflow.run.config import RunConfig
from reinflow.training.config import OnPolicyConfig
from reinflow.training.health import Diverged
from reinflow.training.loops import OnPolicy, OnPolicyState
from reinflow.training.trainer import Trainer
from reinflow.types import Chain, ChunkStep, EpisodeStats
from tests.test_checkpoint import SPEC

GAMMA, LAMBDA = 0.9, 0.8
ENVS, DECISIONS = 3, 6
SCRIPT = (  # of one env each, a letter per decision: goes on, truncated, terminated, broken
    "..T..B.xB...",
    ".B..T.TT....",
    "BB.x.....x.B",
)
STEPS = ("443443214444", "412334444424", "444144344214")
"""executed env steps"""


class ScriptedEnv:
    """Its observation is a number that names env and decision; so is the true last one of an episode that ended."""

    num_envs, device = ENVS, torch.device("cpu")

    def __init__(self) -> None:
        self.count = 0
        self.actions: list[Tensor] = []

    def obs(self, final: bool = False) -> dict[str, Tensor]:
        return {"state": torch.tensor([[obs_of(env, self.count, final)] for env in range(ENVS)])}

    def step_chunk(self, actions: Tensor) -> ChunkStep:
        self.actions.append(actions)
        now = self.count % len(SCRIPT[0])
        letters = [script[now] for script in SCRIPT]
        flags = {letter: torch.tensor([one == letter for one in letters]) for letter in ".TxB"}
        executed = torch.tensor([int(steps[now]) for steps in STEPS])
        reward = torch.tensor([reward_of(env, self.count) for env in range(ENVS)])
        self.count += 1
        nothing = torch.zeros(ENVS)
        return ChunkStep(
            obs=self.obs(),
            final_obs=self.obs(final=True),
            reward=torch.where(flags["B"], math.nan, reward),
            executed=executed,
            terminated=flags["x"],
            truncated=flags["T"],
            broken=flags["B"],
            episode=EpisodeStats(nothing + 5.0, executed, flags["x"], flags["x"]),
        )


def obs_of(env: int, decision: int, final: bool = False) -> float:
    """`final`: at the end of the decision before."""
    return 10.0 * env + decision + (0.5 if final else 0.0)


def reward_of(env: int, decision: int) -> float:
    return 1.0 + env + 0.1 * decision


def value_of(obs: float) -> float:
    """V of the scripted agent."""
    return 3.0 + 0.25 * obs


class ScriptedAgent:
    """Acts by its observation, and remembers what the loop asks of it, in order."""

    def __init__(self) -> None:
        self.policy = SimpleNamespace(spec=SimpleNamespace(image=None))
        self.critic = ValueNetwork(1, (4,), scale=10.0)
        self.schedule: list[int] = []

    def augmented(self, obs: dict[str, Tensor], generator: Any = None) -> dict[str, Tensor]:
        return obs

    def view(self, obs: dict[str, Tensor]) -> View:
        return View(obs["state"], critic=obs["state"], stored=obs["state"])

    def get_action(self, cond: Tensor, generator: Any = None) -> Chain:
        states = torch.stack((torch.zeros_like(cond), cond), 1)[..., None]
        return Chain(states, states[:, 1:], torch.ones_like(states[:, 1:]), log_prob=-cond[:, 0])

    def get_value(self, seen: Tensor) -> Tensor:
        return torch.tensor([value_of(one) for one in seen[:, 0].tolist()])

    def to_action(self, chunk: Tensor) -> Tensor:
        return 2 * chunk

    def update_noise_schedule(self, step: int) -> None:
        self.schedule.append(step)


@dataclass
class Seen:
    """What a run of the loop gave to its parts."""

    config: PPOConfig
    anchor: None = None
    agent: ScriptedAgent = field(default_factory=ScriptedAgent)
    env: ScriptedEnv = field(default_factory=ScriptedEnv)
    state: OnPolicyState = field(default_factory=OnPolicyState)
    rollouts: list[dict[str, Tensor]] = field(default_factory=list)
    critic_only: list[bool] = field(default_factory=list)
    logged: list[dict[str, Any]] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)

    def update(self, buffer: RolloutBuffer, generator: Any, *, critic_only: bool) -> dict[str, Tensor]:
        self.rollouts.append({name: value.clone() for name, value in buffer.data.items()})
        self.critic_only.append(critic_only)
        return {}

    def log(self, metrics: dict[str, Any], step: int) -> dict[str, float]:
        self.logged.append({name: float(value) for name, value in metrics.items()} | {"step": step})
        return self.logged[-1]


def looped(total_timesteps: int, warmup: int = 0, **rhythm: int) -> Seen:
    """`OnPolicy` over the script, from its start, run by a trainer whose keeper notes what it is asked for."""
    seen = Seen(PPOConfig(critic_warmup_steps=warmup))
    nothing = SimpleNamespace(
        config=RunConfig(),
        log=seen.log,
        alarm=seen.alarms.append,
        status=lambda **_: None,
        progress=lambda *_, **__: None,
    )
    buffer = RolloutBuffer(ENVS * DECISIONS, 1, 1, 1, GAMMA, LAMBDA, num_inference_steps=1)
    config = OnPolicyConfig(ENVS, DECISIONS, total_timesteps, **rhythm)
    loop = OnPolicy(ReinFlow(seen.agent, seen, buffer), seen.env, config, nothing, torch.Generator())
    loop.state, loop.obs = seen.state, seen.env.obs()
    trainer = object.__new__(Trainer)
    trainer.loop, trainer.run = loop, nothing
    trainer.keeper = SimpleNamespace(
        evaluate=lambda policy, step, keep: seen.evaluated.append(loop.count) or {},
        mark=lambda step: None,
        save_mark=lambda: seen.saved.append(loop.count),
    )
    trainer._go_on()
    return seen


def env_steps(first: int, last: int) -> int:
    return sum(int(steps[place]) for steps in STEPS for place in range(first, last))


FIRST, BOTH = env_steps(0, DECISIONS), env_steps(0, 2 * DECISIONS)


def advantage(env: int, start: int, end: int) -> float | None:
    """Of decision `start` in a rollout that ends before decision `end`; None where it is left out."""
    total, weight = None, 1.0
    for place in range(start, end):
        letter = SCRIPT[env][place]
        if letter == "B":
            break
        beyond = value_of(obs_of(env, place + 1, final=letter == "T")) if letter != "x" else 0.0
        discount = GAMMA ** int(STEPS[env][place])
        total = (total or 0.0) + weight * (reward_of(env, place) + discount * beyond - value_of(obs_of(env, place)))
        weight *= discount * LAMBDA
        if letter != ".":
            break
    return total


def test_both_rollouts_hold_what_a_loop_over_single_envs_finds():
    seen = looped(BOTH)
    assert len(seen.rollouts) == 2
    for rollout, data in enumerate(seen.rollouts):
        first, end = rollout * DECISIONS, (rollout + 1) * DECISIONS
        for env in range(ENVS):
            for place in range(first, end):
                expected = advantage(env, place, end)
                found = {name: value[place - first, env] for name, value in data.items()}
                assert found["valid"] == (expected is not None), (env, place)
                assert found["advantages"].item() == pytest.approx(expected or 0.0, abs=1e-5), (env, place)
                if expected is not None:
                    obs = obs_of(env, place)
                    assert found["returns"].item() == pytest.approx(expected + value_of(obs), abs=1e-5)
                    assert found["obs"].item() == obs
                    assert found["actions"].flatten().tolist() == [0.0, obs]
                    assert found["log_probs"].item() == -obs
    acted = torch.stack(seen.env.actions)[..., 0, 0]
    expected_actions = [[2 * obs_of(env, place) for env in range(ENVS)] for place in range(2 * DECISIONS)]
    assert acted.tolist() == expected_actions


def test_counters_and_means_are_those_of_the_script():
    # first rollout: T of env 0 (3 steps) and of env 1 (3 steps), x of env 2 (1 step) end; B at (0, 5), (1, 1), (2, 0),
    # (2, 1). Second: x (0, 7), T (1, 6), T (1, 7), x (2, 9); B (0, 8), (2, 11)
    seen = looped(BOTH)
    first, second = seen.logged[1:3]  # the line before is an evaluation's
    assert [line["step"] for line in (first, second)] == [FIRST, BOTH]
    assert [line["rollout/broken"] for line in (first, second)] == [4, 2]
    assert first["rollout/length"] == pytest.approx((3 + 3 + 1) / 3)
    assert first["rollout/success_once"] == pytest.approx(1 / 3)
    assert second["rollout/length"] == pytest.approx((1 + 4 + 4 + 2) / 4)
    assert second["rollout/success_once"] == pytest.approx(2 / 4)
    assert seen.state == OnPolicyState(BOTH, iteration=2, policy_updates=2, evaluated=True)
    assert len(seen.alarms) == 2
    assert all("left out" in sentence for sentence in seen.alarms)


def test_the_noise_follows_the_env_steps_of_each_iteration_s_start():
    assert looped(BOTH).agent.schedule == [0, FIRST]


@pytest.mark.parametrize(
    ("warmup", "critic_only"),
    [(0, [False] * 3), (1, [True, False, False]), (FIRST, [True, False, False]), (FIRST + 1, [True, True, False])],
)
def test_critic_warm_up_is_rounded_up_to_whole_iterations(warmup, critic_only):
    seen = looped(BOTH + 1, warmup)
    assert seen.critic_only == critic_only
    assert seen.state.policy_updates == critic_only.count(False)
    assert [line["charts/critic_warmup"] for line in seen.logged if "charts/iteration" in line] == critic_only


def test_evaluations_and_states_come_in_their_rhythm_and_at_both_ends():
    seen = looped(2 * BOTH + 1, eval_freq=2, save_freq=3)
    assert seen.state.iteration == 5
    assert seen.evaluated == [0, 2, 4, 5]
    assert seen.saved == [0, 3, 5]


def test_a_rollout_of_broken_decisions_alone_is_no_rollout(monkeypatch):
    monkeypatch.setattr("tests.test_loops.SCRIPT", ("B" * 12,) * ENVS)
    with pytest.raises(Diverged, match="no decision"):
        looped(BOTH)


def test_v_changes_its_unit_with_the_rewards_before_they_are_bootstrapped(monkeypatch):
    # V of 3 to 10 beside returns of about 1e-3 is noise: it is scaled down with its unit, and nothing depends on it
    monkeypatch.setattr("tests.test_loops.reward_of", lambda env, decision: 1e-3)
    seen = looped(FIRST)
    scale = seen.agent.critic.scale.item()
    assert 1e-3 < scale < 1e-2
    data = seen.rollouts[0]
    kept = data["valid"] > 0
    values = torch.tensor([[value_of(obs_of(env, place)) for env in range(ENVS)] for place in range(DECISIONS)])
    shift = data["value"] - values * scale / 10.0  # what is left is far too small, so it is raised everywhere
    torch.testing.assert_close(shift, torch.full_like(shift, shift[0, 0].item()))
    assert data["returns"][kept].abs().max() < 1e-2


def test_the_value_loss_moves_the_critic_alone():
    # an encoder that trains on would feel V's error through the condition
    torch.manual_seed(0)
    agent = ReinFlowAgent.from_policy(build_policy(SPEC), PPOConfig())
    encoder = nn.Linear(2, SPEC.cond_dim)
    cond = encoder(torch.randn(5, 2))
    value_loss(agent, cond, torch.ones(5)).backward()
    assert encoder.weight.grad is None
    assert all(parameter.grad is not None for parameter in agent.critic.parameters())
    # and in the loss of an update, which the condition does feel through the policy: (V - return)^2 adds nothing
    gradients = []
    for returns in (torch.ones(5), torch.full((5,), 1e3)):
        encoder.zero_grad()
        cond = encoder(torch.ones(5, 2))
        chain = agent.get_action(cond.detach(), torch.Generator().manual_seed(0))
        agent.compute_ppo_loss(cond, chain.states, chain.log_prob, torch.ones(5), returns)["loss"].backward()
        gradients.append(encoder.weight.grad.clone())
    assert torch.equal(*gradients)


def test_a_new_v_starts_at_the_level_of_the_rewards_and_not_at_the_horizon_of_one_rollout():
    # reward 1 a step for ever at gamma .97 is worth 1 / .03 = 33.3; from V = 0, 3 decisions would see less than 3
    agent = ScriptedAgent()
    agent.get_value = agent.critic
    buffer = RolloutBuffer(ENVS * DECISIONS, 1, 1, 1, 0.97, LAMBDA, num_inference_steps=1)
    rows = torch.randn(DECISIONS, ENVS, 1, generator=torch.Generator().manual_seed(0))
    nothing, alive = torch.zeros(ENVS), torch.zeros(ENVS, dtype=torch.bool)
    for row in rows:
        states = torch.zeros(ENVS, 2, 1, 1)
        moments = {"means": states[:, 1:], "stds": states[:, 1:] + 1}
        buffer.add(row, states, nothing + 1, agent.critic(row).detach(), nothing, alive, **moments)
    with torch.no_grad():
        ReinFlow(agent, SimpleNamespace(), buffer).finish({"state": rows[0]})
        torch.testing.assert_close(agent.critic(rows).mean(), torch.tensor(100 / 3), rtol=0.01, atol=0)
    torch.testing.assert_close(buffer.data["returns"].mean(), torch.tensor(100 / 3), rtol=0.01, atol=0)
