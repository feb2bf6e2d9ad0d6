"""One torch thread for every test: their nets are small, and simulator workers want the other cores."""

import torch

torch.set_num_threads(1)
