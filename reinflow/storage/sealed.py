"""A sealed file: tensors in safetensors format, whose header also holds a description and a sha256 of all other bytes.

    data = seal({"policy.net.weight": weight}, {"step": 1000})
    tensors, description = unseal(data)

Any safetensors reader opens it. Nothing in it can run, and a byte that changed is noticed before anything is parsed.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

KEY = "reinflow"
"""one key, because the order of several is not the same every time and equal content shall give equal bytes"""
BLANK = b"0" * 64
SEAL = re.compile(rb'\{"__metadata__":\{"reinflow":"\{\\"sha256\\": \\"([0-9a-f]{64})\\"')
LENGTH_BYTES = 8
"""a safetensors file starts with the length of its header, which is JSON"""


class Damaged(ValueError):
    """What is wrong with a file's bytes."""


def seal(tensors: dict[str, Tensor], description: dict[str, Any]) -> bytearray:
    """The bytes of a sealed file; equal content gives equal bytes. `description` is anything that JSON holds."""
    text = json.dumps({"sha256": BLANK.decode(), **description}, allow_nan=False)
    data = bytearray(safetensors.torch.save({name: stored(value) for name, value in tensors.items()}, {KEY: text}))
    start, end = place_of_seal(data)
    data[start:end] = hashlib.sha256(data).hexdigest().encode()
    return data


def unseal(data: bytes | bytearray) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors on the CPU and the description; raises Damaged."""
    check(data)
    try:
        tensors = safetensors.torch.load(bytes(data))
        header = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + header_size(data)])
        description = json.loads(header["__metadata__"][KEY])
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"its content is no safetensors file ({error})") from None
    if not isinstance(description, dict):
        raise Damaged("its description is no JSON object")
    return tensors, description


def check(data: bytes | bytearray) -> None:
    """Raise Damaged unless the seal fits the bytes."""
    start, end = place_of_seal(data)
    view = memoryview(data)
    digest = hashlib.sha256(view[:start])
    digest.update(BLANK)
    digest.update(view[end:])
    if digest.hexdigest().encode() != bytes(view[start:end]):
        raise Damaged("its bytes are not those that were written, so it is cut short or corrupt")


def place_of_seal(data: bytes | bytearray) -> tuple[int, int]:
    """First byte of the digest and the one after its last; Damaged where there is none."""
    found = SEAL.match(data, LENGTH_BYTES)
    if found is None:
        raise Damaged("it has no seal of this project")
    return found.span(1)


def header_size(data: bytes | bytearray) -> int:
    """Bytes of the safetensors header, from the number that the file starts with."""
    return int.from_bytes(data[:LENGTH_BYTES], "little")


def stored(value: Tensor) -> Tensor:
    """On the CPU, contiguous and sharing no memory with another tensor, as safetensors asks for."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)
