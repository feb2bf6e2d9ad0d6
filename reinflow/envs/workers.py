"""A `ChunkEnv` spread over processes: one worker per core with its share of the envs, one message per chunk.

SAPIEN holds the interpreter lock while it steps, so processes are what uses several cores. Tensors travel through
shared memory, the pipe carries only words. The first worker draws its start states from the seed of a reset, the others
from seeds that are derived from it; a reset with a seed per env hands each worker those of its envs.

A worker that dies, hangs or fails is replaced: its envs start new episodes, its chunk (or the next one, where it
wasn't stepping) counts as broken, and the others don't notice.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.envs.seeding import worker_seed
from reinflow.errors import UserError
from reinflow.runtime.interrupts import EXIT_CODES
from reinflow.runtime.rng import rng_state, seed_globals, set_rng_state
from reinflow.types import ChunkEnv, ChunkStep, EpisodeStats, Obs, Seed

START_SECONDS = 300
"""a worker imports ManiSkill and builds its scenes"""
CHUNK_SECONDS = 300
"""longer than any chunk takes; a worker that is silent for so long hangs"""

RESTART_STRIDE = 500_000_003
"""between the seeds of a worker and of the one that replaces it"""
MOST_FAILURES = 3
"""times in a row that a worker may fail without having finished a chunk in between"""

EnvMaker = Callable[[int, int], ChunkEnv]
"""(num_envs, place of the first of them) -> env; must be picklable"""


class WorkerError(RuntimeError):
    """A worker failed or died; its traceback is in the message."""


@dataclass
class Worker:
    """One process and its rows."""

    process: SpawnProcess
    pipe: Connection
    first: int
    count: int
    failures: int = 0
    """in a row"""
    started: int = 1
    """processes so far"""
    unseen: bool = False
    """its envs began episodes between two chunks: the next actions were decided for the old ones"""

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.count)


class WorkerChunkEnv:
    """`num_envs` envs in `num_workers` processes, seen as one `ChunkEnv` on the CPU."""

    device = torch.device("cpu")

    def __init__(
        self, make: EnvMaker, num_envs: int, num_workers: int, act_horizon: int, chunk_seconds: float = CHUNK_SECONDS
    ):
        """UserError from a worker's construction is raised here as it is; `num_workers` is limited to `num_envs`.

        A worker that is silent for `chunk_seconds` hangs.
        """
        self.num_envs = num_envs
        self.chunk_seconds = chunk_seconds
        self._make = make
        num_workers = min(num_workers, num_envs)
        shares = [num_envs // num_workers + (index < num_envs % num_workers) for index in range(num_workers)]
        self._workers: list[Worker] = []
        # an env that nobody closes: workers ignore the SIGTERM by which multiprocessing ends what an exit leaves
        Finalize(self, end_all, args=(self._workers,), exitpriority=0)
        for index, share in enumerate(shares):
            first = sum(shares[:index])
            process, pipe = self._spawn(index, share, first)
            self._workers.append(Worker(process, pipe, first, share))
        try:
            described = [self._receive(index, START_SECONDS) for index in range(num_workers)]
            self.spec, self.obs_horizon, obs = described[0]
            self._allocate(obs, act_horizon)
            for index in range(num_workers):
                self._share(index)
        except BaseException:
            self.close()
            raise

    def reset(self, seed: Seed = None) -> Obs:
        """Start new episodes in all workers, each with its share of the seeds."""
        seeds: list[Seed]
        if seed is None or isinstance(seed, int):
            seeds = [None if seed is None else worker_seed(seed, index) for index in range(len(self._workers))]
        else:
            seeds = [seed[worker.rows] for worker in self._workers]
        self._ask("reset", seeds)
        for worker in self._workers:
            worker.unseen = False
        return self._cloned("obs")

    def rebuild(self, seeds: list[int]) -> None:
        """Send every worker the seeds of its own envs."""
        self._ask("rebuild", [seeds[worker.rows] for worker in self._workers])

    def step_chunk(self, actions: Float[Tensor, "n e a"]) -> ChunkStep:
        """Execute the chunk in all workers at once; episodes of a worker that failed are cut short."""
        if actions.shape != self._shared["actions"].shape:
            wanted = tuple(self._shared["actions"].shape)
            raise ValueError(f"{self.spec.env_id} takes actions of shape {wanted}, got {tuple(actions.shape)}")
        self._shared["actions"].copy_(actions)
        _, failed = self._ask("step", [None] * len(self._workers))
        for index, worker in enumerate(self._workers):
            if index in failed or worker.unseen:
                cut(rows(self._shared, worker.rows))
                worker.unseen = False
        names = ("reward", "executed", "terminated", "truncated", "broken")
        return ChunkStep(
            obs=self._cloned("obs"),
            final_obs=self._cloned("final_obs"),
            episode=EpisodeStats(**self._cloned("episode")),
            **{name: self._shared[name].clone() for name in names},
            ends=any(bool(self._shared[name].any()) for name in ("terminated", "truncated", "broken")),
        )

    def state(self) -> list[Any] | None:
        """Of every worker; None if one of them has none."""
        states, failed = self._ask("state", [None] * len(self._workers))
        for index in failed:
            self._workers[index].unseen = True
        return None if any(state is None or state["env"] is None for state in states) else states

    def restore(self, state: Any) -> Obs | None:
        """Restore all workers; None where the number of workers differs or one of them fails."""
        if not isinstance(state, list) or len(state) != len(self._workers):
            return None
        exact, _ = self._ask("restore", state)
        return self._cloned("obs") if all(exact) else None

    def close(self) -> None:
        """Stop the workers; one that does not leave within seconds is killed."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.pipe.send(("close", None))
        for worker in self._workers:
            worker.process.join(timeout=5)
        end_all(self._workers)

    def _spawn(self, index: int, share: int, first: int) -> tuple[SpawnProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self._make, share, first, index), daemon=True)
        with apart_from_the_script(self._make):
            process.start()
        theirs.close()
        return process, mine

    def _share(self, index: int) -> None:
        """Give a worker that has described itself its rows of the shared tensors."""
        worker = self._workers[index]
        worker.pipe.send(("share", rows(self._shared, worker.rows)))
        self._receive(index, START_SECONDS)

    def _cloned(self, name: str) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in self._shared[name].items()}

    def _allocate(self, obs: Obs, act_horizon: int) -> None:
        count = self.num_envs

        def shared(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(count, *shape, dtype=dtype).share_memory_()

        self._shared: dict[str, Any] = {
            "actions": shared((act_horizon, self.spec.action_dim)),
            "obs": {name: shared(value.shape[1:], value.dtype) for name, value in obs.items()},
            "final_obs": {name: shared(value.shape[1:], value.dtype) for name, value in obs.items()},
            "reward": shared(()),
            "executed": shared((), torch.long),
            "terminated": shared((), torch.bool),
            "truncated": shared((), torch.bool),
            "broken": shared((), torch.bool),
            "episode": {
                "return_": shared(()),
                "length": shared((), torch.long),
                "success_once": shared((), torch.bool),
                "success_at_end": shared((), torch.bool),
            },
        }

    def _ask(self, word: str, contents: list[Any]) -> tuple[list[Any], list[int]]:
        """Tell every worker and wait; returns all answers, and which workers failed and were replaced meanwhile."""
        if not self._workers:
            raise WorkerError("the simulator workers are closed: make a new env")
        failed: dict[int, WorkerError] = {}
        answers: list[Any] = [None] * len(self._workers)
        try:
            for index, (worker, content) in enumerate(zip(self._workers, contents, strict=True)):
                try:
                    worker.pipe.send((word, content))
                except OSError:
                    failed[index] = self._died(index)
            for index in range(len(self._workers)):
                if index in failed:
                    continue
                try:
                    answers[index] = self._receive(index, self.chunk_seconds)
                    self._workers[index].failures = 0
                except WorkerError as error:
                    failed[index] = error
            for index, reason in failed.items():
                self._replace(index, reason)
        except BaseException:
            # the answers of the other workers are still in their pipes: no later message could be matched
            self.close()
            raise
        return answers, list(failed)

    def _replace(self, index: int, error: WorkerError) -> None:
        """Start another process for a worker's rows; raise `error` where that was tried too often."""
        worker = self._workers[index]
        worker.failures += 1
        if worker.failures >= MOST_FAILURES:
            raise WorkerError(f"{error}; {MOST_FAILURES} times in a row, so starting it again does not help")
        with contextlib.suppress(OSError):  # a line that can't be shown is no reason to end a run
            print(f"warning: {error}; starting it again with new episodes", flush=True)
        end(worker)
        worker.process, worker.pipe = self._spawn(index, worker.count, worker.first)
        worker.started += 1
        try:
            self._receive(index, START_SECONDS)
            self._share(index)
            worker.pipe.send(("reset", worker_seed(RESTART_STRIDE * worker.started, index)))
            self._receive(index, START_SECONDS)
        except (WorkerError, OSError) as again:
            self._replace(index, again if isinstance(again, WorkerError) else self._died(index))

    def _receive(self, index: int, seconds: float) -> Any:
        pipe = self._workers[index].pipe
        try:
            if not pipe.poll(seconds):
                raise WorkerError(f"simulator worker {index} has not answered for {seconds:g} s: it hangs")
            word, content = pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._died(index) from None
        if word == "user_error":
            raise UserError(content)
        if word == "error":
            raise WorkerError(f"simulator worker {index} failed:\n{content}")
        return content

    def _died(self, index: int) -> WorkerError:
        process = self._workers[index].process
        process.join(timeout=1)
        return WorkerError(f"simulator worker {index} died ({cause_of_death(process.exitcode)})")


def cause_of_death(code: int | None) -> str:
    """What an exit code says, and what may be done about it."""
    if code == -signal.SIGKILL:
        return "killed from outside, most often for memory: lower --num_envs"
    if code is not None and code < 0:
        return f"by {signal.Signals(-code).name}: a crash of the simulator or of a library"
    return f"exit code {code}: its own error stands above; --num_workers 0 simulates without processes"


@contextmanager
def apart_from_the_script(make: EnvMaker) -> Iterator[None]:
    """Keep a new process from importing the script that starts it, unless `make` holds something of that script.

    Python imports it there by default, which fails for one that came from standard input, and for one without an
    `if __name__ == "__main__"` starts everything anew.
    """
    if b"__main__" in bytes(ForkingPickler.dumps(make)):
        yield
        return
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def end(worker: Worker) -> None:
    """Whatever the process does, it is gone afterwards."""
    if worker.process.is_alive():
        worker.process.kill()
    worker.process.join()
    worker.pipe.close()


def end_all(workers: list[Worker]) -> None:
    """Empties the list, too."""
    while workers:
        end(workers.pop())


def cut(mine: dict[str, Any]) -> None:
    """What a chunk is for the envs of a worker that was replaced; `obs` are those of new episodes."""
    for name, value in mine["final_obs"].items():
        value.copy_(mine["obs"][name])
    for value in (*mine["episode"].values(), *(mine[name] for name in ("reward", "executed"))):
        value.zero_()
    mine["terminated"].fill_(False)
    mine["truncated"].fill_(False)
    mine["broken"].fill_(True)


def rows(shared: dict[str, Any], mine: slice) -> dict[str, Any]:
    """Views of the rows of one worker."""
    return {name: rows(value, mine) if isinstance(value, dict) else value[mine] for name, value in shared.items()}


def serve(pipe: Connection, make: EnvMaker, num_envs: int, first: int, index: int) -> None:
    """A worker's life: make the env, describe it, then answer what it is asked until `close`."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)  # they may go to the whole group; the trainer closes us
    torch.set_num_threads(1)
    seed = worker_seed(0, index)
    seed_globals(seed)
    try:
        env = make(num_envs, first)
        pipe.send(("ready", (env.spec, env.obs_horizon, env.reset(seed=seed))))
        _, shared = pipe.recv()
        pipe.send(("ready", None))
        while True:
            word, content = pipe.recv()
            if word == "close":
                env.close()
                return
            pipe.send(("done", answer(env, word, content, shared)))
    except (EOFError, KeyboardInterrupt):
        return  # the trainer is gone
    except UserError as error:
        pipe.send(("user_error", str(error)))
    except Exception:
        with contextlib.suppress(OSError):  # the trainer is gone
            pipe.send(("error", traceback.format_exc()))


def answer(env: ChunkEnv, word: str, content: Any, shared: dict[str, Any]) -> Any:
    """Do what the trainer asks for; what is large is written into the shared rows."""
    if word == "reset":
        write(shared["obs"], env.reset(seed=content))
    elif word == "rebuild":
        env.rebuild(content)
    elif word == "step":
        outcome = vars(env.step_chunk(shared["actions"]))
        write(shared, {name: value for name, value in outcome.items() if name != "ends"})  # which the trainer sees
    elif word == "state":
        return {"env": env.state(), "rng": rng_state()}
    elif word == "restore":
        obs = env.restore(content["env"])
        set_rng_state(content["rng"])
        if obs is not None:
            write(shared["obs"], obs)
        return obs is not None
    return None


def write(shared: dict[str, Any], results: dict[str, Any]) -> None:
    """Copy results into the shared rows of the same names."""
    for name, value in results.items():
        if isinstance(value, Tensor):
            shared[name].copy_(value)
        else:
            write(shared[name], value if isinstance(value, dict) else vars(value))


__all__ = ["WorkerChunkEnv", "WorkerError"]
