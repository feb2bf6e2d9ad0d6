"""Named settings of the stage scripts: only what differs from the defaults, by flag."""

from __future__ import annotations

from typing import Any

from reinflow.cli import flat_fields

Preset = dict[str, Any]

FAST_NET: Preset = {"net": "mlp", "obs_horizon": 1, "act_horizon": 4, "pred_horizon": 4}
"""what trains fastest on CPU cores with state observations"""

GUIDE_HORIZONS: Preset = {"obs_horizon": 2, "act_horizon": 8, "pred_horizon": 16, "num_inference_steps": 8}

FULL_NOISE: Preset = {"initial_noise_scale": 1.0}
"""x_0 ~ N(0, I) whatever the default: what the guide and the paper's own code do"""

CLONING_PRESETS: dict[str, Preset] = {
    "default": {},
    "guide": {**GUIDE_HORIZONS, **FULL_NOISE, "net": "unet"},
    "pictures": {
        **FAST_NET,
        "obs_mode": "rgb",
        "visual_feature_dim": 64,
        "total_iters": 1_200,
        "batch_size": 64,
        "draws": 8,
        "lr": 1e-3,
        "random_shift": 2,
        "eval_freq": 600,
    },
    "quickstart": {**FAST_NET, "total_iters": 5_000, "lr": 1e-3, "eval_freq": 0, "save_freq": 0, "num_threads": 1},
    "toy": {
        **FAST_NET,
        "env_id": "Toy-v0",
        "mlp_hidden_dim": 128,
        "total_iters": 3_000,
        "lr": 1e-3,
        "eval_freq": 0,
        "save_freq": 0,
    },
}

WEIGHTED_PRESETS: dict[str, Preset] = {
    "default": {},
    "guide": {**FULL_NOISE, "gamma": 0.99},
    "quickstart": {"total_iters": 800, "lr": 1e-4, "tau": 0.05, "eval_freq": 0, "save_freq": 0},
}

ONLINE_PRESETS: dict[str, Preset] = {
    "default": {},
    "guide": {
        **FULL_NOISE,
        "num_envs": 16,
        "rollout_steps": 128,
        "minibatch_size": 64,
        "num_inference_steps": 8,
        "lr": 3e-5,
        "lr_noise": 3e-5,
        "lr_critic": 1e-4,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "clip_ratio": 0.2,
        "entropy_coef": 0.01,
        "value_coef": 0.5,
        "logprob_reduction": "sum",
        "critic_warmup_steps": 5000,
        "min_noise_std": 0.01,
        "max_noise_std": 0.3,
        "noise_decay_type": "linear",
        "noise_decay_steps": 500_000,
    },
    "official": {
        **FULL_NOISE,
        "logprob_reduction": "mean",
        "clip_ratio": 0.01,
        "scored": "all",
        "count_initial_noise": True,
    },
    "quickstart": {"total_timesteps": 300_000, "eval_freq": 8, "save_freq": 0},
    "scratch": {
        "scratch": True,
        "num_envs": 32,
        "rollout_steps": 64,
        "ppo_epochs": 10,
        "minibatch_size": 256,
        "lr": 3e-4,
        "lr_noise": 3e-4,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "clip_ratio": 0.2,
        "logprob_reduction": "sum",
        "min_noise_std": 0.1,
        "max_noise_std": 2.0,
        "noise_decay_type": "constant",
        "eval_freq": 25,
        "save_freq": 50,
        "num_eval_envs": 20,
        "num_eval_episodes": 20,
    },
    "pictures": {
        "freeze_visual_encoder": True,
        "num_envs": 64,
        "rollout_steps": 16,
        "minibatch_size": 256,
        "critic_warmup_steps": 4_000,
    },
    "gpu": {
        "num_envs": 256,
        "rollout_steps": 32,
        "minibatch_size": 768,
        "critic_warmup_steps": 20_000,
        "sim_backend": "physx_cuda",
        "num_eval_envs": 128,
    },
    "toy": {
        "num_envs": 128,
        "rollout_steps": 24,
        "total_timesteps": 400_000,
        "noise_decay_steps": 1_500_000,
        "lr": 2e-4,
        "lr_noise": 2e-4,
        "critic_warmup_steps": 10_000,
        "eval_freq": 8,
    },
}


ENOUGH_OF_THE_GUIDE = 2
"""values of the guide's baseline among a command's flags that make it look like one of the guide's commands"""


def beside_the_guide(config: Any) -> str | None:
    """A line on what a Stage 3 command in the guide's words leaves to this project's defaults, else None."""
    values, defaults = dict(flat_fields(config)), dict(flat_fields(type(config)()))
    guide = ONLINE_PRESETS["guide"]
    taken = [name for name in guide if values[name] == guide[name] != defaults[name]]
    others = [f"{name} {guide[name]} (here {values[name]})" for name in guide if values[name] != guide[name]]
    if len(taken) < ENOUGH_OF_THE_GUIDE or not others:
        return None
    also = f"which also has {', '.join(others)}; --preset guide sets all of them"
    return f"{', '.join(taken)} are as in the guide's baseline, {also}"
