"""What makes algorithms whose parts come from several places: `build`s of `reinflow.algorithms`."""

from __future__ import annotations

from reinflow.agent import ReinFlowAgent
from reinflow.algos.awr import AdvantageWeightedRegression
from reinflow.algos.bc import BehaviorCloning
from reinflow.algos.config import BCConfig
from reinflow.algos.grpo import GRPO
from reinflow.algos.ogpo import OGPO
from reinflow.algos.options import AWROptions, GRPOConfig, OGPOConfig, PPOOptions, SACConfig
from reinflow.algos.ppo import PPO
from reinflow.algos.reinflow import ReinFlow, rollout_buffer
from reinflow.algos.sac import SAC
from reinflow.algos.setting import Setting
from reinflow.policies import make_stochastic
from reinflow.policies.base import Policy
from reinflow.types import Objective, Stochastic


def cloning(policy: Policy, options: BCConfig, setting: Setting) -> BehaviorCloning:
    """Stage 1."""
    return BehaviorCloning(policy, options, setting.updates)


def awr(policy: Policy, options: AWROptions, setting: Setting) -> AdvantageWeightedRegression:
    """Stage 2."""
    learner = AdvantageWeightedRegression(policy, options.bc, options.awr, options.critics, setting.updates)
    if setting.level is not None:
        learner.critics.start_at_(setting.level)
    return learner


def ppo(policy: Policy, options: PPOOptions, setting: Setting) -> ReinFlow:
    """Stage 3, without what is Stage 3's alone: an asymmetric critic, acceleration."""
    config = options.ppo.completed(Objective(setting.gamma, "", False))
    agent = ReinFlowAgent.from_policy(
        policy,
        config,
        options.noise,
        options.noise_net,
        options.num_inference_steps,
        freeze_visual_encoder=options.freeze_visual_encoder,
    )
    state = setting.parts.get("critic", {})
    if state.keys() == agent.critic.state_dict().keys():
        agent.critic.load_state_dict(state)
    return ReinFlow(agent, PPO(agent, config), rollout_buffer(agent, config, setting.decisions))


def chain_of(policy: Policy) -> Stochastic:
    """The policy's chain in its own number of denoising steps."""
    return make_stochastic(policy, policy.spec.num_inference_steps)


def grpo(policy: Policy, options: GRPOConfig, setting: Setting) -> GRPO:
    """Groups of episodes from one start state."""
    return GRPO(policy, chain_of(policy), options, setting)


def sac(policy: Policy, options: SACConfig, setting: Setting) -> SAC:
    """SAC, and with other defaults RLPD."""
    return SAC(policy, chain_of(policy), options, setting)


def ogpo(policy: Policy, options: OGPOConfig, setting: Setting) -> OGPO:
    """PPO on imagined chains."""
    return OGPO(policy, chain_of(policy), options, setting)
