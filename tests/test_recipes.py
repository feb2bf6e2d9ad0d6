"""Every configuration name and every command of the DMPO guide parses, and sets what it says."""

from __future__ import annotations

import importlib
import re
import shlex
from functools import partial
from pathlib import Path

import pytest

from reinflow import presets
from reinflow.cli import flat_fields, parse, with_flags
from reinflow.errors import UserError
from reinflow.policies import PolicySpec
from reinflow.recipes import ELSEWHERE, ExpectedPolicy, flags_of

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "recipes.md").read_text()
SCRIPTS = {"pre": "train_shortcut_flow", "ft": "train_online_finetune", "eval": "evaluate"}
PRESETS = {"pre": presets.CLONING_PRESETS, "ft": presets.ONLINE_PRESETS, "eval": {}}

PRE = str.split("""meanflow_dispersive_mlp_img improved_meanflow_dispersive_mlp meanflow_mlp_img meanflow_mlp
    meanflow_dispersive_mlp improved_meanflow_mlp reflow_mlp_img reflow_mlp shortcut_mlp_img shortcut_mlp
    shortcut_dispersive_mlp_img shortcut_dispersive_cosine_mlp_img shortcut_dispersive_hinge_mlp_img
    shortcut_dispersive_covariance_mlp_img consistency_mlp_img diffusion_mlp_img diffusion_mlp diffusion_unet_img
    diffusion_unet gaussian_mlp_img gaussian_mlp gmm_mlp gaussian_transformer gmm_transformer""")
FT = str.split("""ppo_meanflow_mlp_img ppo_meanflow_mlp ppo_reflow_mlp_img ppo_reflow_mlp ppo_shortcut_mlp_img
    ppo_shortcut_mlp ppo_diffusion_mlp_img ppo_diffusion_mlp ppo_diffusion_unet_img ppo_diffusion_unet ppo_ddim_mlp
    ppo_gaussian_mlp_img ppo_gaussian_mlp ppo_gmm_mlp ppo_gaussian_transformer ppo_gmm_transformer
    ppo_exact_diffusion_mlp""")
EVAL = str.split("""meanflow_mlp_img meanflow_mlp_img_stage2 meanflow_mlp reflow_mlp_img reflow_mlp_img_stage2
    reflow_mlp shortcut_mlp_img shortcut_mlp_img_stage2 shortcut_mlp shortcut_dispersive_mlp_img consistency_mlp_img
    diffusion_mlp_img diffusion_mlp diffusion_unet_img diffusion_unet gaussian_mlp_img gaussian_mlp""")
TABLES = [f"pre_{name}" for name in PRE] + [f"ft_{name}" for name in FT] + [f"eval_{name}" for name in EVAL]
"""the guide's three tables of names, but for the nine below"""
OTHER_ALGORITHMS = str.split("""ft_awr_diffusion_mlp ft_dql_diffusion_mlp ft_idql_diffusion_mlp ft_qsm_diffusion_mlp
    ft_rwr_diffusion_mlp ft_dipo_diffusion_mlp ft_fql_mlp calql_mlp_online ibrl_mlp""")


def parsed(stage: str, words: list[str]) -> dict:
    module = importlib.import_module(SCRIPTS[stage])
    config = parse(module.Config, words, presets=PRESETS[stage], recipes=partial(flags_of, stage=stage))
    return dict(flat_fields(config))


def test_the_tables_have_24_26_and_17_names():
    assert (len(PRE), len(FT) + len(OTHER_ALGORITHMS), len(EVAL)) == (24, 26, 17)


@pytest.mark.parametrize("name", TABLES)
def test_every_name_of_the_guides_tables_is_a_recipe_of_its_script_alone(name):
    stage = name.split("_")[0]
    config = with_flags(importlib.import_module(SCRIPTS[stage]).Config(), flags_of(name, stage))
    assert dict(flat_fields(config)).items() >= flags_of(name, stage).items()
    for other in set(SCRIPTS) - {stage}:
        with pytest.raises(UserError, match=re.escape(f"{name} is one of")):
            flags_of(name, other)


@pytest.mark.parametrize("name", OTHER_ALGORITHMS)
def test_algorithms_of_other_scripts_are_answered_by_a_sentence(name):
    with pytest.raises(UserError, match="no algorithm of this script"):
        flags_of(name, "ft")
    assert f"`{name}`" in PAGE


def test_a_recipe_is_its_parts():
    flags = parsed("pre", ["--recipe", "pre_shortcut_dispersive_cosine_mlp_img"])
    assert (flags["family"], flags["net"], flags["dispersive"]) == ("shortcut", "preact", "infonce_cosine")
    assert (flags["obs_mode"], flags["visual_encoder"], flags["preact_hidden_dim"]) == ("rgb", "vit", 768)
    flags = parsed("pre", ["--recipe", "pre_diffusion_unet"])
    assert (flags["family"], flags["net"], flags["diffusion_steps"]) == ("ddpm", "unet", 20)
    assert flags["dispersive"] == "none"
    flags = parsed("ft", ["--recipe", "ft_ppo_diffusion_mlp"])
    assert (flags["num_inference_steps"], flags["ft_denoising_steps"], flags["ratio_of"]) == (20, 10, "step")
    flags = parsed("ft", ["--recipe", "ft_ppo_exact_diffusion_mlp"])
    assert (flags["likelihood"], flags["ratio_of"], flags["lr"]) == ("exact", "chain", 1e-5)


def test_flags_beside_a_recipe_win_and_presets_come_before_it():
    words = ["--recipe", "pre_diffusion_mlp", "--diffusion_steps", "50", "--lr", "2e-3"]
    flags = parsed("pre", words)
    assert (flags["diffusion_steps"], flags["num_inference_steps"], flags["lr"]) == (50, 20, 2e-3)
    flags = parsed("pre", ["--preset", "quickstart", "--recipe", "pre_meanflow_mlp"])
    assert (flags["total_iters"], flags["net"]) == (5_000, "preact")


@pytest.mark.parametrize(
    ("name", "stage", "words"),
    [("pre_ppo_meanflow_mlp", "pre", "no such recipe|algorithm"), ("ft_meanflow_mlp", "ft", "algorithm"),
     ("pre_meanflow", "pre", "no such recipe"), ("eval_meanflow_mlp_image", "eval", "no such recipe")],
)  # fmt: skip
def test_other_names_are_refused_with_what_a_recipe_is(name, stage, words):
    with pytest.raises(UserError, match=words):
        flags_of(name, stage)


def test_a_recipe_is_refused_beside_a_resumed_run(tmp_path):
    with pytest.raises(UserError, match="leave --preset and --recipe out"):
        parsed("pre", ["--recipe", "pre_meanflow_mlp", "--resume", str(tmp_path)])


def test_a_checkpoint_of_another_family_network_or_observation_is_refused():
    spec = PolicySpec.of(family="meanflow", net="mlp")
    ExpectedPolicy().check(spec)
    ExpectedPolicy(expect_family="meanflow", expect_net="mlp", expect_pictures=False).check(spec)
    for wrong in ({"expect_family": "reflow"}, {"expect_net": "unet"}, {"expect_pictures": True}):
        with pytest.raises(UserError, match=f"--{next(iter(wrong))}"):
            ExpectedPolicy(**wrong).check(spec)


def commands(page: str) -> list[str]:
    """Command lines of a page, those of its tables included."""
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [part.replace("\\|", "|") for part in re.findall(r"`(python [^`]+)`", page)]
    return [line.split("#")[0].strip() for line in lines if line.startswith("python ")]


HERE = [line for line in commands(PAGE) if line.split()[1].removesuffix(".py") in SCRIPTS.values()]


@pytest.mark.parametrize("line", HERE)
def test_every_command_of_the_page_parses(line):
    script, *words = shlex.split(line)[1:]
    stage = next(stage for stage, name in SCRIPTS.items() if script == f"{name}.py")
    parsed(stage, words)


def test_the_page_names_every_recipe_and_every_other_algorithm():
    assert len(HERE) > 20
    assert [name for name in TABLES if f"`{name}`" not in PAGE] == []
    assert [name for name in ELSEWHERE if name not in PAGE] == []


OVERRIDES = str.split("""device sim_device seed wandb.offline_mode wandb test_in_mujoco denoising_steps use_d4rl_dataset
    base_policy_path normalization_path name resume_path ft_denoising_steps min_std max_std train.ent_coef load_ema
    denoising_step_list clip_intermediate_actions env.n_envs train.n_steps model.sample_t_type env.save_video
    train.render.freq train.render.num env.specific.headless +env.render cond_steps img_cond_steps act_steps
    dispersive.weight dispersive.temperature dispersive.loss_type dispersive.target_layer""")


@pytest.mark.parametrize("name", OVERRIDES)
def test_the_page_has_a_row_for_every_override_of_the_guide(name):
    assert re.search(rf"^\| `{re.escape(name)}[=`]", PAGE, re.MULTILINE), name
