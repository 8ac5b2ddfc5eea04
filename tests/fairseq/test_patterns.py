"""Reading `--attention-pattern`: text, JSON, files, one or one per layer; errors say what was wanted."""

import json

import pytest

import lf_backend as lf
from lf_fairseq import pattern_option


def test_one_pattern_is_for_all_layers():
    assert (
        pattern_option.read(" window(3, 3) | global(0) ", 3, causal=False)
        == ((lf.Window(3, 3) | lf.Global(0)),) * 3
    )


def test_a_list_is_one_per_layer():
    wanted = (lf.Window(1, 0) & lf.Causal(), lf.Window(3, 0, (1, 2)) & lf.Causal())
    text = json.dumps(["window(1, 0)", lf.to_dict(wanted[1])])
    assert pattern_option.read(text, 2, causal=True, heads=2) == wanted
    assert pattern_option.read(lf.schedules.to_json(wanted), 2, causal=True) == wanted


@pytest.mark.parametrize("text", ['"window(3, 0)"', '{"term": "window", "left": 3, "right": 0}'])
def test_json_of_one_pattern(text):
    assert pattern_option.read(text, 2, causal=True) == (lf.Window(3, 0) & lf.Causal(),) * 2


def test_a_file_is_read_and_written_without_it(tmp_path):
    path = tmp_path / "schedule.json"
    path.write_text(lf.schedules.to_json(lf.schedules.growing(2, 4, 8)))
    read = pattern_option.read(str(path), 2, causal=True)
    assert read == tuple(pattern & lf.Causal() for pattern in lf.schedules.growing(2, 4, 8))
    text = pattern_option.write(str(path))
    path.unlink()
    assert pattern_option.read(text, 2, causal=True) == read


@pytest.mark.parametrize(
    "text", ["window(3, 0)", '["window(1, 0)"]', '["causal()", "window(1, 0) | global(0)"]']
)
def test_written_text_reads_the_same(text):
    layers = len(json.loads(text)) if text.startswith("[") else 2
    written = pattern_option.write(text)
    assert pattern_option.read(written, layers, causal=False) == pattern_option.read(
        text, layers, causal=False
    )
    assert pattern_option.write(written) == written


def test_a_list_of_one_stays_a_list():
    with pytest.raises(lf.PatternError, match=r"2 layers, got 1"):
        pattern_option.read(pattern_option.write('["window(1, 0)"]'), 2, causal=True)


def test_a_causal_model_cuts_globals():
    (pattern,) = pattern_option.read("window(3, 0) | global(0, 5)", 1, causal=True)
    assert pattern == (lf.Window(3, 0) | lf.Global(0, 5)) & lf.Causal()
    assert not pattern.visible(4, 5) and pattern.visible(9, 5)


def test_a_causal_model_cuts_rules_that_are_no_windows():
    (pattern,) = pattern_option.read("block_local(4)", 1, causal=True)
    assert pattern.is_causal and pattern.visible(6, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("window(3, 0", r"--attention-pattern: column 12 of 'window\(3, 0'"),
        ('["window(1, 0)", "window(1"]', r"--attention-pattern: schedule\[1\]: column 9"),
        ('["window(1, 0)"]', r"--attention-pattern: one pattern, or one per layer wanted, 2 layers, got 1"),
        ("[]", r"--attention-pattern: .*at least one pattern wanted, got \[\]"),
        ("[1", r"--attention-pattern: JSON wanted, got .*line 1 column 3"),
        ('{"left": 1}', r"--attention-pattern: pattern.term: one of .* wanted, got None"),
        ("no.json", r"--attention-pattern: a readable JSON file wanted, got no.json: .*No such file"),
        ("", r"--attention-pattern: a pattern, JSON, or the path of a JSON file wanted, got ''"),
        ("window(1, 0, dilation=[1, 2])", r"--attention-pattern: layer 0: dilation: .*4 heads, got 2 values"),
        (
            '["window(1, 0)", "window(5, 5, dilation=2)"]',
            r"--attention-pattern: layer 1: a window without steps ahead wanted in a causal model, got "
            r"window\(5, 5, dilation=2\); for the same reach back write window\(5, 0, dilation=2\)",
        ),
        ("window(none, none)", r"got window\(none, none\); .* write window\(none, 0\)"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(lf.PatternError, match=message):
        pattern_option.read(text, 2, causal=True, heads=4)


def test_a_file_without_json(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text("3")
    with pytest.raises(
        lf.PatternError, match=r"JSON in .*bad.json of a pattern or a list of patterns wanted, got 3"
    ):
        pattern_option.read(str(path), 1, causal=True)
    path.write_text("[1,")
    with pytest.raises(lf.PatternError, match=r"JSON in .*bad.json wanted, got .*line 1"):
        pattern_option.read(str(path), 1, causal=True)


def test_errors_name_the_option():
    with pytest.raises(lf.PatternError, match=r"^--decoder-attention-pattern: column 1"):
        pattern_option.read("x", 1, causal=True, option="--decoder-attention-pattern")
