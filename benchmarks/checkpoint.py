"""A checkpoint of the default UNet: seconds that its copy stops training, and that a thread takes to write it."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks._compare import parser, save, timed
from benchmarks._training import Training
from reinflow.envs import EnvConfig
from reinflow.policies import PolicyConfig
from reinflow.runtime.trees import copied
from reinflow.storage.resumable import save_training


def main() -> None:
    """Time copying and writing one training state, in turn, and print the medians in seconds with their range."""
    flags = parser(__doc__)
    flags.add_argument("--env_id", default="PickCube-v1", help="task")
    flags.add_argument("--net", default="unet", help="network")
    flags.add_argument("--num_envs", type=int, default=16, help="envs")
    flags.add_argument("--dir", type=Path, default=None, help="where checkpoints are written; default a temporary one")
    args = flags.parse_args()
    torch.set_num_threads(args.threads or 1)
    training = Training(EnvConfig(args.env_id, num_workers=0), PolicyConfig(net=args.net), args.num_envs, decisions=2)
    folder = Path(tempfile.mkdtemp(dir=args.dir))
    seconds: dict[str, list[float]] = {"copied": [], "written": []}
    try:
        training.iterate()
        for _ in range(args.rounds):
            seconds["copied"].append(timed(lambda: copied(training.state()), 1))
            seconds["written"].append(timed(lambda: save_training(folder, 1, training.checkpoint()), 1))
        size = sum(path.stat().st_size for path in (folder / "checkpoints" / "latest").iterdir()) / 1e6
    finally:
        training.env.close()
        shutil.rmtree(folder)
    parameters = sum(p.numel() for p in training.agent.policy.parameters())
    print(f"{parameters:,} parameters, a state is {size:.0f} MB")
    for name, values in seconds.items():
        print(f"{name} in {statistics.median(values):.3f} s ({min(values):.3f} to {max(values):.3f})")
    args.dir = None
    save("checkpoint", args, [{"seconds": seconds, "megabytes": size, "parameters": parameters}])


if __name__ == "__main__":
    main()
