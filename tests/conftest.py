"""Settings of all tests: Hypothesis profiles, and one thread where tensors are small."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from lf_backend.backends.native import Native
from lf_backend.dispatch import registry

# Where CI is set, examples are the same in every run: red means that the code has changed. Fresh ones are
# drawn everywhere else, and 2,000 of them for each backend by `tox run -e fuzz`; few where one takes seconds:
# in Triton's interpreter, or with kernels to compile.
settings.register_profile("default", deadline=None, derandomize="CI" in os.environ)
settings.register_profile("fuzz", deadline=None, derandomize=False, max_examples=2000)
settings.register_profile("few", deadline=None, derandomize="CI" in os.environ, max_examples=10)
settings.load_profile("default")

torch.set_num_threads(1)


@pytest.fixture
def without_native() -> Iterator[None]:
    """The choice of backends as on a machine without a compiler, whether this one has had one or not."""
    registry.unregister(Native.name)
    yield
    registry.register(Native)
