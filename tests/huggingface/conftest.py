"""Settings of the integration's tests."""

from importlib.util import find_spec

import pytest
import torch

collect_ignore_glob = [] if find_spec("transformers") else ["test_*", "recipes/*"]


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
