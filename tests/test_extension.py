"""Adding a policy family, a backbone, an env suite or a data format is one file (`tests/toys`) and one line (`TOYS`).

With nothing else they go through the command line, all stages, checkpoints, resume, evaluation and the contracts.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
import train_shortcut_flow
from reinflow.cli import parse
from reinflow.data.config import DemoConfig
from reinflow.data.demos import open_demos
from reinflow.data.formats import FORMATS
from reinflow.envs import EnvConfig, make_env
from reinflow.envs.seeding import worker_seed
from reinflow.envs.suite import SUITES
from reinflow.errors import UserError
from reinflow.policies import FAMILIES, NETS, PolicySpec, build_policy
from reinflow.run.status import read_status
from reinflow.runtime import interrupts
from reinflow.storage.checkpoint import load_checkpoint
from tests.envs import test_chunk_contract as envs
from tests.nets import test_velocity_nets as nets
from tests.policies import test_policy_contract
from tests.small import EVALUATION, OFFLINE, ONLINE, SCRIPTS, STAGES
from tests.test_resume import assert_equal, stop_at
from tests.toys import backbone, data_format, family, suite

TOYS = [(FAMILIES, "skewed", family.ENTRY), (NETS, "shallow", backbone.ENTRY),
        (SUITES, "ridge", suite.ENTRY), (FORMATS, "json", data_format.ENTRY)]  # fmt: skip
POLICY = ["--family", "skewed", "--skew", "2", "--net", "shallow", "--shallow_dim", "8",
          "--obs_horizon", "2", "--act_horizon", "4", "--pred_horizon", "8"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def added() -> Iterator[None]:
    torch.set_num_threads(1)
    with ExitStack() as stack:
        for registry, name, entry in TOYS:
            stack.enter_context(registry.having(name, entry))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, added: None) -> Path:
    """One run of each stage, `stage1` to `stage3`, each from the one before."""
    folder = tmp_path_factory.mktemp("ridge")
    data_format.write_episodes(folder / "ridge.json")
    for stage in STAGES:
        run(folder, stage, f"stage{stage}")
    return folder


def run(folder: Path, stage: int, name: str, *more: str) -> None:
    """A stage's script, without its output."""
    words = ["--exp_name", name, "--runs_dir", str(folder / "runs"), "--no-cuda", "--num_workers", "0", *EVALUATION]
    if stage == 1:
        words += ["--env_id", "Ridge-v0", *POLICY]
    else:
        words += ["--pretrained_path", str(folder / "runs" / f"stage{stage - 1}")]
    words += ONLINE if stage == 3 else ["--demo_path", str(folder / "ridge.json"), *OFFLINE]
    script = importlib.import_module(SCRIPTS[stage])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        script.main(parse(script.Config, [*more] if more else words))


def test_their_flags_exist_where_they_are_chosen_and_nowhere_else(capsys):
    with pytest.raises(SystemExit):
        parse(train_shortcut_flow.Config, [*POLICY, "--help"])
    shown = capsys.readouterr().out
    assert "--skew" in shown
    assert "--shallow_dim" in shown
    assert "--mlp_hidden_dim" not in shown
    with pytest.raises(UserError, match="--skew belongs to --family skewed and this is --family shortcut"):
        parse(train_shortcut_flow.Config, ["--skew", "2"])
    with pytest.raises(SystemExit):
        parse(train_shortcut_flow.Config, ["--family", "skewed", "--skew", "-1"])
    assert "--skew -1.0 must be above 0" in capsys.readouterr().err


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_every_stage_holds_the_choices_and_what_its_task_is_ranked_by(folder, stage):
    checkpoint = load_checkpoint(folder / "runs" / f"stage{stage}")
    spec = checkpoint.policy_spec
    assert (spec.family_options, spec.net_options) == (family.SkewedConfig(2.0), backbone.ShallowConfig(8))
    assert (checkpoint.env_spec.env_id, checkpoint.env_spec.headline) == ("Ridge-v0", "return")
    build_policy(spec).load_state_dict(checkpoint.policy_state, strict=True)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_best_checkpoint_is_the_one_of_the_highest_return(folder, stage):
    path = folder / "runs" / f"stage{stage}"
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    returns = {line["step"]: line["eval/return"] for line in lines if "eval/return" in line}
    assert len(set(returns.values())) > 1
    assert load_checkpoint(path).meta["step"] == max(returns, key=returns.__getitem__)
    status = read_status(path / "status.json")
    assert (status["headline"], status["best_return"]) == ("return", max(returns.values()))
    assert lines[-1]["eval/best_return"] == status["best_return"]
    assert (status["state"], status["best_success"]) == ("done", 0)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_run_goes_on_to_the_bit(folder, monkeypatch, stage):
    name = f"stopped{stage}"
    monkeypatch.setattr(interrupts, "check", stop_at(9, signal.SIGTERM))
    with pytest.raises(interrupts.Interrupted):
        run(folder, stage, name)
    monkeypatch.undo()
    run(folder, stage, name, "--resume", str(folder / "runs" / name))
    assert_equal(folder, f"stage{stage}", name)


def test_an_evaluation_of_the_checkpoint_needs_no_flag(folder, tmp_path):
    words = ["--checkpoint", str(folder / "runs" / "stage3"), "--num_inference_steps", "1", "2", "--num_workers", "0"]
    words += ["--num_eval_episodes", "3", "--num_eval_envs", "3", "--output_dir", str(tmp_path), "--no-cuda"]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluate.main(parse(evaluate.Config, words))
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert [row["num_inference_steps"] for row in report["results"]] == [1, 2]
    assert (tmp_path / "evaluation.png").exists()


def test_the_demonstrations_of_another_format_keep_their_falls_whatever_success_does(tmp_path):
    config = DemoConfig(demo_path=str(data_format.write_episodes(tmp_path / "ridge")))
    for flag in (False, True):
        task = EnvConfig("Ridge-v0", terminate_on_success=flag).completed()
        demos = open_demos(config, task, need_rewards=True)
        assert [bool(one.terminated[-1]) for one in demos.trajectories] == [False, True] * 3
        assert all(not one.terminated[:-1].any() for one in demos.trajectories)
    (tmp_path / "other").write_text("[]")
    with pytest.raises(UserError, match="another format than maniskill, .*, json"):
        open_demos(DemoConfig(demo_path=str(tmp_path / "other")), task)


def test_actions_outside_the_bounds_of_the_suites_task_are_clipped(tmp_path, capsys):
    path = data_format.write_episodes(tmp_path / "ridge", count=2)
    env = make_env(EnvConfig("Ridge-v0", num_workers=0), 1, 4, 2, 1.0)
    demos = open_demos(DemoConfig(demo_path=str(path)), EnvConfig("Ridge-v0").completed())
    demos.trajectories[1].actions[0] = 2.1
    demos.fit_(env.spec)
    assert demos.trajectories[1].actions[0] == 2
    assert "up to 2.10 in dimension 0, whose bounds are [-2, 2]" in capsys.readouterr().out


ENV_FACTS = [envs.test_shapes_dtypes_and_devices, envs.test_a_seed_repeats_everything_also_after_the_restart_within,
             envs.test_the_time_limit_truncates_inside_a_chunk_and_restarts_once,
             envs.test_start_states_differ_between_envs_also_after_a_restart,
             envs.test_results_stay_as_they_are_when_the_env_moves_on,
             envs.test_actions_of_another_shape_are_refused]  # fmt: skip


def test_its_envs_hold_the_contract_in_one_process_and_in_workers():
    for workers in (0, 1):
        config = EnvConfig("Ridge-v0", max_episode_steps=envs.LIMIT, num_workers=workers).completed()
        env = make_env(config, 4, envs.CHUNK, envs.FRAMES, envs.GAMMA)
        part = (partial(suite.RidgeEnv, 4, envs.LIMIT), partial(worker_seed, worker=0))
        try:
            for fact in ENV_FACTS:
                fact(env)
            case = envs.Case(config, 4, [part])
            envs.test_every_number_equals_a_brute_force_loop_over_the_envs_of_one_process(case, env)
        finally:
            env.close()


def test_a_fall_ends_an_episode_without_the_flag_of_success():
    env = make_env(EnvConfig("Ridge-v0", num_workers=0), 1, 8, 1, 1.0)
    env.reset(seed=0)
    # a full push moves .2, so that from within .1 of the ridge the edge at 1 is passed in the fifth step or sooner
    step = env.step_chunk(torch.full((1, 8, 1), 2.0))
    assert (step.terminated.item(), step.truncated.item()) == (True, False)
    assert step.executed.item() <= 5


def make_policy(family: str = "skewed", net: str = "shallow", **changes: Any):
    sizes = {"state_dim": 5, "action_dim": 3, "obs_horizon": 2, "act_horizon": 4, "pred_horizon": 8}
    torch.manual_seed(0)
    policy = build_policy(PolicySpec.of(family=family, net=net, **sizes | changes))
    policy.fit_normalizers_(3 + 2 * torch.randn(200, 5), 5 + 2 * torch.rand(200, 3))
    return policy


@pytest.mark.parametrize(("name", "net"), [("skewed", "mlp"), ("shortcut", "shallow"), ("skewed", "shallow")])
def test_family_and_backbone_hold_the_contract_of_all(name, net):
    contract = test_policy_contract
    for fact in (
        contract.test_a_regressable_policy_gives_one_loss_per_row_and_reaches_its_network,
        contract.test_a_samplable_policy_is_a_differentiable_function_of_its_noise_and_condition,
        contract.test_every_family_becomes_stochastic_for_ppo,
        contract.test_a_checkpoint_restores_weights_and_normalisers,
    ):
        fact(make_policy, name, net)
    contract.test_actions_are_executed_steps_in_env_units_inside_the_demonstrated_range(make_policy, name)


def test_the_backbone_holds_the_contract_of_velocity_nets():
    def make(horizon: int) -> backbone.Shallow:
        torch.manual_seed(0)
        return backbone.Shallow(nets.A, horizon, nets.Z, backbone.ShallowConfig())

    nets.test_output_has_the_shape_of_the_chunk(make, 8)
    for fact in (
        nets.test_jvp_in_time_is_the_finite_difference_and_not_zero,
        nets.test_a_chain_step_by_step_equals_its_grid,
        nets.test_no_net_looks_at_a_value_so_a_cuda_graph_can_hold_it,
        nets.test_blocks_are_called_once_each_in_their_order_and_carry_the_state_of_the_net,
        nets.test_rows_do_not_mix,
        nets.test_every_parameter_receives_a_gradient,
    ):
        fact(make)
