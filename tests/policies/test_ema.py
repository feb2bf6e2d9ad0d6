"""The moving average of the weights."""

from __future__ import annotations

import torch

from reinflow.policies.ema import EMA


def fill_(policy, value):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(value)


def first_weight(policy):
    return next(policy.parameters()).flatten()[0].item()


def test_warm_up_by_hand(make_policy):
    policy = make_policy()
    fill_(policy, 0.0)
    ema = EMA(policy, decay=0.15)
    fill_(policy, 1.0)
    # decay min(.15, 1/10) = .1: 0 * .1 + 1 * .9 = .9;  then min(.15, 2/11 = .18) = .15: .9 * .15 + 1 * .85 = .985
    ema.update(policy)
    assert abs(first_weight(ema.module) - 0.9) < 1e-6
    ema.update(policy)
    assert abs(first_weight(ema.module) - 0.985) < 1e-6


def test_the_average_takes_normalisers_as_they_are_and_no_gradient(make_policy):
    policy = make_policy()
    ema = EMA(policy)
    policy.action_normalizer.fit_(torch.rand(10, 3))
    ema.update(policy)
    assert torch.equal(ema.module.action_normalizer.scale, policy.action_normalizer.scale)
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())


def test_a_restored_average_goes_on_as_the_uninterrupted_one(make_policy):
    policy = make_policy()
    ema = EMA(policy)
    fill_(policy, 1.0)
    ema.update(policy)
    restored = EMA(make_policy())
    restored.load_state_dict(ema.state_dict())
    for average in (ema, restored):
        average.update(policy)
    assert first_weight(ema.module) == first_weight(restored.module)
    assert restored.updates == 2
