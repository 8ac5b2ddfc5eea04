"""Training over ranks, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lf_backend import LFError
from tests.distributed.ranks import Ranks
from tests.huggingface.parallel import training


@pytest.mark.parametrize("name", ["Llama", "Longformer"])
def test_fsdp_over_dp_and_cp_trains_as_one_process(ranks: Ranks, name: str) -> None:
    losses, weights = training.alone(name)
    for found in ranks.run(4, training.sharded, name):
        if isinstance(found, Exception):
            raise found
        np.testing.assert_allclose(found[0], losses, rtol=2e-4)
        for key, x in weights.items():
            np.testing.assert_allclose(found[1][key], x, atol=2e-3, err_msg=key)
    assert losses[-1] != losses[0]


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (training.not_averaged, "average_gradients"),
        (training.never_averaged, "average_gradients"),
        (training.other_batches, "input_ids .* on rank 0, .* on rank 1"),
        (training.generating, "generate"),
        (training.data_parallel, "DistributedDataParallel"),
        (training.too_short, "a token for each of 3 ranks"),
        (training.unknown, "pixel_values: not known how to cut it"),
    ],
)
def test_refused(ranks: Ranks, job: Callable[..., Any], said: str) -> None:
    for error in ranks.run(3, job):
        with pytest.raises(LFError, match=said):
            raise error


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("unpatched", "LongformerSelfAttention.*attends in code of its own"),
        ("sdpa", "attends by 'sdpa'"),
        ("full", r"model.layers.1.self_attn, which attends in full"),
        ("unpad", "drops padding"),
        ("choices", "LongformerForMultipleChoice"),
        ("hooks", "accelerate's hooks"),
    ],
)
def test_models_that_ranks_cannot_share(ranks: Ranks, name: str, said: str) -> None:
    for error in ranks.run(1, training.refused, name):
        with pytest.raises(LFError, match=said):
            raise error


def test_a_mesh_of_two_dimensions(ranks: Ranks) -> None:
    for error in ranks.run(4, training.without_a_name):
        with pytest.raises(LFError, match=r"mesh: one dimension wanted.*mesh..cp"):
            raise error


def test_means_over_a_row(ranks: Ranks) -> None:
    [one] = ranks.run(1, training.pooled)
    for found in ranks.run(3, training.pooled):
        np.testing.assert_allclose(found, one, rtol=1e-4, atol=1e-5)
