"""Let tests import their helpers as ``tests.…``, whichever way pytest was started."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
torch.set_num_threads(1)
