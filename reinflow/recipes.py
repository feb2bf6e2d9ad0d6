"""Recipes: the configuration names of DMPO's guide (arXiv:2601.20701), made of parts.

    pre_meanflow_dispersive_mlp_img   =  pre  meanflow  dispersive  mlp  img
    ft_ppo_diffusion_unet             =  ft   ppo       diffusion   unet

A name gives flags of the script of its stage, which `--recipe NAME` sets; `docs/recipes.md` lists them all beside the
guide's overrides. Any combination of parts is a recipe, also one that the guide doesn't have.

Differs: sizes of networks and rates are this project's where a recipe doesn't name them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reinflow.errors import UserError

if TYPE_CHECKING:
    from reinflow.policies.spec import PolicySpec

Flags = dict[str, Any]

FAMILIES = {
    "meanflow": "meanflow",
    "improved_meanflow": "improved_meanflow",
    "reflow": "reflow",
    "shortcut": "shortcut",
    "consistency": "consistency",
    "diffusion": "ddpm",
    "ddim": "ddpm",
    "gaussian": "gaussian",
    "gmm": "gmm",
}
"""our name of each model"""
NETS: dict[str, Flags] = {
    "mlp": {"net": "preact", "obs_horizon": 1, "act_horizon": 4, "pred_horizon": 4},
    "unet": {"net": "unet"},
    "transformer": {"net": "transformer"},
}
MLP_OF_PICTURES: Flags = {"preact_hidden_dim": 768, "preact_cond_dims": ()}
"""DPPO's, whose image encoder has already made the condition small"""
PICTURES: Flags = {"obs_mode": "rgb", "visual_encoder": "vit"}
DISPERSIVE = {"": "infonce_l2", "cosine": "infonce_cosine", "hinge": "hinge", "covariance": "covariance"}
DIFFUSION_STEPS = {"states": 20, "pictures": 100}
"""noise levels that are trained, DPPO's"""
DDIM_STEPS = 5
"""steps of a diffusion policy that leaves levels out, DPPO's for pictures"""

STD_OF_GAUSSIANS: Flags = {"min_noise_std": 0.01, "max_noise_std": 0.2}
STEP_BY_STEP: Flags = {
    "ratio_of": "step",
    "logprob_reduction": "mean",
    "clip_ratio": 0.01,
    "clip_ratio_base": 0.01,
    "denoising_discount": 0.99,
    "eta": 1.0,
}
"""DPPO's PPO of a diffusion policy; robomimic's clip_ratio_base is .001"""
EXACT: Flags = {"likelihood": "exact", "initial_noise_scale": 1.0, "lr": 1e-5, "clip_ratio": 0.01}
"""PPO by the likelihood of whole chunks"""

ELSEWHERE = {
    "awr": "advantage-weighted regression",
    "dql": "diffusion Q-learning",
    "idql": "implicit diffusion Q-learning",
    "qsm": "Q-score matching",
    "rwr": "reward-weighted regression",
    "dipo": "DIPO",
    "fql": "flow Q-learning",
    "calql": "Cal-QL",
    "ibrl": "imitation-bootstrapped RL",
    "rlpd": "RLPD",
    "grpo": "GRPO",
}
"""algorithms that Stage 3 doesn't have, in words"""
NAME = re.compile(
    rf"(?P<stage>pre|ft|eval)_(?:(?P<algorithm>ppo_exact|ppo)_)?(?P<model>{'|'.join(FAMILIES)})"
    rf"(?:_(?P<dispersive>dispersive)(?:_(?P<kind>cosine|hinge|covariance))?)?_(?P<net>{'|'.join(NETS)})"
    r"(?P<pictures>_img)?(?P<tuned>_stage2)?"
)
STAGES = {
    "pre": "Stage 1 (train_shortcut_flow.py)",
    "ft": "Stage 3 (train_online_finetune.py)",
    "eval": "evaluate.py",
}


@dataclass(frozen=True)
class ExpectedPolicy:
    """What a checkpoint's policy has to be; recipes say it, and None takes any."""

    expect_family: str | None = None
    """policy family that the checkpoint has to have"""
    expect_net: str | None = None
    """network that it has to have"""
    expect_pictures: bool | None = None
    """whether it has to see pictures"""

    def check(self, spec: PolicySpec) -> None:
        """UserError where it is another one."""
        found = {"family": spec.family, "net": spec.net, "pictures": spec.image is not None}
        for name, value in found.items():
            wanted = getattr(self, f"expect_{name}")
            if wanted is not None and wanted != value:
                raise UserError(
                    f"the checkpoint's policy has {name} {value}, and --expect_{name} or the recipe asks for {wanted}: "
                    "take another checkpoint, or the recipe of this one"
                )


def flags_of(name: str, stage: str) -> Flags:
    """Flags that a name sets in the script of `pre`, `ft` or `eval`.

    UserError where there is no such recipe, or another script has it.
    """
    parts = NAME.fullmatch(name)
    if parts is None:
        raise UserError(f"--recipe {name}: {what_it_is(name)}")
    if parts["stage"] != stage:
        raise UserError(f"--recipe {name} is one of {STAGES[parts['stage']]}, not of {STAGES[stage]}")
    if (parts["algorithm"] is not None) != (stage == "ft") or (parts["dispersive"] and stage == "ft"):
        raise UserError(
            f"--recipe {name}: an algorithm belongs to ft_, as in ft_ppo_meanflow_mlp, a dispersion to pre_"
        )
    return {"pre": cloning, "ft": fine_tuning, "eval": evaluating}[stage](parts)


def what_it_is(name: str) -> str:
    """A sentence on a name that isn't made of our parts."""
    for algorithm, words in ELSEWHERE.items():
        if algorithm in name.split("_"):
            return f"{words} is no algorithm of this script; docs/recipes.md says where it is"
    return (
        "there is no such recipe; one is made of a stage, a model and a network, as pre_meanflow_dispersive_mlp_img, "
        "ft_ppo_reflow_mlp or eval_shortcut_mlp_img_stage2 (docs/recipes.md)"
    )


def cloning(parts: re.Match[str]) -> Flags:
    """Stage 1: family, network, observations and dispersion."""
    flags: Flags = {"family": FAMILIES[parts["model"]], **NETS[parts["net"]]}
    if flags["family"] == "ddpm":
        levels = DIFFUSION_STEPS["pictures" if parts["pictures"] else "states"]
        few = parts["pictures"] or parts["model"] == "ddim"
        flags |= {"diffusion_steps": levels, "num_inference_steps": DDIM_STEPS if few else levels}
    if parts["pictures"]:
        flags |= PICTURES | (MLP_OF_PICTURES if parts["net"] == "mlp" else {})
    if parts["dispersive"]:
        flags["dispersive"] = DISPERSIVE[parts["kind"] or ""]
    return flags


def fine_tuning(parts: re.Match[str]) -> Flags:
    """Stage 3: what the checkpoint has to be, and how PPO compares two policies of that kind."""
    flags = expected(parts)
    if parts["algorithm"] == "ppo_exact":
        return flags | EXACT
    family = FAMILIES[parts["model"]]
    if family in ("gaussian", "gmm"):
        return flags | STD_OF_GAUSSIANS
    if family != "ddpm":
        return flags
    few = parts["pictures"] or parts["model"] == "ddim"
    steps = (DDIM_STEPS, DDIM_STEPS) if few else (DIFFUSION_STEPS["states"], DIFFUSION_STEPS["states"] // 2)
    return flags | STEP_BY_STEP | {"num_inference_steps": steps[0], "ft_denoising_steps": steps[1]}


def evaluating(parts: re.Match[str]) -> Flags:
    """What the checkpoint has to be; a fine-tuned one (_stage2) is evaluated by its own weights."""
    return expected(parts) | {"ema": parts["tuned"] is None}


def expected(parts: re.Match[str]) -> Flags:
    """Fields of `ExpectedPolicy`; any of our MLPs is the guide's."""
    net = None if parts["net"] == "mlp" else NETS[parts["net"]]["net"]
    names = {"family": FAMILIES[parts["model"]], "net": net, "pictures": parts["pictures"] is not None}
    return {f"expect_{name}": value for name, value in names.items()}
