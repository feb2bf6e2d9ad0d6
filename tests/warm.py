"""Imports all that a script may import; nothing is simulated and no thread started, so that processes can be forked."""

import h5py  # noqa: F401
import mani_skill.envs  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

import reinflow.algos.awr
import reinflow.algos.reinflow
import reinflow.data.demos
import reinflow.envs.cpu_batch.system
import reinflow.envs.maniskill
import reinflow.recording.collect
import reinflow.training.trainer  # noqa: F401
