"""An episode of an evaluation belongs to its seed: nothing that runs beside it, before it or on other cores counts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from reinflow.cli import parse
from reinflow.envs import Builds, EnvConfig, make_env
from reinflow.envs.maniskill import ManiSkillEnv
from reinflow.envs.toy import ToyEnv
from reinflow.envs.workers import WorkerChunkEnv
from reinflow.envs.wrappers import ActionChunk
from reinflow.policies import build_policy
from reinflow.policies.base import Policy
from reinflow.policies.spec import PolicyConfig
from reinflow.training.evaluation import (
    BLOCK,
    Evaluation,
    evaluate,
    in_blocks,
    mean_difference,
    noise_generator,
    paired_difference,
)
from reinflow.types import ChunkEnv, EnvSpec
from tests.test_guide_commands import script

EPISODES, SEED = 20, 10_000
PEG = slice(32, 35)
"""where PegInsertionSide's state holds the peg's half sizes"""


def random_policy(spec: EnvSpec, net: str = "mlp") -> Policy:
    """Untrained, but moving: what it does depends on every number it is given."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"mlp_hidden_dim": 64, "mlp_depth": 2, "unet_dims": (16, 32)}
        config = PolicyConfig.of(net=net, obs_horizon=2, act_horizon=4, pred_horizon=8, **size)
        policy = build_policy(config.for_env(spec, 4))
        policy.fit_normalizers_(torch.randn(64, spec.state_dim), torch.rand(64, spec.action_dim) * 2 - 1)
        for parameter in policy.parameters():
            if parameter.requires_grad and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
    return policy


def toy(num_envs: int, first: int = 0, terminate_on_success: bool = True) -> ActionChunk:
    return ActionChunk(ToyEnv(num_envs, terminate_on_success=terminate_on_success), 4, 2, 1.0)


def maniskill(env_id: str, num_envs: int, num_workers: int, limit: int = 8) -> ChunkEnv:
    pytest.importorskip("mani_skill")
    return make_env(EnvConfig(env_id, num_workers=num_workers, max_episode_steps=limit), num_envs, 4, 2, 1.0)


def same(one: Evaluation, other: Evaluation) -> bool:
    return one.episodes() == other.episodes()


TOYS: dict[str, Callable[[], ChunkEnv]] = {
    "5 envs": partial(toy, 5),
    "20 envs": partial(toy, 20),
    "7 envs": partial(toy, 7),
    "5 envs, 2 workers": lambda: WorkerChunkEnv(toy, 5, 2, 4),
    "20 envs, 4 workers": lambda: WorkerChunkEnv(toy, 20, 4, 4),
}


@pytest.fixture(scope="module")
def expected() -> dict[int, Evaluation]:
    """The toy's episodes one by one, by number of denoising steps."""
    env = toy(1)
    policy = random_policy(env.spec)
    return {k: evaluate(policy, env, episodes=EPISODES, seed=SEED, num_inference_steps=k) for k in (1, 4)}


@pytest.mark.parametrize("make", TOYS.values(), ids=TOYS)
def test_an_episode_is_the_same_among_any_number_of_envs_workers_and_earlier_evaluations(make, expected):
    env = make()
    policy = random_policy(env.spec)
    for steps in (4, 1, 4):
        result = evaluate(policy, env, episodes=EPISODES, seed=SEED, num_inference_steps=steps)
        assert same(result, expected[steps])
    env.close()
    assert len(set(expected[4].return_.tolist())) == EPISODES
    assert expected[4].seed.tolist() == list(range(SEED, SEED + EPISODES))


def test_an_evaluation_that_starts_later_repeats_the_episodes_that_it_shares(expected):
    env = toy(6)
    later = evaluate(random_policy(env.spec), env, episodes=8, seed=SEED + 12, num_inference_steps=4)
    assert later.episodes() == expected[4].episodes()[12:]


@pytest.mark.parametrize(("env_id", "net"), [("PickCube-v1", "unet"), ("PegInsertionSide-v1", "mlp")])
def test_a_simulated_episode_is_the_same_among_any_number_of_envs_and_workers(env_id, net):
    results = []
    for num_envs, num_workers in ((3, 0), (8, 2)):
        env = maniskill(env_id, num_envs, num_workers)
        results += [evaluate(random_policy(env.spec, net), env, episodes=8, seed=SEED) for _ in range(2)]
        env.close()
    assert all(same(result, results[0]) for result in results)
    assert len(set(results[0].return_.tolist())) == 8


class Grasper:
    """PickCube from its state: over the cube, down, close, to the goal; its x_0 shakes the hand a little."""

    training = False
    device = torch.device("cpu")
    spec = SimpleNamespace(act_horizon=2, obs_horizon=1, chunk_shape=(2, 7))
    noise_shape = (2, 7)
    extra: ClassVar[dict[str, int]] = {}

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def act(self, obs: dict[str, Tensor], num_steps: int | None, noise: Tensor) -> Tensor:
        state = obs["state"][:, -1]
        grasped, tcp, goal, to_cube = (
            state[:, part] for part in (slice(18, 19), slice(19, 22), slice(26, 29), slice(36, 39))
        )
        above = to_cube[:, :2].square().sum(1, keepdim=True) < 0.015**2
        near = to_cube.square().sum(1, keepdim=True) < 0.02**2
        hover = to_cube + torch.tensor([0.0, 0.0, 0.08])
        move = torch.where(grasped > 0, goal - tcp, torch.where(above, to_cube, hover)) / 0.1
        gripper = torch.where((grasped > 0) | near, -1.0, 1.0)
        actions = torch.cat((move, torch.zeros(len(state), 3), gripper), 1)[:, None].repeat(1, 2, 1)
        return actions + 0.05 * noise * (torch.arange(7) < 3)


def test_an_episode_with_a_grasp_is_the_same_among_any_number_of_envs_and_workers_and_at_every_repetition():
    results = []
    for num_envs, num_workers in ((20, 0), (5, 2)):
        pytest.importorskip("mani_skill")
        env = make_env(EnvConfig("PickCube-v1", num_workers=num_workers), num_envs, 2, 1, 1.0)
        results += [evaluate(Grasper(), env, episodes=EPISODES, seed=SEED) for _ in range(3)]
        env.close()
    assert results[0].success_once.float().mean() > 0.5
    assert all(same(result, results[0]) for result in results)


def test_every_decision_starts_from_noise_of_its_episode_alone():
    seen: dict[int, list[Tensor]] = {3: [], 5: []}
    for num_envs, noises in seen.items():
        env = toy(num_envs, terminate_on_success=False)
        policy = random_policy(env.spec)
        act = policy.act
        policy.act = lambda obs, num_steps, noise, act=act, noises=noises: (
            noises.append(noise.clone()) or act(obs, num_steps=num_steps, noise=noise)
        )
        evaluate(policy, env, episodes=num_envs, seed=2 * BLOCK)
    few, many = (torch.stack(noises, 1) for noises in seen.values())  # rows, 24 / 4 decisions, chunk
    assert few.shape == (BLOCK, 6, 8, 2)
    assert torch.equal(few[:3], many[:3])
    assert not many[5:].any()
    flat = many[:5].flatten(0, 1).flatten(1)
    assert len({tuple(row) for row in flat.tolist()}) == 5 * 6
    assert torch.equal(few[2].reshape(-1), torch.randn(6, 8, 2, generator=noise_generator(2 * BLOCK + 2)).reshape(-1))


def test_an_episode_is_always_the_same_row_of_a_block_of_the_same_size():
    sizes, places = set(), []

    def double(inputs: dict[str, Tensor]) -> Tensor:
        sizes.add(len(inputs["x"]))
        places.append(inputs["x"].nonzero()[:, 0].tolist())
        return 2 * inputs["x"]

    values = torch.arange(1.0, 11.0)  # ten rows from row 6 on, in blocks of 8: 6, 7, then a whole block
    assert torch.equal(in_blocks(double, {"x": values}, torch.ones(10, dtype=torch.bool), 6, 8), 2 * values)
    assert sizes == {8}
    assert places == [[6, 7], list(range(8))]
    pending = values > 2  # nobody waits for the first block
    assert in_blocks(double, {"x": values}, pending, 6, 8).tolist() == [0, 0, *range(6, 21, 2)]


@pytest.mark.parametrize("net", ["mlp", "unet"])
def test_a_policy_in_blocks_gives_a_row_the_same_bits_whatever_the_other_rows_are(net):
    policy = random_policy(toy(1).spec, net)
    obs, noise = torch.randn(20, 2, 3), torch.randn(20, 8, 2)

    def decide(inputs: dict[str, Tensor]) -> Tensor:
        return policy.act({"state": inputs["state"]}, num_steps=4, noise=inputs["noise"])

    with torch.no_grad():
        everywhere = torch.ones(20, dtype=torch.bool)
        together = in_blocks(decide, {"state": obs, "noise": noise}, everywhere, 5, BLOCK)
        for row in range(20):
            mine = slice(row, row + 1)
            alone = in_blocks(decide, {"state": obs[mine], "noise": noise[mine]}, everywhere[mine], 5 + row, BLOCK)
            assert torch.equal(alone, together[mine])


@pytest.mark.parametrize("env_id", ["PickCube-v1", "StackCube-v1", "PegInsertionSide-v1"])
def test_an_env_with_a_seed_of_its_own_starts_as_a_stock_single_env_with_it(env_id):
    pytest.importorskip("mani_skill")
    import gymnasium

    config = EnvConfig(env_id).completed()
    env = ManiSkillEnv(config, 3, "physx_cpu_batched")
    seeds = [SEED + 2, 7, SEED]
    env.reset(seed=1)
    env.rebuild(seeds)
    frames = env.reset(seed=seeds)["state"]
    stock = gymnasium.make(
        env_id, obs_mode="state", control_mode="pd_ee_delta_pose", sim_backend="physx_cpu", render_backend="none"
    )
    for seed, frame in zip(seeds, frames, strict=True):
        assert torch.equal(stock.reset(seed=seed)[0][0], frame)
    stock.close()
    env.close()


def pegs(env: ChunkEnv, seed: int = 0) -> list[tuple[float, ...]]:
    return [tuple(row) for row in env.reset(seed=seed)["state"][:, -1, PEG].tolist()]


def test_every_env_of_every_worker_and_process_has_a_peg_of_its_own_and_no_evaluation_has_any_of_them():
    pytest.importorskip("mani_skill")
    config, chunk = EnvConfig("PegInsertionSide-v1", num_workers=2), (4, 1, 1.0)
    env = make_env(config, 5, *chunk)
    trained = pegs(env)
    assert pegs(env, seed=SEED) == trained  # a reset keeps them
    env.rebuild(list(range(SEED, SEED + 5)))
    evaluated = pegs(env)
    env.close()
    alone = EnvConfig("PegInsertionSide-v1", num_workers=0)
    second = make_env(alone, 5, *chunk, builds=Builds(first=5))  # of a second process
    more = pegs(second)
    second.rebuild(list(range(SEED + 4, SEED - 1, -1)))
    assert pegs(second) == evaluated[::-1]
    second.close()
    whole = make_env(alone, 10, *chunk)
    assert pegs(whole) == trained + more
    whole.close()
    assert len({*trained, *more, *evaluated}) == 15


def test_training_gets_other_pegs_after_so_many_episodes_and_a_restored_env_has_them_too():
    pytest.importorskip("mani_skill")
    config = EnvConfig("PegInsertionSide-v1", num_workers=0, max_episode_steps=4)
    make = partial(make_env, config, 2, 4, 1, 1.0, builds=Builds(seed=3, every=2))
    env, other = make(), make()
    env.reset(seed=0)
    still = torch.zeros(2, 4, env.spec.action_dim)
    seen = [env.step_chunk(still).obs["state"][:, -1, PEG] for _ in range(4)]
    assert torch.equal(seen[1], seen[2])  # 2 episodes with each peg: the second is drawn at the end of the second
    assert not (seen[0] == seen[1]).any()
    assert not (seen[2] == seen[3]).any()
    restored = other.restore(env.state())
    assert torch.equal(restored["state"][:, -1, PEG], seen[3])
    for one in (env, other):
        one.close()


def test_an_episode_that_still_runs_when_the_geometry_changes_is_truncated():
    class Counting(ToyEnv):
        built = 0

        def rebuild(self, seeds: list[int] | None = None) -> None:
            self.built += 1

    inner = Counting(2, terminate_on_success=True)
    env = ActionChunk(inner, 4, 1, 1.0, rebuild_every=1)
    env.reset(seed=0)
    inner.position[0] = inner.goal[0] - torch.tensor([0.1, 0.0])  # the first is one step away from its goal
    step = env.step_chunk(torch.tensor([0.5, 0.0]).expand(2, 4, 2))
    assert step.terminated.tolist() == [True, False]
    assert step.truncated.tolist() == [False, True]
    assert inner.built == 1
    assert env.stats.length.tolist() == [0, 0]
    assert not torch.equal(step.obs["state"], step.final_obs["state"])


def test_paired_difference_by_hand():
    # 10 pairs: the second wins 4 and loses 1. With half an episode in each outcome: 4.5 and 1.5 of 12,
    # variance (6 - 3^2 / 12) / 12^2 = 5.25 / 144
    first = torch.tensor([False] * 4 + [True] * 6)
    second = torch.tensor([True] * 4 + [False] + [True] * 5)
    difference, half = paired_difference(first, second)
    assert difference == pytest.approx(0.3)
    assert half == pytest.approx(1.96 * math.sqrt(5.25) / 12)
    assert paired_difference(first, first)[1] > 0  # no differences seen are not none


def test_mean_difference_by_hand():
    # gaps 1, 2, 3: mean 2, std 1, over the root of 3
    difference = mean_difference(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 4.0]))
    assert difference == pytest.approx((2.0, 1.96 / math.sqrt(3)))


def test_the_interval_of_pairs_holds_the_truth_in_95_of_100_experiments():
    # of 60 pairs each, both solved 60 %, only the second 20 %, only the first 10 %: 10 points more
    generator = torch.Generator().manual_seed(0)
    kinds = torch.multinomial(torch.tensor([0.6, 0.2, 0.1, 0.1]), 60 * 2000, True, generator=generator).view(2000, 60)
    covered = 0
    for kind in kinds:
        difference, half = paired_difference((kind == 0) | (kind == 2), kind <= 1)
        covered += abs(difference - 0.1) <= half
    assert 0.93 <= covered / 2000 <= 0.98


def test_the_seeds_that_report_are_not_those_that_choose_checkpoints():
    chosen = parse(script("train_online_finetune").Config, []).evaluation.eval_seed
    reported = parse(script("evaluate").Config, []).evaluation.eval_seed
    assert len({chosen, reported, script("quickstart").EVAL_SEED}) == 3
    assert min(abs(reported - chosen), abs(reported - script("quickstart").EVAL_SEED)) >= 10_000


def test_evaluations_are_written_episode_by_episode_and_compared_pair_by_pair(tmp_path, monkeypatch, capsys):
    module = script("evaluate")
    spec = toy(1).spec
    policies = {"first": random_policy(spec), "second": random_policy(spec)}
    monkeypatch.setattr(module, "loaded", lambda path, config: (policies[path.stem], spec, None))
    monkeypatch.setattr("reinflow.storage.checkpoint.resolve_checkpoint", lambda path: tmp_path / f"{path}.pt")
    flags = ["--num_eval_envs", "4", "--num_eval_episodes", "6", "--no-cuda"]
    module.main(parse(module.Config, ["--compare", "first", "second", *flags]))
    report = json.loads((tmp_path / "comparison.json").read_text())
    assert report["differences"]["return"] == {"difference": 0.0, "half_interval": 0.0}
    assert report["results"][0]["per_episode"] == report["results"][1]["per_episode"]
    module.main(parse(module.Config, ["--checkpoint", "second", *flags]))
    rows = json.loads((tmp_path / "evaluation.json").read_text())["results"][0]["per_episode"]
    assert rows == report["results"][1]["per_episode"]
    assert [row["seed"] for row in rows] == list(range(30_000, 30_006))
    assert set(rows[0]) == {"seed", "success_once", "success_at_end", "return", "length", "best_reward"}
    assert "of the same 6 episodes" in capsys.readouterr().out
