"""Imports what every rank needs, once for all of them."""

import torch
import torch.distributed.tensor

from tests.distributed import calls, jobs  # noqa: F401

torch.set_num_threads(1)
