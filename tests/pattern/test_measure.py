"""The measuring tools, against functions whose time and memory are known."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lf_backend import LFError
from lf_backend.measure import interleaved, machine_load, peak_bytes, resident_bytes

MIB = 1 << 20


def test_peak_bytes_of_known_allocations():
    def function():
        one, two = torch.empty(4 * MIB, dtype=torch.uint8), torch.empty(4 * MIB, dtype=torch.uint8)
        del one
        return two, torch.zeros(8 * MIB, dtype=torch.uint8)

    assert peak_bytes(function) == 12 * MIB
    assert peak_bytes(function) == 12 * MIB  # nothing stays from one call to the next
    assert peak_bytes(lambda: None) == 0


def test_peak_bytes_counts_beyond_what_was_held_and_through_backward():
    x = torch.ones(MIB, requires_grad=True)

    def function():
        (x * 2).exp().sum().backward()
        x.grad = None

    assert 8 * MIB <= peak_bytes(function) <= 13 * MIB  # float32: the exponentials and one gradient or two


def test_peak_bytes_writes_nothing(capfd):
    peak_bytes(lambda: torch.ones(3))
    assert capfd.readouterr() == ("", "")


def test_interleaved_runs_in_turn():
    order = []
    found = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert list(found) == ["a", "b"]


def test_interleaved_begins_no_round_when_it_has_enough():
    order = []
    functions = {"a": lambda: order.append("a"), "b": lambda: time.sleep(0.01)}
    interleaved(functions, repeats=5, warmup=1, enough=0.0)
    assert order == ["a", "a"]


@pytest.mark.parametrize(("load", "word"), [(0.1, "quiet"), (2.4, "quiet"), (2.6, "busy"), (9.0, "busy")])
def test_a_crowded_machine_is_busy(load, word, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(time, "thread_time", time.perf_counter)  # the processor is this thread's alone
    assert machine_load(0.01).startswith(f"{word}: load {load} on 2 processors")


def test_interleaved_measures_seconds():
    found = interleaved({"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.01)}, repeats=5)
    assert 0.001 <= found["short"].p20 <= found["short"].median <= found["short"].p80
    assert found["long"].median >= 0.01


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process holds")
def test_resident_bytes_count_what_is_written_to():
    """In a fresh process: this one may hold free memory, which is not counted when it is used again."""
    program = (
        "from lf_backend.measure import resident_bytes as count; print(count(lambda: bytearray(64 << 20)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 64 * MIB <= int(done.stdout) <= 72 * MIB
    assert resident_bytes(lambda: None) <= 4 * MIB


def test_resident_bytes_where_nobody_says(monkeypatch):
    monkeypatch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(FileNotFoundError("/proc")))
    assert resident_bytes(lambda: None) is None


def test_errors():
    with pytest.raises(LFError, match="repeats >= 1 and warmup >= 0 wanted, got 0 and 2"):
        interleaved({}, repeats=0)
    with pytest.raises(LFError, match="device: cpu or cuda wanted, got meta"):
        peak_bytes(lambda: None, "meta")
