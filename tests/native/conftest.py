"""Everything here needs the compiled library, but for the tests of what happens without one."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from lf_backend.backends.native import library


@pytest.fixture
def compiled() -> library.Library:
    found = library.found()
    if isinstance(found, library.Missing):
        pytest.skip(found.reason)
    return found


@pytest.fixture
def many_cores(compiled: library.Library) -> Iterator[None]:
    """As many threads as PyTorch says, also on a machine with fewer cores."""
    pretend = ctypes.CDLL(str(library.PATH)).lf_native_pretend_cores
    pretend.argtypes = (ctypes.c_int64,)
    pretend(64)
    yield
    pretend(0)
