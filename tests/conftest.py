"""One torch thread for every test: their nets are small, and simulator workers want the other cores."""

import signal

import torch

torch.set_num_threads(1)

# a test run in the background ignores Ctrl-C, and so would the processes whose answer to it is tested
signal.signal(signal.SIGINT, signal.default_int_handler)
