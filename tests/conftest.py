"""Settings of all tests: Hypothesis profiles, and one thread where tensors are small."""

import torch
from hypothesis import settings

settings.register_profile("default", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=2000)
settings.load_profile("default")

torch.set_num_threads(1)
