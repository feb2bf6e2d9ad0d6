"""A task of one's own and arguments of its envs: what the flags mean, and what is refused in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reinflow.data.demos import compare_arguments
from reinflow.data.formats.maniskill import own_kwargs
from reinflow.envs.arguments import EnvArguments, register
from reinflow.envs.config import EnvConfig, canonical_backend
from reinflow.envs.maniskill_suite import refuse_missing_gpu
from reinflow.envs.workers import cause_of_death
from reinflow.errors import UserError
from reinflow.specs import EnvSpec

ROOT = Path(__file__).resolve().parents[2]


def spec(**changes) -> EnvSpec:
    fixed = {"env_id": "PickCube-v1", "obs_mode": "state", "control_mode": "pd_ee_delta_pose", "reward_mode": "dense"}
    bounds = {"action_low": (-1.0,), "action_high": (1.0,)}
    return EnvSpec(**fixed, **bounds, sim_backend="physx_cpu", state_dim=1, max_episode_steps=50, **changes)


def test_flags_and_json_are_one_set_of_arguments():
    flags = EnvArguments(env_kwargs='{"reach": 0.5}', robot_uids="fetch", image_size=64)
    kwargs = {"reach": 0.5, "robot_uids": "fetch", "sensor_configs": {"width": 64, "height": 64}}
    assert flags.kwargs == kwargs
    complete = flags.completed()
    assert complete == EnvArguments(env_kwargs=json.dumps(kwargs, sort_keys=True))
    assert complete.completed() == complete
    assert EnvArguments().completed() == EnvArguments()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"env_kwargs": "{'a': 1}"}, "with double quotes"),
        ({"env_kwargs": "[1]"}, "no JSON object"),
        ({"sensor_configs": "wide"}, "--sensor_configs wide is no JSON object"),
        ({"env_kwargs": '{"obs_mode": "rgb"}'}, "use --obs_mode"),
        ({"env_kwargs": '{"robot_uids": "panda"}', "robot_uids": "fetch"}, "--robot_uids fetch contradicts robot_uids"),
        ({"sensor_configs": '{"width": 32}', "image_size": 64}, "--image_size 64 contradicts width 32"),
        ({"image_size": 0}, "pass at least 1"),
    ],
)
def test_what_can_not_be_meant_is_one_sentence(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        EnvArguments(**flags).completed()


def test_a_later_stage_takes_module_and_arguments_from_the_checkpoint_and_says_what_it_changes(capsys):
    trained = spec(env_module="json", env_kwargs={"reach": 0.02, "robot_uids": "panda"})
    same = EnvConfig().completed(trained)
    assert same.arguments.env_module == "json"
    assert same.arguments.kwargs == {"reach": 0.02, "robot_uids": "panda"}
    assert capsys.readouterr().out == ""
    harder = EnvConfig(arguments=EnvArguments(env_kwargs='{"reach": 0.01, "mass": 2}')).completed(trained)
    assert harder.arguments.kwargs == {"reach": 0.01, "robot_uids": "panda", "mass": 2}
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "note: reach is 0.01 here, and the checkpoint was trained with reach 0.02",
        "note: mass is 2 here, and the checkpoint was trained with the task's own mass",
    ]
    with pytest.raises(UserError, match="--robot_uids fetch contradicts the checkpoint, which was trained with robot_"):
        EnvConfig(arguments=EnvArguments(robot_uids="fetch")).completed(trained)


def test_demonstrations_of_another_value_are_refused_and_of_an_unknown_one_warned_about(capsys):
    recorded = own_kwargs({"obs_mode": "state", "sim_backend": "cpu", "num_envs": 1, "reach": 0.02, "mass": 1})
    assert recorded == {"reach": 0.02, "mass": 1}
    compare_arguments(recorded, {"reach": 0.02, "robot_uids": "fetch", "sensor_configs": {"width": 1}}, Path("a.h5"))
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "warning: a.h5 was recorded with mass: pass --env_kwargs '{\"mass\": 1}' for the same",
        'warning: a.h5 does not say that it was recorded with robot_uids "fetch"',
    ]
    with pytest.raises(UserError, match=r"recorded with reach 0\.02, not 0\.5"):
        compare_arguments(recorded, {"reach": 0.5}, Path("a.h5"))


def test_simulators_have_the_names_of_maniskill_too():
    names = {"cpu": "physx_cpu_batched", "gpu": "physx_cuda", "cuda:1": "physx_cuda:1", "physx_cuda:0": "physx_cuda:0"}
    assert {name: canonical_backend(name) for name in names} == names
    assert EnvConfig("Toy-v0", sim_backend="gpu").completed().sim_backend == "physx_cuda"
    for wrong in ("physx", "physx_cpu:1", "gpu:first", "physx_cuda:"):
        with pytest.raises(UserError, match=f"--sim_backend {wrong} is unknown: use auto"):
            canonical_backend(wrong)


def test_a_task_may_be_named_with_its_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_me.py").write_text("LOADED = True\n")
    config = EnvConfig("beside_me:Toy-v0").completed()
    assert (config.env_id, config.arguments.env_module) == ("Toy-v0", "beside_me")
    assert sys.modules.pop("beside_me").LOADED
    both = EnvConfig("beside_me:Toy-v0", arguments=EnvArguments(env_module="other"))
    with pytest.raises(UserError, match="names another module than --env_module other"):
        both.completed()


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("nowhere.to.be_found", "not on Python's path: start from the folder that holds it"),
        ("my_envs/task.py", r"name the module as Python imports it, such as my_envs\.task"),
        ("needs_more", "imports a_package_of_nobody, which is not installed"),
        ("broken", r"can't be imported \(ZeroDivisionError: division by zero, in .*broken\.py, line 2\): mend it"),
    ],
)
def test_a_module_that_does_not_import_is_one_sentence(tmp_path, monkeypatch, module, sentence):
    (tmp_path / "needs_more.py").write_text("import a_package_of_nobody\n")
    (tmp_path / "broken.py").write_text("\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(UserError, match=sentence):
        register(module)


STDIN = """
from reinflow.envs import EnvConfig, make_env
from reinflow.envs.suite import SUITES
from tests.toys.suite import ENTRY
SUITES.add("ridge", ENTRY)
env = make_env(EnvConfig("Ridge-v0", num_workers=1), 2, 4, 1, 1.0)
print(tuple(env.reset(seed=0)["state"].shape))
env.close()
"""


def test_workers_start_for_a_script_of_standard_input_that_guards_nothing():
    done = subprocess.run([sys.executable], input=STDIN, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["(2, 1, 1)"], done.stderr


def test_what_ended_a_worker_is_told_from_its_exit_code():
    assert cause_of_death(-9) == "killed from outside, most often for memory: lower --num_envs"
    assert "by SIGSEGV: a crash" in cause_of_death(-11)
    assert "exit code 1: its own error stands above" in cause_of_death(1)


def test_a_gpu_that_is_not_there_is_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    refuse_missing_gpu("physx_cuda:0")
    with pytest.raises(UserError, match="--sim_backend physx_cuda:1 needs a CUDA GPU and only 1 is visible"):
        refuse_missing_gpu("physx_cuda:1")
