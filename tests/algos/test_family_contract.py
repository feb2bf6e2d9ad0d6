"""What every family promises to the algorithms, from states and from pictures: gradients, resume, ratios of 1."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from reinflow.agent import ReinFlowAgent
from reinflow.algos.bc import BehaviorCloning
from reinflow.algos.config import BCConfig, DispersiveConfig
from reinflow.algos.dispersive import LOSSES, Dispersed
from reinflow.algos.ppo import PPO
from reinflow.data.chunks import Batch
from reinflow.policies import FAMILIES, NETS, PolicySpec, build_policy, make_stochastic
from reinflow.policies.chain import chain_log_prob, chain_moments, sample_chain, scored_dims
from reinflow.types import ImageSpec

every_family = pytest.mark.parametrize("family", FAMILIES)
every_net = pytest.mark.parametrize("net", NETS)
IMAGE = ImageSpec(cameras=("base",), height=16, width=24, rgb=True, depth=False)
SIZES = {
    "state_dim": 5, "action_dim": 3, "obs_horizon": 2, "act_horizon": 2, "pred_horizon": 4, "unet_dims": (16, 32),
    "mlp_hidden_dim": 16, "mlp_depth": 1, "preact_hidden_dim": 16, "diffusion_step_embed_dim": 8,
    "num_inference_steps": 3, "visual_feature_dim": 16,
}  # fmt: skip


def opened(family: str, net: str = "mlp", image: ImageSpec | None = None):
    """A small policy whose closed gates, which training opens in its first step, are open."""
    policy = build_policy(replace(PolicySpec.of(family=family, net=net, **SIZES), image=image))
    for parameter in policy.net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return policy


def seen(rows: int) -> dict[str, torch.Tensor]:
    return {"state": torch.randn(rows, 2, 5), "rgb": torch.randint(256, (rows, 2, 1, 16, 24, 3), dtype=torch.uint8)}


@every_family
@every_net
def test_every_weight_has_a_finite_gradient_with_any_dispersion(family, net):
    policy = opened(family, net)
    cond, chunk = torch.randn(8, policy.spec.cond_dim), torch.rand(8, 4, 3) * 2 - 1
    for name in LOSSES:
        policy.zero_grad()
        Dispersed(policy, DispersiveConfig(dispersive=name)).loss(cond, chunk).mean().backward()
        gradients = {key: parameter.grad for key, parameter in policy.net.named_parameters()}
        assert [key for key, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
        still = sum(gradient.numel() for gradient in gradients.values() if not gradient.any())
        assert still < 0.4 * sum(gradient.numel() for gradient in gradients.values())  # what reads x where x is 0


@every_family
def test_a_cloning_that_is_restored_goes_on_to_the_bit(family):
    first, second = (BehaviorCloning(opened(family), BCConfig(lr=1e-2, lr_warmup=1), 10) for _ in range(2))
    batch = Batch({"state": torch.randn(8, 2, 5)}, torch.rand(8, 4, 3))
    for _ in range(2):
        first.update(batch)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for learner in (first, second):
        torch.manual_seed(7)
        learner.update(batch)
    states = [learner.policy.state_dict() | learner.ema.module.state_dict() for learner in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@every_family
def test_a_fine_tuning_that_is_restored_goes_on_to_the_bit(make_agent, fill, family):
    agents = [make_agent(family, 3, lr=1e-3) for _ in range(2)]
    first, second = (PPO(agent, agent.config) for agent in agents)
    first.update(fill(agents[0]), torch.Generator().manual_seed(0))
    agents[1].load_state_dict(copy.deepcopy(agents[0].state_dict()))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    buffers = []
    for agent in agents:
        torch.manual_seed(3)
        buffers.append(fill(agent))
    for learner, buffer in zip((first, second), buffers, strict=True):
        learner.update(buffer, torch.Generator().manual_seed(1))
    one, other = (agent.state_dict() for agent in agents)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("family", "net"), [*((name, "mlp") for name in FAMILIES), *(("meanflow", name) for name in NETS)]
)
def test_from_pictures_a_rescored_chain_has_ratio_1_and_both_losses_reach_the_encoder(family, net):
    policy = opened(family, net, image=IMAGE)
    obs = seen(6)
    policy.loss(policy.encode(obs), torch.rand(6, 4, 3)).mean().backward()
    cloned = sum(p.grad.abs().sum() for p in policy.encoder.visual.parameters() if p.grad is not None)
    assert cloned > 0
    policy.zero_grad()
    actor = make_stochastic(policy, 3)
    scored = scored_dims(actor.num_steps, 4, policy.spec.executed, torch.ones(3).bool())
    with torch.no_grad():
        chain = sample_chain(actor, policy.encode(obs), scored, torch.Generator().manual_seed(0))
    log_prob = chain_log_prob(chain.states, *chain_moments(actor, chain.states, policy.encode(obs)), scored)
    torch.testing.assert_close(log_prob.detach(), chain.log_prob, rtol=1e-4, atol=1e-3)
    log_prob.sum().backward()
    assert sum(p.grad.abs().sum() for p in policy.encoder.visual.parameters() if p.grad is not None) > 0


@every_family
def test_from_pictures_an_agent_starts_at_ratio_1(family):
    policy = opened(family, image=IMAGE)
    agent = ReinFlowAgent.from_policy(policy, freeze_visual_encoder=False)
    view = agent.view(seen(6))
    chain = agent.get_action(view.cond)
    rows = {"means": chain.means, "stds": chain.stds}
    losses = agent.compute_ppo_loss(
        agent.condition(view.stored), chain.states, chain.log_prob, torch.randn(6), torch.zeros(6), **rows
    )
    assert losses["ratio_deviation"] < 1e-4
    assert losses["approx_kl"].abs() < 1e-3
