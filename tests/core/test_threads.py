"""State of the whole process, under many threads at once and over many calls."""

import gc
import subprocess
import sys
import textwrap
import weakref

import pytest
import torch

import lf_backend as lf
from lf_backend.backends.reference import Reference
from lf_backend.dispatch import registry
from lf_backend.pattern import block_map

PREAMBLE = """
import sys, threading
sys.setswitchinterval(1e-6)
import torch
torch.set_num_threads(1)

def at_once(count, work):
    start, errors, results = threading.Barrier(count), [], [None] * count
    def run(index):
        start.wait()
        try:
            results[index] = work(index)
        except BaseException as error:
            errors.append(repr(error))
    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not errors, errors
    return results
"""


def in_a_fresh_process(code):
    """Run the code after `PREAMBLE`; warnings are errors there as here."""
    program = PREAMBLE + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("pattern", ["window(8, 8)", "block_local(4) | global(0)"])
def test_first_calls_of_sixteen_threads(pattern):
    in_a_fresh_process(f"""
        import lf_backend as lf
        q = torch.randn(1, 2, 40, 8, generator=torch.Generator().manual_seed(0))
        def work(index):
            own = q.clone().requires_grad_()
            out = lf.attention(own, own, own, "{pattern}")
            out.sum().backward()
            return out.detach(), own.grad
        results = at_once(16, work)
        assert all(torch.equal(a, b) for one in results for a, b in zip(one, results[0]))
    """)


def test_nobody_sees_a_part_of_the_registry():
    in_a_fresh_process("""
        from lf_backend.dispatch import registry
        from lf_backend.backends.reference import Reference
        results = at_once(16, lambda index: tuple(map(id, registry.backends().values())))
        assert len(set(results)) == 1 and len(results[0]) > 4
        def work(index):
            registry.register(type(f"B{index}", (Reference,), {"name": f"b{index}", "priority": -1}))
        at_once(16, work)
        assert {f"b{index}" for index in range(16)} < registry.backends().keys()
    """)


def test_a_backend_that_asks_while_it_is_loaded(monkeypatch):
    class Other(Reference):
        name, priority = "other", -1

    seen = []

    def load():
        seen.append(tuple(registry.backends()))
        q = torch.ones(1, 1, 4, 2)
        lf.attention(q, q, q, "window(1, 1)")
        return Other

    found = registry._found
    monkeypatch.setattr(registry, "_backends", {})
    monkeypatch.setattr(registry, "_discovered", False)
    monkeypatch.setattr(registry, "_found", lambda: [*found(), ("other", load)])
    registry._bump()
    assert "other" in registry.backends()
    assert "reference" in seen[0] and "other" not in seen[0]
    monkeypatch.undo()
    registry._bump()


def test_patterns_of_many_threads():
    in_a_fresh_process("""
        import lf_backend as lf
        q = torch.randn(1, 1, 24, 4, generator=torch.Generator().manual_seed(0))
        def work(index):
            found = []
            for step in range(4):
                pattern = lf.sparsity.documents([0, 1 + (index + step) % 22, 24])
                found.append((pattern, lf.attention(q, q, q, pattern)))
            return found
        for results in at_once(16, work):
            for pattern, out in results:
                torch.testing.assert_close(out, lf.attention(q, q, q, pattern, backend="reference"))
    """)


def _fresh(index):
    """A call with document boundaries that no other has, forward and backward."""
    first, second = 1 + index % 50, 60 + index // 50
    q = torch.randn(1, 1, 128, 4, requires_grad=True)
    pattern = lf.sparsity.documents([0, first, second, 128]) & lf.Causal()
    lf.attention(q, q, q, pattern).sum().backward()
    return pattern


def test_memory_is_flat_over_a_thousand_calls_with_fresh_boundaries():
    for index in range(100):
        _fresh(index)
    gc.collect()
    before = sys.getallocatedblocks()
    for index in range(100, 1100):
        _fresh(index)
    gc.collect()
    grown = sys.getallocatedblocks() - before
    assert grown < 4000, f"{grown} objects more after 1,000 calls"


def test_patterns_that_nobody_holds_go():
    rule = lf.Predicate(lambda head, query, key: key <= query)
    pattern, gone = rule | lf.Window(1, 1), weakref.ref(rule)
    q = torch.ones(1, 1, 8, 2, requires_grad=True)
    out = lf.attention(q, q, q, pattern)
    del rule, pattern
    out.sum().backward()  # what the backward needs is held by the graph
    del out
    gc.collect()
    assert gone() is None


def test_what_is_derived_from_a_rule_is_found_again(monkeypatch):
    asked = []
    evaluated = block_map._spans
    monkeypatch.setattr(block_map, "_spans", lambda *args: asked.append(args) or evaluated(*args))
    q = torch.ones(1, 1, 200, 2)
    pattern = lf.sparsity.block_local(16, 1)
    lf.attention(q, q, q, pattern, backend="blocked")
    count = len(asked)
    for _ in range(3):
        lf.attention(q, q, q, lf.sparsity.block_local(16, 1), backend="blocked")
    assert count and len(asked) == count
