"""Videos of evaluations: all episodes in one tiled mp4, each in a border that tells whether it succeeded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from reinflow.envs import EnvConfig, make_filmed_env
from reinflow.envs.recorder import Film
from reinflow.policies.base import Policy
from reinflow.policies.wrapped import Acting
from reinflow.runtime import distributed
from reinflow.runtime.files import replaced_atomically
from reinflow.training.evaluation import evaluate
from reinflow.types import EnvSpec

if TYPE_CHECKING:
    from reinflow.run.config import RunConfig

FPS = 20
"""ManiSkill's control frequency: a film runs in real time"""
BORDER = 4
"""pixels"""
SOLVED, LOST, OPEN = (40, 200, 80), (235, 180, 40), (70, 70, 70)
"""colours of a border: the task is solved, was solved before, or has not been"""


class Camera:
    """Films a policy from the same start states every time; its envs are its own."""

    def __init__(self, task: EnvSpec, config: EnvConfig, policy: Acting, seed: int, num_envs: int):
        """`task` is what the policy was trained for. UserError where nothing can be filmed."""
        spec = policy.spec
        self.seed = seed
        self.num_envs = num_envs
        self.env, self.recorder = make_filmed_env(
            config.completed(task), num_envs, spec.act_horizon, spec.obs_horizon, policy.device
        )

    def film(self, policy: Acting) -> Film:
        """One episode per env, without exploration noise."""
        evaluate(policy, self.env, episodes=self.num_envs, seed=self.seed)
        return self.recorder.film()

    def close(self) -> None:
        """Close the envs that it films."""
        self.env.close()


@contextmanager
def filming(run: RunConfig, task: EnvSpec, config: EnvConfig, policy: Policy, seed: int) -> Iterator[Camera | None]:
    """The camera of a run whose flags ask for one, while it is open; the process that evaluates has it."""
    if not run.capture_video or not distributed.leads():
        yield None
        return
    with closing(Camera(task, config, policy, seed, run.num_video_envs)) as camera:
        yield camera


def write_film(path: Path, film: Film) -> None:
    """All envs of a film as tiles of one video."""
    write_video(path, tiled(bordered(film), columns=math.ceil(math.sqrt(film.frames.shape[1]))))


def write_comparison(path: Path, films: Sequence[Film]) -> None:
    """Films of the same start states: a row per start state, a column per film."""
    longest = max(len(film.frames) for film in films)
    columns = [np.concatenate((v, v[-1:].repeat(longest - len(v), 0))) for v in map(bordered, films)]
    rows = np.stack(columns, axis=2)  # t n film y x 3
    write_video(path, tiled(rows.reshape(longest, -1, *rows.shape[3:]), columns=len(films)))


def bordered(film: Film) -> UInt8[np.ndarray, "t n y x 3"]:
    """Frames with a border in the colour of the task's state."""
    framed = np.pad(film.frames.numpy(), ((0, 0), (0, 0), (BORDER, BORDER), (BORDER, BORDER), (0, 0)))
    edge = np.ones(framed.shape[2:4], bool)
    edge[BORDER:-BORDER, BORDER:-BORDER] = False
    framed[:, :, edge] = colours(film.success)[:, :, None]
    return framed


def colours(success: Bool[torch.Tensor, "t n"]) -> UInt8[np.ndarray, "t n 3"]:
    """Border of each frame: solved in that frame, solved before and lost again, or not yet solved."""
    once = success.int().cummax(0).values.bool()
    chosen = torch.where(success, 0, torch.where(once, 1, 2)).numpy()
    return np.array([SOLVED, LOST, OPEN], np.uint8)[chosen]


def tiled(frames: UInt8[np.ndarray, "t n y x 3"], columns: int) -> UInt8[np.ndarray, "t y2 x2 3"]:
    """Tiles row by row; what is missing in the last row is black."""
    steps, count, height, width, _ = frames.shape
    rows = math.ceil(count / columns)
    padded = np.pad(frames, ((0, 0), (0, rows * columns - count), (0, 0), (0, 0), (0, 0)))
    grid = padded.reshape(steps, rows, columns, height, width, 3).swapaxes(2, 3)
    return grid.reshape(steps, rows * height, columns * width, 3)


def write_video(path: Path, frames: UInt8[np.ndarray, "t y x 3"]) -> None:
    """H.264, which every browser plays."""
    from imageio_ffmpeg import write_frames

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    with replaced_atomically(path) as temporary:
        # the name of a temporary file does not tell ffmpeg that it is an mp4
        film = write_frames(str(temporary), (width, height), fps=FPS, macro_block_size=8, output_params=["-f", "mp4"])
        film.send(None)
        for frame in frames:
            film.send(np.ascontiguousarray(frame))
        film.close()
