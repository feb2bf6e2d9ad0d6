"""All generative families on a checkerboard: what they draw in 1, 2, 4 and 8 steps, how far off, and how fast.

    python examples/mean_flow_2d.py
    python examples/mean_flow_2d.py --families reflow meanflow --iterations 10000

Each is the policy that Stage 1 clones, with chunks of one action of two numbers and nothing to observe, trained by the
same behaviour cloning. Writes `mean_flow_2d.png` and `mean_flow_2d.json` into `--output_dir`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.cli import run_script
from reinflow.errors import UserError
from reinflow.policies.options import FlowConfig, TimeSampling

if TYPE_CHECKING:
    from reinflow.policies.base import Policy

SQUARES = 4
"""of the board's sides, which are 2 long; every other one holds data"""
BANDWIDTHS = (0.05, 0.1, 0.25, 0.5)
"""of the kernels whose mean compares two clouds: from the edge of a square to a whole one"""
TEACHER = "reflow"
"""what the consistency policy is distilled from, where it is trained, too"""


@dataclass(frozen=True)
class Config:
    """Families that go from noise to a checkerboard, side by side."""

    families: tuple[str, ...] = ()
    """which ones; none are all that start from noise"""
    iterations: int = 800
    """gradient steps of each"""
    batch_size: int = 256
    """points per gradient step"""
    lr: float = 2e-3
    """peak learning rate"""
    t_sampling: TimeSampling = "uniform"
    """distribution of times, where a family can choose; `logitnormal` hardly ever draws the whole way from noise to
    data, which one step takes"""
    ema_decay: float = 0.99
    """of the average that draws; Stage 1's .999 is for longer runs"""
    hidden_dim: int = 128
    """width of the MLP, which all share"""
    steps: tuple[int, ...] = (1, 2, 4, 8)
    """numbers of sampling steps"""
    samples: int = 4_096
    """points that are drawn and compared"""
    seed: int = 0
    """of data, weights and noise"""
    output_dir: str = "figures"
    """folder of the figure and the numbers"""


@dataclass(frozen=True)
class Row:
    """What one family drew in one number of steps."""

    family: str
    steps: int
    mmd: float
    """maximum mean discrepancy to the data, 0 where they can't be told apart"""
    sample_ms: float
    """milliseconds of CPU time for 1000 points"""
    train_seconds: float
    """CPU time of its training"""


def main(config: Config) -> None:
    """Train, draw, compare and plot."""
    families = config.families or generative_families()
    if unknown := [name for name in families if name not in generative_families()]:
        raise UserError(
            f"--families {unknown[0]} is none that starts from noise: choose from {', '.join(generative_families())}"
        )
    torch.manual_seed(config.seed)
    truth = checkerboard(config.samples)
    floor, filled = mmd(checkerboard(config.samples), truth), mmd(2 * torch.rand(config.samples, 2) - 1, truth)
    print(f"{'family':18} {'train s':>8} " + " ".join(f"{f'MMD, K = {k}':>12}" for k in config.steps) + "  ms per 1000")
    rows: list[Row] = []
    clouds: dict[tuple[str, int], Tensor] = {}
    trained: dict[str, Policy] = {}
    for family in families:
        started = time.process_time()
        trained[family] = cloned(family, config, trained.get(TEACHER))
        train_seconds = time.process_time() - started
        for steps in config.steps:
            clouds[family, steps], sample_ms = drawn(trained[family], steps, config.samples)
            rows.append(Row(family, steps, mmd(clouds[family, steps], truth), sample_ms, train_seconds))
        report(rows[-len(config.steps) :])
    print(f"{'data':18} {'':8} {floor:>12.4f}  another draw of it; {filled:.4f} is a square without its board")
    write(config, rows, clouds, truth, {"data": floor, "filled_square": filled})


def generative_families() -> tuple[str, ...]:
    """Names of those that start from noise."""
    from reinflow.policies import FAMILIES

    return tuple(name for name, entry in FAMILIES.items() if issubclass(entry.config, FlowConfig))


def checkerboard(count: int) -> Float[Tensor, "n 2"]:
    """Points in every other square of [-1, 1]^2."""
    column, half = torch.randint(SQUARES, (count,)), torch.randint(SQUARES // 2, (count,))
    corner = torch.stack((column, 2 * half + column % 2), 1)
    return (corner + torch.rand(count, 2)) * (2 / SQUARES) - 1


def cloned(family: str, config: Config, teacher: Policy | None) -> Policy:
    """The moving average of a policy's weights after its training."""
    from reinflow.algos.bc import BehaviorCloning
    from reinflow.algos.config import BCConfig
    from reinflow.data.chunks import Batch
    from reinflow.policies import PolicySpec, build_policy

    torch.manual_seed(config.seed)
    distilled = {"teacher_path": TEACHER} if family == "consistency" and teacher is not None else {}
    spec = PolicySpec.of(
        family=family,
        net="mlp",
        mlp_hidden_dim=config.hidden_dim,
        diffusion_step_embed_dim=32,
        obs_horizon=1,
        act_horizon=1,
        pred_horizon=1,
        action_dim=2,
        initial_noise_scale=1.0,
        t_sampling=config.t_sampling,
        **distilled,
    )
    policy = build_policy(spec)
    nothing = {"state": torch.zeros(config.batch_size, 1, spec.state_dim)}
    policy.fit_normalizers_(nothing["state"][:, 0], checkerboard(config.samples))
    if distilled and teacher is not None:
        policy.learn_from_(teacher)
    learner = BehaviorCloning(policy, BCConfig(lr=config.lr, ema_decay=config.ema_decay), config.iterations)
    for _ in range(config.iterations):
        learner.update(Batch(nothing, checkerboard(config.batch_size)[:, None]))
    return learner.evaluated


@torch.no_grad()
def drawn(policy: Policy, steps: int, count: int, rounds: int = 3) -> tuple[Float[Tensor, "n 2"], float]:
    """Points in data units, and the median CPU time in milliseconds that 1000 of them take."""
    obs = {"state": torch.zeros(count, 1, policy.spec.state_dim)}
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        points = policy.act(obs, torch.Generator().manual_seed(0), steps)[:, 0]
        seconds.append(time.process_time() - started)
    return points, 1e6 * statistics.median(seconds) / count


def mmd(first: Float[Tensor, "n 2"], second: Float[Tensor, "m 2"]) -> float:
    """Maximum mean discrepancy under the mean of Gaussian kernels; its square is estimated without bias, at least 0.

    Source: Gretton et al. (2012), "A kernel two-sample test", eq. 3.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = torch.cdist(a, b).square()
        return torch.stack([(-squares / (2 * width**2)).exp() for width in BANDWIDTHS]).mean(0)

    def within(a: Tensor) -> Tensor:
        return (kernel(a, a).sum() - len(a)) / (len(a) * (len(a) - 1))  # k(x, x) = 1 is left out

    squared = within(first) + within(second) - 2 * kernel(first, second).mean()
    return squared.clamp_min(0).sqrt().item()


def report(rows: Sequence[Row]) -> None:
    """Print the line of a family."""
    values = " ".join(f"{row.mmd:>12.4f}" for row in rows)
    times = " ".join(f"{row.sample_ms:.2f}" for row in rows)
    print(f"{rows[0].family:18} {rows[0].train_seconds:>8.1f} {values}  {times}", flush=True)


def write(
    config: Config,
    rows: Sequence[Row],
    clouds: dict[tuple[str, int], Tensor],
    truth: Tensor,
    references: dict[str, float],
) -> None:
    """The figure and its numbers; `references` are MMDs of known clouds."""
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    report = {"settings": asdict(config), "references": references, "rows": [asdict(row) for row in rows]}
    (folder / "mean_flow_2d.json").write_text(json.dumps(report, indent=2) + "\n")
    plot(rows, clouds, truth, folder / "mean_flow_2d.png")
    print(f"wrote {folder / 'mean_flow_2d.json'} and {folder / 'mean_flow_2d.png'}")


def plot(rows: Sequence[Row], clouds: dict[tuple[str, int], Tensor], truth: Tensor, path: Path) -> None:
    """A line of pictures per family: the data, then what it drew in each number of steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    families = list(dict.fromkeys(row.family for row in rows))
    steps = list(dict.fromkeys(row.steps for row in rows))
    size = (1 + len(steps), len(families))
    figure, axes = pyplot.subplots(
        size[1], size[0], figsize=(1.5 * size[0], 1.75 * size[1]), squeeze=False, layout="constrained"
    )
    found = {(row.family, row.steps): row for row in rows}
    for line, family in zip(axes, families, strict=True):
        line[0].set_ylabel(family.replace("_", "\n"))
        for axis, step in zip(line, [None, *steps], strict=True):
            points = truth if step is None else clouds[family, step]
            axis.hist2d(*points.T.numpy(), bins=40, range=[[-1.1, 1.1]] * 2, cmap="magma")
            axis.set(xticks=[], yticks=[], aspect="equal")
            if step is None:
                axis.set_title(f"data\n{found[family, steps[0]].train_seconds:.0f} s training", fontsize=8)
            else:
                row = found[family, step]
                axis.set_title(f"K = {step}: MMD {row.mmd:.3f}\n{row.sample_ms:.2f} ms per 1000", fontsize=8)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


if __name__ == "__main__":
    run_script(main, Config)
