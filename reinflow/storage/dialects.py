"""Weights of other projects under the names of this one's networks, where both compute the same.

So far the velocity network of ReinFlow's ReFlow policies over states: a residual MLP over the chunk, a sinusoidal
embedding of the time, and the observations behind a small net. `--net preact` is that function with
`--preact_max_frequency 1`: one layer over several concatenated inputs is a sum of one layer over each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from reinflow.errors import UserError

FIRST = "mlp_mean.layers.0.weight"
"""by which such a network is known"""
PARTS = ("mlp_mean.", "time_embedding.", "cond_mlp.")
PREFERRED = ("actor_ft", "ema")
"""of several copies the fine-tuned one, else the average"""

Named = dict[str, tuple[Tensor, str]]
"""a tensor by its name here, with the name that it had there"""


def in_our_words(found: Mapping[str, Tensor], chunk_size: int, time_dim: int) -> Named:
    """The tensors of a residual MLP under the names of `PreactVelocityMLP`; empty where there is none.

    `chunk_size` is the horizon times the action dim, `time_dim` the width of the time embedding; where they or the
    rest are other ones, the shapes that come out tell.
    """
    prefix = best_prefix(found)
    if prefix is None:
        return {}
    mine = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    named = dict(first_layer(mine, chunk_size, time_dim))
    for theirs, value in mine.items():
        for pattern, name in renamed(mine):
            if hit := re.fullmatch(pattern, theirs):
                named[hit.expand(name)] = (value, theirs)
    if not named:
        return {}
    used = {theirs for _, theirs in named.values()}
    if unused := [name for name in mine if name.startswith(PARTS) and name not in used]:
        raise UserError(f"the network has {prefix}{unused[0]}, for which --net preact has no place")
    ours: Named = {name: (value, prefix + theirs) for name, (value, theirs) in named.items()}
    nothing: Named = {
        name: (torch.zeros(shape), "nothing, it is multiplied by 0") for name, shape in no_step_size(time_dim)
    }
    return ours | nothing


def best_prefix(found: Mapping[str, Tensor]) -> str | None:
    """What stands before the names of the network that is worth most."""
    prefixes = [name.removesuffix(FIRST) for name in found if name.endswith(FIRST) and "old" not in name]
    ranks = {one: next((i for i, word in enumerate(PREFERRED) if word in one), len(PREFERRED)) for one in prefixes}
    return min(prefixes, key=lambda one: (ranks[one], one), default=None)


def first_layer(mine: Mapping[str, Tensor], chunk_size: int, time_dim: int) -> Named:
    """Its columns are those of the chunk, the time and the condition, in this order."""
    weight, name = mine[FIRST], FIRST
    if weight.dim() != 2 or weight.shape[1] <= chunk_size + time_dim:
        return {}
    chunk, time, cond = weight.split([chunk_size, time_dim, weight.shape[1] - chunk_size - time_dim], dim=1)
    layers = sum(bool(re.fullmatch(r"cond_mlp\.moduleList\.\d+\.linear_1\.weight", one)) for one in mine)
    last = max(2 * layers - 1, 0)
    return {
        "sample_in.weight": (chunk, name),
        "step_in.weight": (torch.cat((time, torch.zeros_like(time)), dim=1), name),
        f"cond_in.{last}.weight": (cond, name),
    }


def renamed(mine: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Patterns of names there, and what they are here; a layer of theirs stands at every second place of ours."""
    blocks = sorted(int(hit[1]) for name in mine if (hit := re.fullmatch(r"mlp_mean\.layers\.(\d+)\.l1\.weight", name)))
    last = (blocks[-1] if blocks else 0) + 1
    rules = [(r"mlp_mean\.layers\.0\.bias", "sample_in.bias"), (rf"mlp_mean\.layers\.{last}\.(\w+)", r"out.\1")]
    rules += [(r"time_embedding\.([13])\.(\w+)", r"step_embedding.timestep.\1.\2")]
    for block in blocks:
        for layer, place in (("l1", 1), ("l2", 3)):
            rules.append((rf"mlp_mean\.layers\.{block}\.{layer}\.(\w+)", rf"layers.{block - 1}.{place}.\1"))
    conds = sorted({int(hit[1]) for name in mine if (hit := re.match(r"cond_mlp\.moduleList\.(\d+)\.", name))})
    rules += [(rf"cond_mlp\.moduleList\.{i}\.linear_1\.(\w+)", rf"cond_in.{2 * i}.\1") for i in conds]
    return rules


def no_step_size(time_dim: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the embedding of a step size, which such a network doesn't look at."""
    wide = 2 * time_dim
    shapes = {"1.weight": (wide, time_dim), "1.bias": (wide,), "3.weight": (time_dim, wide), "3.bias": (time_dim,)}
    return [(f"step_embedding.step_size.{name}", shape) for name, shape in shapes.items()]
