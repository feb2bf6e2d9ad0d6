"""One torch thread for every test: their nets are small, and simulator workers want the other cores."""

import signal

import torch

from reinflow.run import trackers
from tests.waiting import HANGS

torch.set_num_threads(1)

# a test run in the background ignores Ctrl-C, and so would the processes whose answer to it is tested
signal.signal(signal.SIGINT, signal.default_int_handler)

# a tracker that only has to import its library is not to be left behind because the machine is busy
trackers.CLOSING_SECONDS = HANGS
