"""F6: numbers that aren't finite, in observations, rewards, actions, losses and gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reinflow.agent import ReinFlowAgent
from reinflow.algos.bc import BehaviorCloning
from reinflow.algos.config import PPOConfig
from reinflow.algos.ppo import PPO
from reinflow.algos.reinflow import ReinFlow, rollout_buffer
from reinflow.algos.rollout import RolloutBuffer
from reinflow.envs.toy import ToyEnv
from reinflow.envs.wrappers import ActionChunk
from reinflow.errors import UserError
from reinflow.policies import build_policy
from reinflow.training.rollouts import collect
from reinflow.types import ChunkStep, StepResult
from tests.faults.runs import prepared, status
from tests.small import run_stage
from tests.test_checkpoint import SPEC

ENVS, DECISIONS, AT = 4, 6, 3
"""the fault is in env 1, in the decision of this number"""
FAULTS: dict[str, dict[str, float]] = {
    "obs NaN": {"obs": math.nan}, "obs inf": {"obs": math.inf}, "reward NaN": {"reward": math.nan},
    "reward -inf": {"reward": -math.inf}, "reward 1e30": {"reward": 1e30}, "action NaN": {"action": math.nan},
    "action inf": {"action": math.inf},
}  # fmt: skip


class Faulty(ToyEnv):
    """The toy, with a bad number in one env at one step."""

    def __init__(self, fault: dict[str, float]):
        super().__init__(ENVS, max_episode_steps=100)
        self.fault, self.steps = fault, 0

    def step(self, action: Tensor, render: bool = True) -> StepResult:
        assert action.isfinite().all(), "an action that is no number reached the env"
        result = super().step(action)
        self.steps += 1
        if self.steps == AT * SPEC.act_horizon + 2:
            if "obs" in self.fault:
                result.obs["state"][1, 0] = self.fault["obs"]
            if "reward" in self.fault:
                result.reward[1] = self.fault["reward"]
        return result


class Recording(ActionChunk):
    """Remembers every step, and may spoil an action."""

    def __init__(self, fault: dict[str, float]):
        super().__init__(Faulty(fault), SPEC.act_horizon, SPEC.obs_horizon, 0.97)
        self.fault, self.done = fault, []

    def step_chunk(self, actions: Tensor) -> ChunkStep:
        if "action" in self.fault and len(self.done) == AT:
            actions = actions.clone()
            actions[1, 0, 0] = self.fault["action"]
        self.done.append(super().step_chunk(actions))
        return self.done[-1]


def agent_with(fault: dict[str, float]) -> tuple[ReinFlowAgent, PPO, RolloutBuffer, Recording]:
    torch.manual_seed(0)
    agent = ReinFlowAgent.from_policy(build_policy(SPEC), PPOConfig(minibatch_size=6, target_kl=1.0))
    env = Recording(fault)
    return agent, PPO(agent, agent.config), rollout_buffer(agent, agent.config, ENVS * DECISIONS), env


def rolled_out(fault: dict[str, float]) -> tuple[ReinFlowAgent, PPO, RolloutBuffer, Recording]:
    agent, learner, buffer, env = agent_with(fault)
    generator = torch.Generator().manual_seed(0)
    collect(ReinFlow(agent, learner, buffer), env, env.reset(seed=0), generator)
    return agent, learner, buffer, env


def finite(agent: ReinFlowAgent) -> bool:
    return all(bool(value.isfinite().all()) for value in agent.state_dict().values())


def numbers(folder: Path, full: bool) -> str:
    """F6."""
    clean = rolled_out({})[3]
    others = torch.tensor([0, 2, 3])
    for name, fault in FAULTS.items():
        agent, learner, buffer, env = rolled_out(fault)
        dropped = (buffer.data["valid"] == 0).nonzero().tolist()
        assert dropped == [[AT, 1]], f"{name}: dropped {dropped}, not the decision {AT} of env 1"
        for mine, theirs in zip(env.done, clean.done, strict=True):
            for part in ("obs", "final_obs"):
                assert torch.equal(getattr(mine, part)["state"][others], getattr(theirs, part)["state"][others]), name
            assert torch.equal(mine.reward[others], theirs.reward[others]), name
        metrics = learner.update(buffer, torch.Generator().manual_seed(0))
        assert finite(agent), f"{name} reached the weights"
        assert all(bool(value.isfinite()) for value in metrics.values()), f"{name} reached the metrics"
        assert metrics["skipped_steps"] == 0
    exactly_dropped()
    skipped = losses_and_gradients()
    again = rollback(folder, lasting=False)
    lasting = rollback(folder, lasting=True)
    return f"{len(FAULTS)} kinds: 1 decision dropped each, others unchanged; {skipped}; {again}; {lasting}"


def exactly_dropped() -> None:
    """The update of a rollout with an invalid row is the update of the other rows, whatever the row holds."""
    results = []
    for reward in (math.nan, 1e30):
        agent, learner, buffer, _ = rolled_out({"reward": reward})
        rows = buffer.flat()
        rows["advantages"] = torch.where(rows["valid"] == 1, rows["advantages"], 1e3 if reward == 1e30 else -5.0)
        learner.step(rows)
        results.append(torch.cat([p.flatten() for p in agent.parameters()]))
    assert torch.equal(*results), "an invalid row moved the weights"


def losses_and_gradients() -> str:
    for place in ("loss", "gradient"):
        agent, learner, buffer, _ = rolled_out({})
        before = {name: value.clone() for name, value in agent.state_dict().items()}
        rows = buffer.flat()
        handle: Any = None
        if place == "loss":
            rows = rows | {"advantages": rows["advantages"] * math.nan}
        else:
            handle = learner.velocity_parameters[0].register_hook(lambda grad: grad * math.inf)
        learner.step(rows)
        if handle is not None:
            handle.remove()
        moved = {name for name, value in agent.state_dict().items() if not torch.equal(value, before[name])}
        assert finite(agent)
        assert not {name for name in moved if not name.startswith("critic")}, f"a bad {place} moved {moved}"
        assert learner.guard.metrics()["skipped_steps"] == 1
        learner.step(buffer.flat())
        assert any(not torch.equal(value, before[name]) for name, value in agent.state_dict().items())
        assert finite(agent)
    return "a bad loss or gradient moved nothing"


def rollback(folder: Path, lasting: bool) -> str:
    """Stage 1 whose loss is NaN from iteration 6 on, for ten iterations or for ever."""
    prepared(folder)
    update, count = BehaviorCloning.update, 0

    def spoiled(self: BehaviorCloning, batch: Any) -> dict[str, Tensor]:
        nonlocal count
        count += 1
        if count > 6 and (lasting or count <= 16):
            batch = replace(batch, chunk=batch.chunk * math.nan)
        return update(self, batch)

    BehaviorCloning.update = spoiled  # type: ignore[method-assign]
    name = "lasting" if lasting else "passing"
    said = ""
    try:
        run_stage(1, folder, name, "--total_iters", "40")
    except UserError as error:
        said = str(error)
    finally:
        BehaviorCloning.update = update  # type: ignore[method-assign]
    alarms = status(folder / "runs" / name)["alarms"]
    assert any("went back to step" in alarm for alarm in alarms), alarms
    if lasting:
        assert "again after going back" in said, f"no diagnosis: {said}"
        return "a lasting one: stopped with a diagnosis"
    assert not said, said
    return "ten bad losses in a row: rolled back once and finished"
