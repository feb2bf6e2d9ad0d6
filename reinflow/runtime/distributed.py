"""Several processes for one run, as torchrun starts them: each has a share of the envs, all have the same weights.

    torchrun --standalone --nproc_per_node 4 train_online_finetune.py --num_envs 1024 ...

Counts in a config (`num_envs`, `minibatch_size`, `batch_size`, env steps) are those of all processes together. The
first process leads: it evaluates and writes the run's files. Without torchrun there is no process group, and every
function here returns its input.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from reinflow.errors import UserError
from reinflow.runtime.rng import Stream, derived_seed
from reinflow.runtime.watch import Watch

T = TypeVar("T")

PATIENCE = timedelta(hours=6)
"""of a collective: the others wait while the first process evaluates; the `Watch` notices a lost one much sooner"""


# ---- who takes part -------------------------------------------------------------------------------------------------


def launched() -> bool:
    """Whether torchrun started this process beside others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def active() -> bool:
    """Whether this process is one of several that torchrun started and that have met."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0; the first one leads."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """How many processes share this run; 1 without torchrun."""
    return dist.get_world_size() if active() else 1


def leads() -> bool:
    """Whether this process evaluates and writes; a single one does."""
    return rank() == 0


def processes_here() -> int:
    """Processes of this run on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if active() else 1


def restarts() -> int:
    """How often torchrun started all processes again because one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if launched() else 0


class Job:
    """What processes leave to those that torchrun starts after them."""

    store: dist.Store | None = None
    """torchrun's, which outlives them"""


def remember(fact: str) -> None:
    """Let this job's later starts know."""
    if Job.store is not None:
        Job.store.set(fact, "")


def remembers(fact: str) -> bool:
    """Whether this start or an earlier one of this job called `remember(fact)`."""
    return Job.store is not None and Job.store.check([fact])


def share(count: int, flag: str) -> int:
    """This process's part of `count`; UserError where it can't be split evenly."""
    if count % world_size():
        raise UserError(f"--{flag} {count} can't be split over {world_size()} processes: use a multiple of them")
    return count // world_size()


def own_seed(seed: int) -> int:
    """A run's seed as this process takes it; the first one, like a single one, takes it as it is."""
    return derived_seed(seed, Stream.RANK, rank()) if rank() else seed


def take_own_gpu() -> None:
    """Show this process its own GPU alone, so that torch, SAPIEN and PhysX all find it as the first one.

    Before CUDA starts; UserError where there are fewer GPUs than processes.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(local)] if visible is None else [name for name in visible.split(",") if name.strip()]
    if visible is None or not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return
    if local >= len(gpus):
        raise UserError(
            f"{os.environ.get('LOCAL_WORLD_SIZE')} processes share {len(gpus)} GPUs (CUDA_VISIBLE_DEVICES={visible}): "
            "start no more than GPUs with --nproc_per_node, or pass --no_cuda"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[local]


def join(cuda: bool) -> None:
    """Meet the other processes, where torchrun started some; NCCL between GPUs, gloo between CPUs."""
    if not launched() or active():
        return
    if cuda:
        take_own_gpu()
    cuda = cuda and torch.cuda.is_available()
    store, number, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    Job.store = dist.PrefixStore("job", store)
    store = dist.PrefixStore(f"start {restarts()}", store)  # torchrun's store keeps the addresses of those that died
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=dist.PrefixStore("group", store),
        rank=number,
        world_size=size,
        timeout=PATIENCE,
    )
    if len(set(gathered(cuda))) > 1:
        raise UserError("some processes of this run have a GPU and some none: start no more than GPUs, or --no_cuda")
    life = dist.PrefixStore("life", store.clone())  # type: ignore[attr-defined]  # torch's stubs lack it
    Watch.current = Watch(life, number, size)
    meet()  # everyone has a beat to read
    Watch.current.start()
    atexit.register(part)


def leave() -> None:
    """Wait for the others and part; a process that fails leaves without."""
    if not active():
        return
    meet()
    part()


def part() -> None:
    """Threads of the group and of the watch would abort a process that ends with them."""
    if Watch.current is not None:
        Watch.current.end()
    if active():
        dist.destroy_process_group()


def led(act: Callable[[], T]) -> T | None:
    """What `act` returns in the first process, None in the others; where it raises UserError, all of them end."""
    if not leads():
        if received(None) is not None:
            raise SystemExit(2)
        return None
    try:
        result = act()
    except UserError as error:
        received(str(error))
        raise
    received(None)
    return result


# ---- what they share ------------------------------------------------------------------------------------------------


@contextmanager
def others() -> Iterator[None]:
    """A collective fails where a process is gone; gloo and NCCL say so in many ways."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConnectionError(f"another process of this run ended, its own output says why ({reason})") from error


def gathered(value: T) -> list[T]:
    """The values of all processes, in their order."""
    if not active():
        return [value]
    values: list[Any] = [None] * world_size()
    with others():
        dist.all_gather_object(values, value)
    return values


def meet() -> None:
    """Wait until all processes are here; on the CPU, so that no GPU has to be chosen for it."""
    gathered(None)


def received(value: T) -> T:
    """The first process's value."""
    if not active():
        return value
    box = [value]
    with others():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_(state: Any) -> None:
    """Overwrite every tensor of a state_dict with the first process's, in place."""
    if active():
        with others():
            for tensor in tensors_of(state):
                dist.broadcast(tensor, src=0)


def tensors_of(state: Any) -> Iterator[Tensor]:
    """All tensors of nested dicts, lists and tuples, in their order."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors_of(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from tensors_of(value)


def total(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Sum over processes."""
    if not active():
        return values
    summed = values.clone()
    with others():
        dist.all_reduce(summed)
    return summed


def mean(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Mean over processes."""
    return total(values) / world_size() if active() else values


def largest(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Maximum over processes."""
    if not active():
        return values
    found = values.clone()
    with others():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return found


def averaged(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scalars with equal names everywhere, each as its mean over processes."""
    if not active():
        return metrics
    values = mean(torch.stack([value.detach().double().reshape(()).cpu() for value in metrics.values()]))
    return dict(zip(metrics, values.unbind(), strict=True))


@torch.no_grad()
def average_gradients_(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their mean over processes, all of them in one message."""
    if not active():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = mean(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def moments(
    x: Float[Tensor, "..."], valid: Float[Tensor, "..."] | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and std of the values of all processes, of those where `valid` is 1; 0 where there is none."""
    if active():
        count, (average,), (squares,) = merged(x.reshape(-1, 1), None if valid is None else valid.reshape(-1, 1))
        return average.to(x.dtype), (squares / (count - 1).clamp_min(1)).sqrt().to(x.dtype)
    if valid is None:
        return x.mean(), x.std()
    average = (x * valid).sum() / valid.sum().clamp_min(1)
    squares = ((x - average) * valid).square().sum()
    return average, (squares / (valid.sum() - 1).clamp_min(1)).sqrt()


def row_moments(rows: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
    """Mean and std of every column over the rows of all processes, for a normaliser."""
    if not active():
        return rows.mean(0), rows.std(0, correction=0)
    count, averages, squares = merged(rows)
    return averages, (squares / count).sqrt()


def merged(
    rows: Float[Tensor, "n d"], valid: Float[Tensor, "n 1"] | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, "d"], Float[Tensor, "d"]]:
    """Count, means and sums of squared deviations of the rows of all processes, in float64, from each one's own.

    Rows where `valid` is 0 do not count.

    M = sum M_i + sum n_i (mean_i - mean)^2 (Chan, Golub and LeVeque, 1983): no difference of large sums.
    """
    own = rows.detach().double()
    weight = torch.ones_like(own[:, :1]) if valid is None else valid.double()
    number = weight.sum()
    average = (own * weight).sum(0) / number.clamp_min(1)
    mine = torch.stack((number.expand_as(average), average, ((own - average) * weight).square().sum(0)))
    parts = [torch.empty_like(mine) for _ in range(world_size())]
    with others():
        dist.all_gather(parts, mine)
    counts, averages, squares = torch.stack(parts, 1)
    count = counts.sum(0)
    mean = (counts * averages).sum(0) / count.clamp_min(1)
    return count[0], mean, squares.sum(0) + (counts * (averages - mean).square()).sum(0)
