"""Actions over x_0: one mode or several, however wide, and the alarm where a smaller scale averages them."""

from __future__ import annotations

import pytest
import torch

from reinflow.algos.bc import BehaviorCloning
from reinflow.algos.config import BCConfig
from reinflow.data.chunks import ChunkDataset
from reinflow.envs.wrappers import ActionChunk
from reinflow.policies import PolicySpec, build_policy
from reinflow.policies.base import Policy
from reinflow.policies.spread import LONELY, action_spread, loneliness
from reinflow.training.evaluation import evaluate
from tests.fork import ForkEnv, fork_demos

SPEC = PolicySpec.of(
    net="mlp", state_dim=3, action_dim=2, obs_horizon=1, act_horizon=4, pred_horizon=4, num_inference_steps=4,
    mlp_hidden_dim=128, mlp_depth=2,
)  # fmt: skip


def test_the_distance_to_the_second_neighbour_per_the_clouds_own_by_hand():
    # of 0, 1, 2, 10 on a line the second neighbours are 2, 1, 2, 9 away: median 2 (torch takes the lower middle);
    # of 5 they are 3 (at 2) and 4 (at 1) away, so 4 / 2
    cloud, points = torch.tensor([[[0.0], [1.0], [2.0], [10.0]]]), torch.tensor([[[5.0]]])
    assert loneliness(cloud, points, neighbour=2).tolist() == [[2.0]]


@pytest.mark.parametrize("dims", [4, 16, 64])
@pytest.mark.parametrize("std", [1e-3, 1.0])
def test_the_centre_of_one_mode_is_not_lonely_and_the_middle_of_two_is(dims, std):
    generator = torch.Generator().manual_seed(0)
    one = std * torch.randn(64, 48, dims, generator=generator)
    two = one + torch.where(torch.arange(48) % 2 == 0, 8 * std, -8 * std)[:, None]
    centre = torch.zeros(64, 1, dims)
    assert (loneliness(one, centre) < LONELY).all()
    assert (loneliness(two, centre) > LONELY).all()


def test_the_spread_of_a_flow_that_returns_its_noise_by_hand(make_policy):
    # a velocity of 0 leaves x_1 = x_0, clipped at 1: std of clip(N(0, 1), -1, 1) is .718; demonstrations of +-1 have 1
    policy = make_policy()
    for parameter in policy.net.parameters():
        torch.nn.init.zeros_(parameter)
    policy.action_normalizer.fit_(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    chunk = torch.where(torch.arange(200) % 2 == 0, 1.0, -1.0)[:, None, None].expand(200, 8, 3)
    spread = action_spread(policy, {"state": torch.zeros(200, 2, 5)}, chunk)
    assert spread.over_x_0 == pytest.approx(0.718, abs=0.01)
    assert spread.lonely == 0


def cloned(left: float, iterations: int) -> tuple[Policy, ChunkDataset]:
    torch.manual_seed(0)
    dataset = fork_demos(256, noise=0.3, left=left)
    policy = build_policy(SPEC)
    policy.fit_normalizers_(*dataset.statistics())
    learner = BehaviorCloning(policy, BCConfig(lr=1e-3), iterations)
    for _ in range(iterations):
        learner.update(dataset.sample(256))
    return learner.ema.module, dataset


def test_between_two_ways_around_an_obstacle_the_centre_crashes_and_the_alarm_says_so():
    policy, dataset = cloned(left=0.5, iterations=1000)
    env, windows, success = ActionChunk(ForkEnv(128), 4, 1, 1.0), dataset.overview(), {}
    spread = action_spread(policy, windows.obs, windows.chunk)
    for scale in (0.0, 1.0):
        policy.spec = policy.spec.starting_with(scale)
        success[scale] = evaluate(policy, env, episodes=256, seed=1).metrics()["eval/success_once"]
        assert action_spread(policy, windows.obs, windows.chunk) == spread
    assert success[0.0] < success[1.0] - 0.2
    assert "--initial_noise_scale 1" in spread.warning(0.0)
    assert spread.warning(1.0) is None


def test_one_way_around_it_raises_no_alarm():
    policy, dataset = cloned(left=1.0, iterations=300)
    windows = dataset.overview()
    assert action_spread(policy, windows.obs, windows.chunk).warning(0.0) is None
