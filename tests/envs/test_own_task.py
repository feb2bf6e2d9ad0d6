"""The page on a task of one's own: its module and its commands, run in small; and tasks that don't batch."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from reinflow import presets
from reinflow.cli import run_script
from reinflow.envs import make_env
from reinflow.envs.arguments import EnvArguments
from reinflow.envs.config import EnvConfig
from reinflow.errors import UserError
from reinflow.storage.checkpoint import load_checkpoint
from tests.test_guide_commands import script

pytest.importorskip("mani_skill")

PAGE = (Path(__file__).resolve().parents[2] / "docs/own_tasks.md").read_text()
MODULE = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
EVALUATION = "--num_eval_envs 2 --num_eval_episodes 2 --max_episode_steps 8 --num_workers 0"
OFFLINE = f"--total_iters 8 --batch_size 16 {EVALUATION}"
SMALLER = {
    "collect_demos": "--num_demos 4",
    "train_shortcut_flow": f"--mlp_hidden_dim 32 {OFFLINE}",
    "train_aw_shortcut_flow": OFFLINE,
    "train_online_finetune": "--num_envs 2 --rollout_steps 2 --total_timesteps 32 --minibatch_size 4 "
    f"--critic_warmup_steps 10 {EVALUATION}",
    "evaluate": EVALUATION.replace("--num_workers 0", "--num_workers 1"),
}
PRESETS = {"train_shortcut_flow": presets.CLONING_PRESETS, "train_aw_shortcut_flow": presets.WEIGHTED_PRESETS}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory whose modules are forgotten afterwards."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    torch.set_num_threads(threads)


def test_the_pages_task_passes_all_stages_with_the_pages_commands(here):
    (here / "touch_cube.py").write_text(MODULE)
    for command in COMMANDS:
        _, file, *words = shlex.split(command)
        name = file.removesuffix(".py")
        module = script(name)
        argv = [*words, *SMALLER.pop(name).split()]
        run_script(module.main, module.Config, presets=PRESETS.get(name), argv=argv)
    assert SMALLER == {}
    env = load_checkpoint("runs/reinflow-TouchCube-v1-seed0").env_spec
    assert (env.env_id, env.env_module, env.sim_backend) == ("TouchCube-v1", "touch_cube", "physx_cpu_batched")
    assert json.loads((here / "runs/reinflow-TouchCube-v1-seed0/evaluation.json").read_text())["results"]


TASKS = """
from mani_skill.envs.tasks.tabletop.pick_cube import PickCubeEnv
from mani_skill.utils.registration import register_env

@register_env("Single-v1", max_episode_steps=20)
class Single(PickCubeEnv):
    def evaluate(self):
        info = super().evaluate()
        if info["success"]:
            info["fail"] = ~info["success"]
        return info

@register_env("Ranked-v1", max_episode_steps=20)
class Ranked(PickCubeEnv):
    def __init__(self, *args, bonus=0.0, **kwargs):
        self.bonus = bonus
        super().__init__(*args, **kwargs)

    def compute_normalized_dense_reward(self, obs, action, info):
        reward = super().compute_normalized_dense_reward(obs, action, info)
        return self.bonus + reward - reward.mean()
"""


def test_a_task_that_does_not_batch_is_named_with_the_reason_and_runs_in_stock_envs(here, capsys):
    (here / "of_mine.py").write_text(TASKS)
    bonus = EnvArguments(env_kwargs='{"bonus": 7}')
    env = make_env(EnvConfig("of_mine:Ranked-v1", num_workers=0, arguments=bonus), 2, 2, 1, 1.0)
    env.reset(seed=0)
    # alone, the mean of the rewards is the reward itself
    assert env.step_chunk(torch.zeros(2, 2, env.spec.action_dim)).reward.tolist() == [14.0, 14.0]
    assert (env.spec.sim_backend, env.spec.env_kwargs) == ("physx_cpu", {"bonus": 7})
    env.close()
    assert "Ranked-v1 does something else in several scenes than in one; using stock" in capsys.readouterr().out
    make_env(EnvConfig("of_mine:Single-v1", num_workers=0), 1, 2, 1, 1.0).close()
    said = capsys.readouterr().out
    assert re.search(r"Single-v1 does not run in several scenes at once \(RuntimeError: .*of_mine\.py, line 9\)", said)
    with pytest.raises(UserError, match="unexpected keyword argument 'bonsu'"):
        make_env(EnvConfig("Ranked-v1", num_workers=0, arguments=EnvArguments(env_kwargs='{"bonsu": 7}')), 1, 2, 1, 1.0)
