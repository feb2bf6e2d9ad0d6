"""A `ChunkEnv` spread over processes: one worker per core with its share of the envs, one message per chunk.

SAPIEN holds the interpreter lock while it steps, so processes are what uses several cores. Tensors travel through
shared memory, the pipe carries only words. Worker w draws its start states from `seed + 1000 * w`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from reinflow.errors import UserError
from reinflow.types import BatchedEnv, ChunkEnv, ChunkStep, EpisodeStats, Obs, StepResult

SEED_STRIDE = 1000
SINGLE_STRIDE = 1_000_003
"""between the seeds of single envs: evaluations count seeds up by one and shall not meet the same start twice"""
START_SECONDS = 300
"""a worker imports ManiSkill and builds its scenes"""
CHUNK_SECONDS = 300
"""longer than any chunk takes; a worker that is silent for so long hangs"""

EnvMaker = Callable[[int, int], ChunkEnv]
"""(num_envs, worker index) -> env; must be picklable"""


class WorkerError(RuntimeError):
    """A worker failed or died; its traceback is in the message."""


class WorkerChunkEnv:
    """`num_envs` envs in `num_workers` processes, seen as one `ChunkEnv` on the CPU."""

    device = torch.device("cpu")

    def __init__(self, make: EnvMaker, num_envs: int, num_workers: int, act_horizon: int):
        """UserError from a worker's construction is raised here as it is; `num_workers` is limited to `num_envs`."""
        self.num_envs = num_envs
        num_workers = min(num_workers, num_envs)
        shares = [num_envs // num_workers + (index < num_envs % num_workers) for index in range(num_workers)]
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for index, share in enumerate(shares):
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, make, share, index), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)
        try:
            described = [self._receive(index, START_SECONDS) for index in range(num_workers)]
            self.spec, self.obs_horizon, obs = described[0]
            self._allocate(obs, act_horizon)
            first = 0
            for index, share in enumerate(shares):
                self._pipes[index].send(("share", rows(self._shared, first, first + share)))
                first += share
            for index in range(num_workers):
                self._receive(index, START_SECONDS)
        except BaseException:
            self.close()
            raise

    def reset(self, seed: int | None = None) -> Obs:
        self._ask("reset", [None if seed is None else seed + SEED_STRIDE * index for index in range(len(self._pipes))])
        return {name: value.clone() for name, value in self._shared["obs"].items()}

    def step_chunk(self, actions: Float[Tensor, "n e a"]) -> ChunkStep:
        if actions.shape != self._shared["actions"].shape:
            wanted = tuple(self._shared["actions"].shape)
            raise ValueError(f"{self.spec.env_id} takes actions of shape {wanted}, got {tuple(actions.shape)}")
        self._shared["actions"].copy_(actions)
        self._ask("step", [None] * len(self._pipes))
        shared = self._shared
        episode = EpisodeStats(**{name: value.clone() for name, value in shared["episode"].items()})
        parts = {name: shared[name].clone() for name in ("reward", "executed", "terminated", "truncated")}
        obs, final_obs = (
            {name: value.clone() for name, value in shared[which].items()} for which in ("obs", "final_obs")
        )
        return ChunkStep(obs=obs, final_obs=final_obs, episode=episode, **parts)

    def close(self) -> None:
        """Stop the workers; one that does not leave within seconds is killed."""
        for pipe in self._pipes:
            try:
                pipe.send(("close", None))
            except OSError:
                continue
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes:
            pipe.close()
        self._pipes, self._processes = [], []

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
            "episode": {
                "return_": shared(()),
                "length": shared((), torch.long),
                "success_once": shared((), torch.bool),
                "success_at_end": shared((), torch.bool),
            },
        }

    def _ask(self, word: str, contents: list[Any]) -> None:
        """Tell every worker and wait for all answers."""
        if not self._pipes:
            raise WorkerError("the simulator workers are closed: make a new env")
        try:
            for index, (pipe, content) in enumerate(zip(self._pipes, contents, strict=True)):
                try:
                    pipe.send((word, content))
                except OSError:
                    raise self._died(index) from None
            for index in range(len(self._pipes)):
                self._receive(index, CHUNK_SECONDS)
        except BaseException:
            # the answers of the other workers are still in their pipes: no later message could be matched
            self.close()
            raise

    def _receive(self, index: int, seconds: float) -> Any:
        pipe = self._pipes[index]
        try:
            if not pipe.poll(seconds):
                raise WorkerError(
                    f"simulator worker {index} has not answered for {seconds} s: it hangs; start the run again"
                )
            word, content = pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._died(index) from None
        if word == "user_error":
            raise UserError(content)
        if word == "error":
            raise WorkerError(f"simulator worker {index} failed:\n{content}")
        return content

    def _died(self, index: int) -> WorkerError:
        process = self._processes[index]
        process.join(timeout=1)
        return WorkerError(
            f"simulator worker {index} died (exit code {process.exitcode}); -9 is out of memory: lower --num_envs"
        )


def rows(shared: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """Views of the rows of one worker."""
    return {
        name: rows(value, first, last) if isinstance(value, dict) else value[first:last]
        for name, value in shared.items()
    }


def serve(pipe: Connection, make: EnvMaker, num_envs: int, index: int) -> None:
    """A worker's life: make the env, describe it, then answer `reset` and `step` until `close`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the trainer closes us
    torch.set_num_threads(1)
    try:
        env = make(num_envs, index)
        pipe.send(("ready", (env.spec, env.obs_horizon, env.reset(seed=SEED_STRIDE * index))))
        _, shared = pipe.recv()
        pipe.send(("ready", None))
        while True:
            word, content = pipe.recv()
            if word == "close":
                env.close()
                return
            if word == "reset":
                write(shared["obs"], env.reset(seed=content))
            else:
                write(shared, vars(env.step_chunk(shared["actions"])))
            pipe.send(("done", None))
    except (EOFError, KeyboardInterrupt):
        return  # the trainer is gone
    except UserError as error:
        pipe.send(("user_error", str(error)))
    except Exception:
        with contextlib.suppress(OSError):  # the trainer is gone
            pipe.send(("error", traceback.format_exc()))


def write(shared: dict[str, Any], results: dict[str, Any]) -> None:
    """Copy results into the shared rows of the same names."""
    for name, value in results.items():
        if isinstance(value, Tensor):
            shared[name].copy_(value)
        else:
            write(shared[name], value if isinstance(value, dict) else vars(value))


class Sequence:
    """Several one-env `BatchedEnv`s stepped in turn: how stock physx_cpu, which holds one env, serves any number."""

    def __init__(self, envs: list[BatchedEnv]):
        self.envs = envs
        self.num_envs = len(envs)
        self.device = envs[0].device
        self.spec = envs[0].spec
        self._frames: list[dict[str, Tensor]] = [{} for _ in envs]

    def reset(self, seed: int | None = None, env_idx: Tensor | None = None) -> dict[str, Tensor]:
        """Env i draws its start state from `seed + SINGLE_STRIDE * i`."""
        for index in range(self.num_envs) if env_idx is None else env_idx.tolist():
            self._frames[index] = self.envs[index].reset(seed=None if seed is None else seed + SINGLE_STRIDE * index)
        return stacked(self._frames)

    def step(self, action: Float[Tensor, "n a"], render: bool = True) -> StepResult:
        steps = [env.step(action[index : index + 1], render) for index, env in enumerate(self.envs)]
        # a partial reset returns a whole frame of everyone: pictures that were not rendered stay the last ones
        self._frames = [{**old, **step.obs} for old, step in zip(self._frames, steps, strict=True)]
        return StepResult(
            stacked([step.obs for step in steps]),
            *(torch.cat([getattr(s, n) for s in steps]) for n in ("reward", "success", "terminated")),
        )

    def picture(self) -> UInt8[Tensor, "n y x 3"]:
        """Of envs that can be filmed."""
        return torch.cat([env.picture() for env in self.envs])  # type: ignore[attr-defined]

    def close(self) -> None:
        for env in self.envs:
            env.close()


def stacked(frames: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([frame[name] for frame in frames]) for name in frames[0]}


__all__ = ["Sequence", "WorkerChunkEnv", "WorkerError"]
