"""Imports what every rank needs, once for all of them."""

import torch
import transformers

import lf_huggingface  # noqa: F401
from tests.huggingface.parallel import jobs, models, training  # noqa: F401

torch.set_num_threads(1)
for name in models.NAMES:  # transformers loads a family when it is first used
    models.build(name)
assert transformers.__version__
