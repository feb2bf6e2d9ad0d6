"""The start of Stage 3 without a checkpoint: a policy that has learnt nothing, in any task."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from reinflow.envs.config import CompleteEnvConfig
from reinflow.errors import UserError
from reinflow.flags import as_flags
from reinflow.policies import PolicyConfig

if TYPE_CHECKING:
    from reinflow.storage.checkpoint import Checkpoint

STEPS = 4
"""denoising steps of a family that has several, where none are given"""

untrained_policy = partial(
    PolicyConfig.of, family="gaussian", net="mlp", obs_horizon=1, act_horizon=1, pred_horizon=1, mlp_hidden_dim=64
)
"""What `--scratch` trains unless told otherwise."""


def refuse_half_a_beginning(scratch: bool, pretrained_path: str, policy: PolicyConfig) -> None:
    """UserError for two starts, for none, and for the shape of a policy that a checkpoint has already."""
    if scratch and pretrained_path:
        raise UserError("--scratch starts from an untrained policy and --pretrained_path from another: leave one out")
    if scratch:
        return
    if not pretrained_path:
        raise UserError(
            "--pretrained_path is missing: pass a run directory or a best_model.pt of Stage 1 or Stage 2, "
            "or start from an untrained policy with --preset scratch"
        )
    if words := as_flags(replace(policy, initial_noise_scale=None), untrained_policy()):
        raise UserError(
            f"{' '.join(words)}: the policy of --pretrained_path is made already, so leave that out, "
            "or start from an untrained one with --scratch"
        )


def untrained(chosen: PolicyConfig, env_config: CompleteEnvConfig, num_steps: int | None, seed: int) -> Checkpoint:
    """A policy with random weights that acts in the whole range of the task's actions."""
    import torch

    from reinflow.envs import make_env
    from reinflow.policies import build_policy
    from reinflow.storage.checkpoint import Checkpoint

    horizons: dict[str, Any] = {"act_horizon": chosen.act_horizon, "obs_horizon": chosen.obs_horizon}
    with closing(make_env(replace(env_config, num_workers=0), num_envs=1, gamma=1.0, **horizons)) as env:
        task = env.spec
    spec = chosen.for_env(task, num_steps or STEPS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = build_policy(spec)
    policy.action_normalizer.fit_(torch.tensor([task.action_low, task.action_high]))
    return Checkpoint(spec, task, policy.state_dict())
