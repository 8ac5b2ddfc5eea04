"""info, explain and draw from the command line: what they say, and what they say to bad input."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from lf_backend import Backend, schedules
from lf_backend.cli.app import app
from lf_backend.dispatch import registry
from lf_backend.dispatch.registry import Broken


def run(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_info_shows_every_backend_and_what_it_runs(monkeypatch):
    monkeypatch.setenv("LF_BACKEND", "reference")
    result = run("info")
    assert result.exit_code == 0, result.output
    for word in (*registry.backends(), "torch", "devices", "matplotlib", "everything"):
        assert word in result.output
    assert "LF_BACKEND" in result.output and "reference" in result.output
    assert "all but band bias, dropout, values of another width than keys" in result.output  # flex
    assert "backward, packed documents" in result.output  # flash, which has less than half of them


def test_info_shows_a_broken_plug_in(monkeypatch):
    entries = {**registry.backends(), "wrong": Broken("wrong", "ImportError: no such thing")}
    monkeypatch.setattr("lf_backend.cli.info.backends", lambda: entries)
    assert "backend wrong could not be loaded: ImportError: no such thing" in run("info").output


def test_explain_prints_the_selection():
    shape = "--length 64 --keys 80 --heads 4 --kv-heads 2 --head-dim 8 --dtype bfloat16"
    result = run(
        "explain", "window(4, 4) | global(0)", *shape.split(), "--with", "backward", "--with", "key_padding"
    )
    assert result.exit_code == 0, result.output
    first, second, *verdicts, row = result.output.splitlines()
    assert row.startswith("nearest measured call: ")
    assert first == (
        "q [1, 4, 64, 8], k [1, 2, 80, 8], bfloat16; needs backward, global columns, "
        "grouped heads (H > Hkv), key padding, more keys than queries"
    )
    assert second.endswith("automatic")
    assert len(verdicts) == len(registry.backends()) and any("runs it" in verdict for verdict in verdicts)


@pytest.mark.parametrize(
    "need", ["global_mask", "global_projections", "sinks", "band_bias", "softcap", "dropout"]
)
def test_explain_takes_every_need(need):
    result = run("explain", "window(4, 4) | global(0)", "--length", "64", "--with", need)
    assert result.exit_code == 0, result.output


def test_explain_asks_about_a_machine_that_is_not_here():
    class Elsewhere(Backend):
        name, priority, capabilities = "elsewhere", 1000, next(iter(registry.working().values())).capabilities

        def reasons(self, problem, machine):
            return [] if machine.capability == (9, 0) and machine.version("thing") == "3.6" else ["not there"]

        def forward(self, call): ...

        def backward(self, call, grad_out, delta, lse): ...

    registry.register(Elsewhere)
    try:
        assert "cannot: not there" in run("explain", "window(1, 1)").output
        there = run("explain", "window(1, 1)", "--machine", "cuda:9.0", "--package", "thing=3.6").output
    finally:
        registry.unregister("elsewhere")
    assert "on cuda, capability 9.0" in there and "elsewhere   runs it" in there


def test_draw_prints_the_picture():
    result = run("draw", "window(1, 0)", "--length", "3", "--ascii")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[2:] == [" # . .", " # # .", " . # #", "# window"]


def test_draw_reads_patterns_and_schedules_from_files(tmp_path):
    path = tmp_path / "layers.json"
    path.write_text(schedules.to_json(schedules.longformer_lm()), encoding="utf-8")
    output = run("draw", str(path), "--length", "16").output
    for line in ("layers 0-1:", "layers 6-7:", "layer 8:", "layer 9:", "layers 10-11:", "heads 2-7"):
        assert line in output.splitlines()
    path.write_text(json.dumps({"term": "causal"}), encoding="utf-8")
    assert run("draw", str(path), "--length", "2", "--ascii").output.splitlines()[2:4] == [" # .", " # #"]
    path.write_text('["window(1, 0)"]', encoding="utf-8")
    assert run("explain", str(path)).exit_code == 0


def test_draw_writes_a_png_file(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.png"
    result = run("draw", "window(2, 2, dilation=[1, 2]) | global(0)", "--length", "12", "--out", str(path))
    assert result.exit_code == 0 and f"written: {path}" in result.output
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["draw", "window(1"], "error: column 9 of 'window(1': ')' or ',' wanted, got the end"),
        (["draw", "global(9)", "--length", "4"], "error: global position < 4 (the number of keys) wanted"),
        (["draw", "no_such.json"], "error: no_such.json: No such file or directory"),
        (["draw", "{bad}"], "error: {bad}: JSON wanted"),
        (["draw", "{layers}", "--out", "x.png"], "error: --out: one pattern wanted"),
        (["draw", "causal()", "--out", "no_such/x.png"], "error: no_such/x.png: No such file or directory"),
        (["draw", "causal()", "--length", "0"], "Invalid value for '--length'"),
        (["explain", "{layers}"], "one pattern wanted, got 12"),
        (
            ["explain", "window(1, 1)", "--heads", "4", "--kv-heads", "3"],
            "error: k: a number of heads that divides",
        ),
        (
            ["explain", "window(1, 1)", "--with", "global_projections"],
            "error: global_q: a pattern with global",
        ),
        (
            ["explain", "window(1, none)", "--with", "band_bias"],
            "error: band_bias: a pattern with exactly one",
        ),
        (
            ["explain", "causal()", "--machine", "cuda:9"],
            "error: --machine: a device, or cuda:MAJOR.MINOR wanted",
        ),
        (
            ["explain", "causal()", "--package", "triton"],
            "error: --package: NAME=VERSION wanted, got 'triton'",
        ),
        (["explain", "causal()", "--dtype", "int8"], "Invalid value for '--dtype'"),
        (
            ["explain", "causal()", "--length", "8", "--keys", "4"],
            "error: q: at most as many queries as keys",
        ),
    ],
)
def test_bad_input_is_a_line_and_exit_code_2(arguments, message, tmp_path):
    files = {"{bad}": "bad.json", "{layers}": "layers.json"}
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    (tmp_path / "layers.json").write_text(schedules.to_json(schedules.longformer_lm()), encoding="utf-8")
    if any("x.png" in argument for argument in arguments):
        pytest.importorskip("matplotlib")
    for mark, name in files.items():
        arguments = [str(tmp_path / name) if argument == mark else argument for argument in arguments]
        message = message.replace(mark, str(tmp_path / name))
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output


def test_the_module_runs_and_the_library_stays_light():
    command = [sys.executable, "-m", "lf_backend", "draw", "causal()", "--length", "2", "--ascii"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("causal()")
    heavy = ("typer", "rich", "lark", "matplotlib", "transformers", "torch.utils.benchmark")
    code = f"import sys, lf_backend; assert not [name for name in {heavy} if name in sys.modules]"
    subprocess.run([sys.executable, "-c", code], check=True)
