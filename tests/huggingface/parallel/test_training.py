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


def test_batches_that_are_sharded_ahead(ranks: Ranks) -> None:
    """Padding and documents are those of each batch, and not of the one that was sharded last."""
    for found in ranks.run(3, training.ahead):
        if isinstance(found, Exception):
            raise found
        at_once, several, wanted = np.array_split(found, 3)
        np.testing.assert_allclose(at_once, wanted, rtol=1e-5)
        np.testing.assert_allclose(several, wanted, rtol=1e-5)


def test_one_backward_of_two_forwards_whose_layers_are_computed_again(ranks: Ranks) -> None:
    for error in ranks.run(2, training.two_forwards, 9):
        if isinstance(error, Exception):
            raise error
        assert error < 1e-5
    for error in ranks.run(2, training.two_forwards, 23):
        with pytest.raises(LFError, match="gradient checkpointing: the backward of a batch before"):
            raise error


@pytest.mark.parametrize("length", [None, 60])
def test_a_batch_that_is_no_slice(ranks: Ranks, length: int | None) -> None:
    for error in ranks.run(2, training.unsharded, length):
        with pytest.raises(LFError, match=r"input_ids: .*cp.shard\(batch\).* wanted .* got \[2, 41\]"):
            raise error


@pytest.mark.parametrize(
    ("name", "value"), [("use_cache", True), ("past_key_values", ()), ("logits_to_keep", 1)]
)
def test_arguments_that_ranks_do_not_have(ranks: Ranks, name: str, value: Any) -> None:
    for error in ranks.run(2, training.asked_for, name, value):
        with pytest.raises(LFError, match=f"{name}: .* wanted over ranks"):
            raise error
