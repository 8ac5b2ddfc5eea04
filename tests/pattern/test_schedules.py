"""The paper's schedules, number by number, and their written forms."""

import pytest

import lf_backend as lf
from lf_backend import Global, PatternError, Window, conventions, schedules


def sizes(layers):
    return [layer.left + layer.right + 1 for layer in layers]


def test_small_lm_is_table_12():
    layers = schedules.longformer_lm("small")
    assert sizes(layers) == [32, 32, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512]
    assert [layer.dilation if layer.heads is None else layer.dilation[0] for layer in layers] == [
        1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4,
    ]  # fmt: skip
    assert layers[-1].dilation == (4, 4, 1, 1, 1, 1, 1, 1)
    assert all(layer.right == 0 for layer in layers)


def test_large_lm_is_table_12():
    layers = schedules.longformer_lm("large")
    dilations = [layer.dilation if layer.heads is None else layer.dilation[0] for layer in layers]
    assert dilations == [1] * 15 + [2] * 5 + [3] * 5 + [4] * 5
    assert sizes(layers) == [size for size in (32, 64, 128, 256, 512) for _ in range(6)]


def test_every_phase_doubles_the_windows():
    for phase in range(1, 6):
        layers = schedules.longformer_lm("small", phase)
        assert sizes(layers) == [2 ** (phase - 1) * size for size in sizes(schedules.longformer_lm())]
    assert sizes(layers)[0] == 512 and sizes(layers)[-1] == 8192


def test_ablation_is_table_4():
    increasing, decreasing = (schedules.longformer_ablation(name) for name in ("increasing", "decreasing"))
    assert increasing == decreasing[::-1] and sizes(increasing)[0] == 32
    assert sizes(schedules.longformer_ablation("fixed")) == [230] * 12
    assert round(sum(sizes(increasing)) / 12) == 229  # the fixed window is their mean
    dilated = schedules.longformer_ablation("dilated")
    assert sizes(dilated) == sizes(increasing) and dilated != increasing


def test_generic_schedules():
    assert schedules.growing(3, 2, 8) == tuple(map(Window.causal, (2, 4, 8)))
    assert schedules.growing(2, 4, 4) == schedules.fixed(2, 4)
    assert schedules.shrinking(4, 4, 2) == tuple(map(Window.causal, (4, 4, 2, 2)))
    two_sided = schedules.growing(2, 4, 8, of=conventions.huggingface)
    assert two_sided == (Window(2, 2), Window(4, 4))
    assert schedules.dilated(two_sided, [1, 3], heads=3) == (Window(2, 2), Window(4, 4, (3, 3, 1)))


def test_receptive_field_is_the_sum_of_reaches():
    assert lf.receptive_field([Window(2, 1), Window(3, 0, (1, 2)) | Global(0)]) == (8, 1)
    assert lf.receptive_field([Window(None, 1), Window(1, 1)]) == (None, 2)
    assert lf.receptive_field([Global(0)]) == (0, 0)
    assert lf.receptive_field(schedules.longformer_lm("large")) == (17540, 0)


def test_round_trips():
    for layers in (schedules.longformer_lm("large", 3), (Window(1, None) | Global(0, 2),)):
        assert schedules.from_list(schedules.to_list(layers)) == layers
        assert schedules.from_json(schedules.to_json(layers)) == layers
        assert schedules.from_list([str(layer) for layer in layers]) == layers


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.longformer_lm("tiny"), r"size: one of \['large', 'small'\] wanted, got 'tiny'"),
        (lambda: schedules.longformer_lm("small", 6), r"phase in \[1, 6\) wanted, got 6"),
        (lambda: schedules.longformer_lm("small", 0), r"phase in \[1, 6\) wanted, got 0"),
        (
            lambda: schedules.longformer_ablation("none"),
            r"name: one of \['decreasing', .*\] wanted, got 'none'",
        ),
        (lambda: schedules.growing(4, 32, 100), r"top: bottom=32 times a power of two wanted, got 100"),
        (lambda: schedules.growing(4, 32, 16), r"top >= 32 wanted, got 16"),
        (lambda: schedules.growing(4, 32, 512), r"layers >= 5 wanted, got 4"),
        (lambda: schedules.fixed(0, 4), r"layers >= 1 wanted, got 0"),
        (lambda: schedules.dilated((Window(1, 0),), [1, 2], 4), r"dilations: one per layer, 1 wanted, got 2"),
        (lambda: schedules.dilated((Window(1, 0),), [2], 4, on=5), r"on in \[0, 5\) wanted, got 5"),
        (lambda: schedules.dilated((Global(0),), [2], 4), r"schedule: a window without dilation wanted"),
        (lambda: schedules.from_list([]), r"schedule: a list of at least one pattern wanted, got \[\]"),
        (lambda: schedules.from_list("causal()"), r"schedule: a list of at least one pattern wanted"),
        (lambda: schedules.from_list(["causal()", "window(1)"]), r"schedule\[1\]: column 1 of"),
        (lambda: schedules.from_list([{"term": "window"}]), r"schedule\[0\]: keys .* missing"),
        (lambda: schedules.from_json("["), r"schedule: JSON wanted, got '\['"),
        (
            lambda: lf.receptive_field([lf.Predicate(lambda h, q, k: q == k)]),
            r"receptive_field: windows and globals wanted, got predicate",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(PatternError, match=message):
        make()
