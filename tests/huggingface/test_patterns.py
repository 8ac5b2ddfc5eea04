"""Which pattern each layer runs: from the config, or as told; and what is wrong with either."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lf_backend as lf
from tests.huggingface import zoo


def _patterns(model: torch.nn.Module, *args: Any) -> list[str]:
    return [str(row.pattern) for row in lf.patch(model, *args).report.rows if row.pattern is not None]


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"attention_window": 8}, ["window(4, 4)", "window(4, 4)"]),
        ({"attention_window": [8, 12]}, ["window(4, 4)", "window(6, 6)"]),
        ({"attention_dilation": 2}, ["window(4, 4, dilation=2)"] * 2),
        ({"attention_dilation": [1, 3]}, ["window(4, 4)", "window(4, 4, dilation=3)"]),
        ({"attention_dilation": [1, [1, 1, 2, 4]]}, ["window(4, 4)", "window(4, 4, dilation=[1, 1, 2, 4])"]),
        ({"autoregressive": True}, ["window(4, 0) & causal()"] * 2),
        ({"autoregressive": False}, ["window(4, 4)", "window(4, 4)"]),
        (
            {"attention_dilation": [2, 1], "autoregressive": True},
            ["window(4, 0, dilation=2) & causal()", "window(4, 0) & causal()"],
        ),
    ],
)
@pytest.mark.parametrize("make", [zoo.longformer, zoo.led])
def test_what_the_config_says(make: Any, config: dict[str, Any], wanted: list[str]) -> None:
    assert _patterns(make(**config)) == wanted


@pytest.mark.parametrize(
    ("config", "note"),
    [
        ({}, ""),
        ({"attention_dilation": [1, [1, 1, 1, 1]], "autoregressive": False}, ""),
        ({"attention_dilation": [1, 2]}, "runs attention_dilation=[1, 2], which transformers ignores"),
        ({"autoregressive": True}, "runs autoregressive=True, which transformers ignores"),
    ],
)
def test_the_report_says_what_transformers_would_not_do(config: dict[str, Any], note: str) -> None:
    rows = lf.patch(zoo.longformer(**config)).report.rows
    assert [row.note for row in rows if row.pattern is not None] == [note, note]


def test_an_override_is_one_pattern_or_one_per_layer_or_their_strings() -> None:
    window = lf.Window(3, 3) | lf.Global(0)
    assert _patterns(zoo.longformer(), window) == ["window(3, 3) | global(0)"] * 2
    assert _patterns(zoo.longformer(), "window(3, 3, dilation=2)") == ["window(3, 3, dilation=2)"] * 2
    assert _patterns(zoo.longformer(), [window, "window(1, 1)"]) == [
        "window(3, 3) | global(0)",
        "window(1, 1)",
    ]


def test_a_global_token_of_the_pattern_is_one_of_the_mask() -> None:
    by_pattern, by_mask = zoo.longformer(), zoo.longformer()
    lf.patch(by_pattern, "window(4, 4) | global(0, 5)")
    lf.patch(by_mask)
    ids = zoo.tokens(2, 20)
    mask = torch.zeros_like(ids)
    mask[:, [0, 5]] = 1
    asked = {"output_attentions": True}
    want, got = by_mask(ids, global_attention_mask=mask, **asked), by_pattern(ids, **asked)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, msg=name)


def test_a_global_token_behind_the_input() -> None:
    model = zoo.longformer()
    lf.patch(model, "window(4, 4) | global(20)")
    with pytest.raises(lf.PatternError, match="global position < 8"):
        model(zoo.tokens(1, 8))


def test_a_wrong_number_of_patterns() -> None:
    with pytest.raises(lf.PatternError, match="pattern: one per layer wanted, 2 layers, got 3 patterns"):
        lf.patch(zoo.longformer(), ["window(1, 1)"] * 3)


@pytest.mark.parametrize("pattern", [[], 3, [3], {"term": "causal"}])
def test_what_is_no_pattern(pattern: Any) -> None:
    with pytest.raises(lf.PatternError, match="pattern: a"):
        lf.patch(zoo.longformer(), pattern)


def test_a_pattern_for_another_number_of_heads() -> None:
    with pytest.raises(lf.PatternError, match="dilation: one int per head wanted, 4 heads, got 3"):
        lf.patch(zoo.longformer(), "window(1, 1, dilation=[1, 2, 3])")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("attention_window", 7, r"attention_window: an even number > 0 .* wanted, layer 0 has 7"),
        ("attention_window", [8, 9], r"attention_window: an even number > 0 .* wanted, layer 1 has 9"),
        ("attention_window", [8, 0], r"attention_window: an even number > 0 .* wanted, layer 1 has 0"),
        ("attention_window", [8], "attention_window: one entry per layer wanted, 2 layers, got 1"),
        ("attention_dilation", [1] * 3, "attention_dilation: one entry per layer wanted, 2 layers, got 3"),
        ("attention_dilation", [1, [1, 2]], "attention_dilation: layer 1: .* 4 heads, got 2"),
        ("attention_dilation", 0, "attention_dilation: layer 0: dilation >= 1 wanted, got 0"),
        ("attention_dilation", "2", "attention_dilation: layer 0: dilation: an int wanted, got '2'"),
        ("autoregressive", 1, "autoregressive: True or False wanted, got 1"),
    ],
)
def test_a_config_that_means_nothing(name: str, value: Any, text: str) -> None:
    model = zoo.longformer()
    vars(model.config)[name] = value  # past upstream's own checks
    with pytest.raises(lf.PatternError, match=text):
        lf.patch(model)
    assert not any("lf_mark" in vars(module) for module in model.modules())


def test_a_layer_beyond_the_configs_number_of_layers() -> None:
    model = zoo.longformer()
    model.encoder.layer[1].attention.self.layer_id = 4
    with pytest.raises(lf.PatchError, match=r"encoder.layer.1.attention.self: layer_id < 2 .* wanted, got 4"):
        lf.patch(model)
