"""transformers' Trainer over ranks logs and predicts what it does in one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lf_backend import LFError
from tests.distributed.ranks import Ranks
from tests.huggingface.parallel import trained


@pytest.mark.filterwarnings("ignore")  # of what accelerate and transformers deprecate
@pytest.mark.parametrize(("name", "size", "cp_size"), [("Llama", 4, 2), ("Longformer", 4, 4)])
def test_losses_and_predictions(ranks: Ranks, name: str, size: int, cp_size: int) -> None:
    wanted = trained.results(None, name, 1)
    for found in ranks.run(size, trained.results, name, cp_size):
        if isinstance(found, Exception):
            raise found
        for part in ("losses", "norms", "evaluated", "predictions"):
            np.testing.assert_allclose(found[part], wanted[part], rtol=2e-3, atol=2e-3, err_msg=part)


def _smoothing(mesh: Any) -> Any:
    return trained.results(mesh, "Llama", 4, label_smoothing_factor=0.1)


def test_label_smoothing_is_refused(ranks: Ranks) -> None:
    for error in ranks.run(4, _smoothing):
        with pytest.raises(LFError, match="label_smoothing_factor: none wanted over ranks"):
            raise error
