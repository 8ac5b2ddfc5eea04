"""Models that come patched from transformers' own ways to make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import lf_backend as lf
import lf_huggingface
from tests.huggingface import zoo


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    zoo.longformer("LongformerForMaskedLM").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["AutoModel", "AutoModelForMaskedLM"])
def test_a_model_loads_patched_with_its_weights(saved: Path, kind: str) -> None:
    ids = zoo.tokens(1, 20)
    auto: Any = getattr(transformers, kind)
    with lf_huggingface.auto_patch():
        model = auto.from_pretrained(saved).eval()
    stock = auto.from_pretrained(saved).eval()
    patch = lf.Patch.of(model)
    assert any(row.module == "LongformerModel" for row in patch.report.rows)
    assert not any("lf_mark" in vars(module) for module in stock.modules())
    torch.testing.assert_close(model(ids)[0], stock(ids)[0])
    patch.undo()
    assert torch.equal(model(ids)[0], stock(ids)[0])


def test_a_pattern_a_backend_and_models_that_are_not_known() -> None:
    with lf_huggingface.auto_patch("window(3, 3)", backend="reference"):
        model = transformers.LongformerForMaskedLM(zoo.longformer().config)
        other = transformers.BertModel(transformers.BertConfig(hidden_size=32, num_attention_heads=4))
    report = lf.Patch.of(model).report
    assert report.backend == "reference"
    assert {str(row.pattern) for row in report.rows if row.pattern} == {"window(3, 3)"}
    assert not any("lf_mark" in vars(module) for module in other.modules())


def test_a_pattern_that_does_not_fit_is_an_error_where_the_model_is_made() -> None:
    with lf_huggingface.auto_patch(["window(3, 3)"]), pytest.raises(lf.PatternError, match="2 layers, got 1"):
        zoo.longformer()
    zoo.longformer()


def test_one_at_a_time_and_undone_once() -> None:
    stock = transformers.PreTrainedModel.post_init
    handle = lf_huggingface.auto_patch()
    with pytest.raises(lf.PatchError, match="auto_patch: one at a time wanted"):
        lf_huggingface.auto_patch()
    handle.undo()
    assert transformers.PreTrainedModel.post_init is stock
    with pytest.raises(lf.PatchError, match="undo: the patch of post_init wanted"):
        handle.undo()
