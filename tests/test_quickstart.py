"""The quick start's steps are commands that the scripts take, one after the other; its folder is its own."""

from __future__ import annotations

import json
import os

import pytest

from reinflow import presets
from reinflow.cli import parse
from reinflow.errors import UserError
from tests.test_guide_commands import script

PRESETS = {
    "collect_demos.py": {},
    "train_shortcut_flow.py": presets.CLONING_PRESETS,
    "train_aw_shortcut_flow.py": presets.WEIGHTED_PRESETS,
    "train_online_finetune.py": presets.ONLINE_PRESETS,
}
ROW = {"success_once": 0.5, "success_at_end": 0.25, "return": 1.0}


@pytest.mark.parametrize(("net", "env_steps"), [("unet", 330_000), ("mlp", 250_000)])
def test_every_step_parses_and_continues_from_the_one_before(tmp_path, monkeypatch, capsys, net, env_steps):
    module, configs = script("quickstart"), {}

    def parsed(commands: list[str], title: str, command: list[str]) -> None:
        name, *flags = command
        configs[name] = parse(script(name.removesuffix(".py")).Config, flags, presets=PRESETS[name])
        (tmp_path / "quick" / "demos").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(module, "step", parsed)
    monkeypatch.setattr(module, "evaluation", lambda commands, run, config: ROW)
    monkeypatch.setattr(module, "import_what_all_steps_need", lambda: None)
    module.main(module.Config(net=net, output_dir=str(tmp_path / "quick"), film=False))

    demos, clone, weighted, online = (configs[name] for name in PRESETS)
    assert list(configs) == list(PRESETS)
    assert clone.demos.demo_path == weighted.demos.demo_path == (demos.output,)
    assert clone.policy.net == net
    assert weighted.pretrained_path == f"{clone.run.runs_dir}/{clone.run.exp_name}"
    assert online.pretrained_path == f"{weighted.run.runs_dir}/{weighted.run.exp_name}"
    assert online.online.total_timesteps == env_steps
    assert capsys.readouterr().out.count("50.0%") == 3
    assert len(json.loads((tmp_path / "quick" / "summary.json").read_text())["results"]) == 3
    assert (tmp_path / "quick" / "report.html").read_text().count("50.0%") == 3


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("five years")
    module = script("quickstart")
    with pytest.raises(UserError, match="not an earlier quick start"):
        module.main(module.Config(output_dir=str(tmp_path)))
    assert (tmp_path / "thesis.tex").exists()


def test_a_step_is_a_process_of_its_own_and_its_exit_code_ends_the_quick_start(tmp_path, monkeypatch):
    module = script("quickstart")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    seen = tmp_path / "seen"
    told = f"open({str(seen)!r}, 'w').write(f'{{os.getpid()}} {{sys.argv[1:]}}')"
    (tmp_path / "fine.py").write_text(f"import os, sys; {told}")
    (tmp_path / "refused.py").write_text("raise SystemExit(2)")
    commands: list[str] = []
    module.step(commands, "Fine", ["fine.py", "--x", "a b"])
    assert commands == ["python fine.py --x 'a b'"]
    process, _, words = seen.read_text().partition(" ")
    assert int(process) != os.getpid()
    assert words == "['--x', 'a b']"
    with pytest.raises(SystemExit) as ended:
        module.step(commands, "Refused", ["refused.py"])
    assert ended.value.code == 2
