"""Ranks that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.ranks import Ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    store = tmp_path_factory.mktemp("group") / "store"
    found = Ranks(store, preload="tests.huggingface.parallel.preload")
    yield found
    found.close()
