"""Exports a policy to a file that runs without this project: (obs, noise) -> actions, normalisers inside.

    python -m reinflow.export runs/reinflow-PickCube-v1-seed0 --to onnx

The file takes histories of observations as the policy does, `state` (b o s) and where it sees pictures `rgb` and
`depth` (b o v y x c), and standard normal `noise` (b h a); it gives the `actions` (b e a) to execute, in env units and
inside the task's bounds. b is the number of rows that it was exported with. What was written is run once more and
compared with the policy before it gets its name.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from jaxtyping import Float
from torch import Tensor, nn

from reinflow.cli import run_script
from reinflow.errors import UserError
from reinflow.inference import PICTURES, shape_of
from reinflow.policies.base import Policy
from reinflow.storage.checkpoint import load_policy, resolve_checkpoint
from reinflow.types import EnvSpec, Obs

TOLERANCE = 1e-5
"""largest difference to the policy's own actions, in env units, and relative to them"""
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "torchscript": ".ts"}
DESCRIPTION = "reinflow"
"""name of the JSON text that every file carries"""
EXTRA = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Config:
    """Export the policy of a checkpoint."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """file or run directory (its best_model.safetensors)"""
    to: Literal["onnx", "torch_export", "torchscript"] = "onnx"
    """onnx runs without torch (extra `export`); torch_export is loaded by torch.export.load, torchscript by
    torch.jit.load"""
    output: str | None = None
    """file to write; None puts it next to the checkpoint, with .onnx, .pt2 or .ts as its end"""
    rows: int = 1
    """observations that the file takes at once"""
    act_horizon: int | None = None
    """env steps of the actions that it gives; None is the checkpoint's"""
    num_inference_steps: int | None = None
    """denoising steps; None is the checkpoint's"""


def main(config: Config) -> None:
    """Export one checkpoint; UserError where a package is missing, or the file would not act as the policy does."""
    refuse_without_extra(config.to)
    if config.rows < 1:
        raise UserError(f"--rows {config.rows} is too small: pass at least 1")
    path = resolve_checkpoint(config.checkpoint)
    policy, checkpoint = load_policy(path, "cpu")
    chosen = {name: getattr(config, name) for name in ("act_horizon", "num_inference_steps")}
    policy.spec = replace(policy.spec, **{name: value for name, value in chosen.items() if value is not None})
    output = Path(config.output) if config.output else path.with_suffix(SUFFIXES[config.to])
    worst = export(policy, checkpoint.env_spec, config.to, output, config.rows)
    print(f"wrote {output}, whose actions differ from the policy's by {worst:.1e} at most")


def refuse_without_extra(form: str) -> None:
    """UserError where a package for this form of a file is missing."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if form == "onnx" and missing:
        raise UserError(f"--to onnx needs {', '.join(missing)}: pip install -e '.[export]'")


def export(policy: Policy, task: EnvSpec, form: str, output: Path, rows: int = 1) -> float:
    """Write the policy, on the CPU, as `output`; returns the largest difference of an action.

    UserError where the file's actions are others than the policy's; `output` is complete or as it was.
    """
    sampler = Sampler(policy, task).eval()
    description = json.dumps(describe(policy, task, rows))
    write, read = FORMS[form]
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as folder, torch.no_grad(), silence():
        temporary = Path(folder) / output.with_suffix(SUFFIXES[form]).name
        write(sampler, example(policy, rows, seed=0), description, temporary)
        run = read(temporary)
        worst = max(difference(run, sampler, example(policy, rows, seed)) for seed in (0, 1))
        os.replace(temporary, output)
    return worst


class Sampler(nn.Module):
    """Histories and noise to the actions to execute."""

    def __init__(self, policy: Policy, task: EnvSpec):
        super().__init__()
        self.policy = policy
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", torch.tensor(task.action_low))
        self.register_buffer("high", torch.tensor(task.action_high))

    def forward(self, obs: Obs, noise: Float[Tensor, "b h a"]) -> Float[Tensor, "b e a"]:
        """In env units, inside the task's bounds."""
        # a family that has no use for noise takes part in the signature, too
        return self.policy.act(obs, noise=noise).clamp(self.low, self.high) + 0 * noise.sum()


def describe(policy: Policy, task: EnvSpec, rows: int) -> dict[str, Any]:
    """What somebody needs to run the file: shapes of its inputs, horizons, and the task."""
    spec = policy.spec
    inputs = {name: [rows, spec.obs_horizon, *shape_of(name, spec)] for name in spec.observed}
    return {
        "inputs": {**inputs, "noise": [rows, *spec.chunk_shape]},
        "outputs": {"actions": [rows, spec.act_horizon, spec.action_dim]},
        "family": spec.family,
        "num_inference_steps": spec.num_inference_steps,
        "task": asdict(task),
    }


def example(policy: Policy, rows: int, seed: int) -> tuple[Obs, Tensor]:
    """Random histories around the demonstrations' states, with pictures of noise, and noise."""
    spec, generator = policy.spec, torch.Generator().manual_seed(seed)
    normalizer = policy.encoder.state_normalizer
    obs: Obs = {}
    for name in spec.observed:
        shape = (rows, spec.obs_horizon, *shape_of(name, spec))
        if name == "state":
            obs[name] = normalizer.shift + normalizer.scale * torch.randn(shape, generator=generator)
        else:
            most = 256 if name == "rgb" else int(1000 * spec.max_depth)
            obs[name] = torch.randint(0, most, shape, generator=generator).to(PICTURES[name][0])
    return obs, torch.randn(rows, *spec.chunk_shape, generator=generator)


def difference(run: Callable[[Obs, Tensor], Tensor], sampler: Sampler, inputs: tuple[Obs, Tensor]) -> float:
    """The largest one of an action; UserError where it is too large."""
    expected, got = sampler(*inputs), run(*inputs)
    gap = (got - expected).abs()
    if got.shape != expected.shape or not bool((gap <= TOLERANCE * (1 + expected.abs())).all()):
        raise UserError(
            f"the exported policy acts otherwise, by {gap.max():.1e} where {TOLERANCE:.0e} is allowed: nothing was "
            "written; try another form with --to, and report the family and network of the checkpoint"
        )
    return gap.max().item()


def write_onnx(sampler: Sampler, inputs: tuple[Obs, Tensor], description: str, path: Path) -> None:
    """Through torch.export, with an input for each part of the observation."""
    program = torch.export.export(sampler, inputs, strict=False)
    names = [*inputs[0], "noise"]
    onnx = torch.onnx.export(program, dynamo=True, input_names=names, output_names=["actions"], verbose=False)
    assert onnx is not None
    onnx.model.metadata_props[DESCRIPTION] = description
    onnx.save(path, external_data=False)


def read_onnx(path: Path) -> Callable[[Obs, Tensor], Tensor]:
    """The file in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options)
    taken = {one.name for one in session.get_inputs()}

    def run(obs: Obs, noise: Tensor) -> Tensor:
        given = {name: value.numpy() for name, value in {**obs, "noise": noise}.items() if name in taken}
        return torch.as_tensor(session.run(None, given)[0])

    return run


def write_program(sampler: Sampler, inputs: tuple[Obs, Tensor], description: str, path: Path) -> None:
    """As torch.export has it; called with (obs, noise), obs a dict."""
    program = torch.export.export(sampler, inputs, strict=False)
    torch.export.save(program, path, extra_files={DESCRIPTION: description})


def read_program(path: Path) -> Callable[[Obs, Tensor], Tensor]:
    """The file as a module again."""
    return torch.export.load(path).module()


def write_script(sampler: Sampler, inputs: tuple[Obs, Tensor], description: str, path: Path) -> None:
    """Traced: a TorchScript module called with (obs, noise), obs a dict."""
    traced = torch.jit.trace(sampler, inputs, check_trace=False)
    torch.jit.save(traced, str(path), _extra_files={DESCRIPTION: description})


def read_script(path: Path) -> Callable[[Obs, Tensor], Tensor]:
    """The file as a module again."""
    return torch.jit.load(str(path))


FORMS: dict[str, tuple[Callable[..., None], Callable[[Path], Callable[[Obs, Tensor], Tensor]]]] = {
    "onnx": (write_onnx, read_onnx),
    "torch_export": (write_program, read_program),
    "torchscript": (write_script, read_script),
}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """The exporters' notes on packages that nobody needs here and on shapes that are meant to be fixed."""
    loud = logging.getLogger("torch.onnx")
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        loud.setLevel(level)


if __name__ == "__main__":
    run_script(main, Config)
