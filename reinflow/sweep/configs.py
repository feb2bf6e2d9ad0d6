"""The guide's ablation: one baseline and 21 variants in six categories, each defined by what differs from the baseline.

The baseline is `--preset guide` of Stage 3. The noise network shares the actor's learning rate, as in the guide.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from reinflow.errors import UserError

CATEGORIES: dict[str, dict[str, dict[str, Any]]] = {
    "baseline": {"default": {}},
    "warmup": {
        "0": {"critic_warmup_steps": 0},
        "2k": {"critic_warmup_steps": 2_000},
        "10k": {"critic_warmup_steps": 10_000},
    },
    "noise": {
        "constant": {"noise_decay_type": "constant"},
        "exp": {"noise_decay_type": "exponential"},
        "fast": {"noise_decay_steps": 200_000},
        "low_init": {"max_noise_std": 0.15},
        "high_init": {"max_noise_std": 0.5},
    },
    "ppo": {
        "clip_tight": {"clip_ratio": 0.1},
        "clip_loose": {"clip_ratio": 0.3},
        "high_entropy": {"entropy_coef": 0.05},
        "low_entropy": {"entropy_coef": 0.001},
        "high_value": {"value_coef": 1.0},
    },
    "lr": {
        "low": {"lr": 1e-5, "lr_noise": 1e-5, "lr_critic": 3e-5},
        "high": {"lr": 1e-4, "lr_noise": 1e-4, "lr_critic": 3e-4},
        "equal": {"lr": 5e-5, "lr_noise": 5e-5, "lr_critic": 5e-5},
    },
    "infer": {"4steps": {"num_inference_steps": 4}, "16steps": {"num_inference_steps": 16}},
    "rollout": {
        "short": {"rollout_steps": 64, "minibatch_size": 32},
        "long": {"rollout_steps": 256, "minibatch_size": 128},
        "more_epochs": {"ppo_epochs": 8},
    },
}


@dataclass(frozen=True)
class Variant:
    """One configuration of the ablation."""

    category: str
    name: str

    @property
    def key(self) -> str:
        """`category:name`, as `--configs` takes it."""
        return f"{self.category}:{self.name}"

    @property
    def flags(self) -> dict[str, Any]:
        """What differs from the baseline."""
        return CATEGORIES[self.category][self.name]


VARIANTS = [Variant(category, name) for category, members in CATEGORIES.items() for name in members]


def select(words: str) -> list[Variant]:
    """The variants that `"baseline:default warmup:0 noise"` names, all for an empty string; a category means all of it.

    UserError for an unknown word.
    """
    if not words.split():
        return VARIANTS
    chosen: list[Variant] = []
    for word in words.split():
        found = [variant for variant in VARIANTS if word in (variant.key, variant.category)]
        if not found:
            near = difflib.get_close_matches(word, [variant.key for variant in VARIANTS], n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"categories are {', '.join(CATEGORIES)}"
            raise UserError(f"--configs {word} is not a configuration: {hint}")
        chosen += [variant for variant in found if variant not in chosen]
    return chosen
