"""Nested training states (dicts, lists and tuples of tensors and numbers) as JSON beside named tensors, and back.

    plain, tensors = split({"step": 3, "adam": {0: {"exp_avg": value}}})
    join(plain, tensors) == {"step": 3, "adam": {0: {"exp_avg": value}}}

What JSON can't say is an object with one key that starts with `$`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TENSOR, TUPLE, ITEMS, FLOAT = "$tensor", "$tuple", "$items", "$float"


def split(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """JSON, and the tensors by their place in the tree. TypeError for anything else than data."""
    tensors: dict[str, Tensor] = {}

    def visit(value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            if place in tensors:
                raise TypeError(f"two tensors have the place {place}")
            tensors[place] = value
            return {TENSOR: place}
        if isinstance(value, dict):
            return encoded_dict(value, place)
        if isinstance(value, (list, tuple)):
            items = [visit(item, below(place, index)) for index, item in enumerate(value)]
            return items if isinstance(value, list) else {TUPLE: items}
        if isinstance(value, float) and not math.isfinite(value):
            return {FLOAT: repr(value)}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"{place} is a {type(value).__name__}, which is no data")

    def encoded_dict(value: dict, place: str) -> Any:
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: visit(item, below(place, key)) for key, item in value.items()}
        return {ITEMS: [[visit(key, place), visit(item, below(place, key))] for key, item in value.items()]}

    return visit(tree, ""), tensors


def below(place: str, key: Any) -> str:
    """The name of an entry: keys from the root on, joined by `/`."""
    return f"{place}/{key}" if place else str(key)


def join(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """What `split` took apart; KeyError, TypeError or ValueError where that can't be."""
    if isinstance(plain, list):
        return [join(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if len(plain) == 1:
        ((key, value),) = plain.items()
        if key == TENSOR:
            return tensors[value]
        if key == TUPLE:
            return tuple(join(item, tensors) for item in value)
        if key == ITEMS:
            return {join(name, tensors): join(item, tensors) for name, item in value}
        if key == FLOAT:
            return float(value)
    return {key: join(value, tensors) for key, value in plain.items()}


def mapped(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """The same tree with `function` of every tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: mapped(value, function) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(mapped(value, function) for value in tree)
    return tree


def copied(tree: Any) -> Any:
    """A copy that later updates in place don't change."""
    return mapped(tree, lambda value: value.detach().clone())


def not_finite(tensors: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinite numbers."""
    floating = {name: value for name, value in tensors.items() if value.is_floating_point() and value.numel()}
    return [name for name, value in floating.items() if not bool(torch.isfinite(value).all())]
