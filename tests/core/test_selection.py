"""Which backend runs a call, why not the others, and how a user has a say."""

from dataclasses import replace

import pytest
import torch

import lf_backend as lf
from lf_backend.backend import Backend, Call, Capabilities, Gradients
from lf_backend.dispatch import registry
from lf_backend.problem import Feature, Machine, Problem

Q = torch.randn(1, 2, 12, 8)
W = lf.Window(3, 3)
H200 = Machine("cuda", "NVIDIA H200", (9, 0), (("triton", "3.9.0"),))


class OnlyHopper(Backend):
    """A backend for a machine that is not here."""

    name = "only_hopper"
    priority = 900
    capabilities = Capabilities(
        features=frozenset({Feature.BACKWARD}),
        dtypes=frozenset({"bfloat16"}),
        devices=frozenset({"cuda"}),
        max_head_dim=64,
        packages=("triton",),
    )

    def forward(self, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("never runs here")

    def backward(self, call, grad_out, out, delta, lse) -> Gradients:
        raise AssertionError("never runs here")


@pytest.fixture
def hopper():
    yield registry.register(OnlyHopper)
    registry.unregister("only_hopper")


@pytest.mark.usefixtures("without_native")
def test_explain_says_who_runs_and_why_not_the_others(hopper) -> None:
    text = str(lf.explain(Q, Q, Q, lf.Predicate(lambda h, i, j: j <= i)))
    assert "blocked      runs it" in text and "reference    could, but blocked comes first" in text
    assert "only_hopper  cannot: predicate is not supported; dtype in ['bfloat16'] wanted" in text


@pytest.mark.usefixtures("without_native")
def test_explain_takes_meta_tensors_and_machines_nobody_has(hopper) -> None:
    q = torch.empty(1, 2, 10**6, 64, dtype=torch.bfloat16, device="meta")
    assert lf.explain(q, q, q, W, machine=H200).chosen == "only_hopper"
    # Beside a window of a few keys the two take about as long, and either may have been measured faster.
    assert lf.explain(q, q, q, W, machine=Machine("cpu")).chosen in ("blocked", "portable")


class Atomic(OnlyHopper):
    """The same with gradients that differ from run to run."""

    name = "atomic"
    capabilities = replace(OnlyHopper.capabilities, deterministic=False)


def test_gradients_that_differ_from_run_to_run_are_asked_for_by_name() -> None:
    """However fast they are: not even a measured row makes them the choice."""
    q = torch.empty(1, 2, 4096, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
    registry.register(Atomic)
    try:
        found = lf.explain(q, q, q, W, machine=H200)
        assert found.verdicts[0].backend == "atomic" and found.chosen == "triton"
        assert "could, by name alone: its gradients differ from run to run" in str(found)
        assert lf.explain(q.detach(), q.detach(), q.detach(), W, machine=H200).chosen == "atomic"
        assert lf.explain(q, q, q, W, machine=H200, backend="atomic").chosen == "atomic"
    finally:
        registry.unregister("atomic")


def test_all_reasons_with_values(hopper) -> None:
    q = torch.empty(1, 2, 12, 80, device="meta")
    selection = lf.explain(q, q, q, W | lf.Global(0), machine=Machine("cpu"))
    reasons = next(v.reasons for v in selection.verdicts if v.backend == "only_hopper")
    assert reasons == (
        "global columns is not supported",
        "dtype in ['bfloat16'] wanted, call has float32",
        "device in ['cuda'] wanted, call has cpu",
        "head_dim <= 64 wanted, call has 80",
        "package triton is not installed",
    )


def test_problem_names_what_a_call_needs() -> None:
    q, k = torch.randn(1, 4, 6, 8, requires_grad=True), torch.randn(1, 2, 12, 8)
    pattern = lf.Window(2, None, (1, 1, 2, 2)) | lf.Window(1, 1) | lf.Global(3)
    padding = torch.zeros(1, 12, dtype=torch.bool)
    problem = lf.explain(q, k, k, pattern, key_padding=padding, softcap=3.0, dropout_p=0.1).problem
    others = {Feature.PREDICATE, Feature.BAND_BIAS, Feature.VALUE_WIDTH, Feature.DOCUMENTS}
    assert problem.features == set(Feature) - others
    assert (problem.queries, problem.keys, problem.heads, problem.kv_heads) == (6, 12, 4, 2)


def test_backward_is_needed_only_where_a_gradient_is() -> None:
    leaf = Q.clone().requires_grad_()
    assert Feature.BACKWARD in lf.explain(leaf, Q, Q, W).problem.features
    assert Feature.BACKWARD not in lf.explain(Q, Q, Q, W).problem.features
    with torch.no_grad():
        assert Feature.BACKWARD not in lf.explain(leaf, Q, Q, W).problem.features


def test_argument_comes_before_context_before_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lf.explain(Q, Q, Q, W).asked is None
    monkeypatch.setenv("LF_BACKEND", "reference")
    assert lf.explain(Q, Q, Q, W).chosen == "reference"
    with lf.use_backend("blocked"):
        assert lf.explain(Q, Q, Q, W).chosen == "blocked"
        with lf.use_backend("reference"):
            assert lf.explain(Q, Q, Q, W).chosen == "reference"
        assert lf.explain(Q, Q, Q, W, backend="reference").chosen == "reference"
    assert lf.explain(Q, Q, Q, W).chosen == "reference"


def test_unknown_names_list_the_known(monkeypatch: pytest.MonkeyPatch) -> None:
    text = r"backend: one of \[.*'blocked'.*'reference'\] wanted, got 'fastest'"
    with pytest.raises(lf.LFError, match=text), lf.use_backend("fastest"):
        pass
    monkeypatch.setenv("LF_BACKEND", "fastest")
    with pytest.raises(lf.LFError, match=text):
        lf.attention(Q, Q, Q, W)


def test_a_forced_backend_is_never_substituted(hopper) -> None:
    with pytest.raises(lf.UnsupportedError, match="backend 'only_hopper' cannot run this call"):
        lf.attention(Q, Q, Q, W, backend="only_hopper")
    assert lf.explain(Q, Q, Q, W, backend="only_hopper").chosen is None


def test_decisions_are_cached_until_the_registry_changes() -> None:
    problem = Problem(frozenset(), "bfloat16", 1, 2, 2, 12, 12, 8)
    first = lf.select(problem, H200)
    assert lf.select(problem, H200) is first
    registry.register(OnlyHopper)
    try:
        assert lf.select(problem, H200).chosen == "only_hopper"
    finally:
        registry.unregister("only_hopper")
    assert lf.select(problem, H200) == first


def test_nobody_can() -> None:
    problem = Problem(frozenset(), "int8", 1, 2, 2, 12, 12, 8)
    selection = lf.select(problem, Machine("cpu"))
    assert selection.chosen is None
    assert "dtype in" in str(selection) and "call has int8" in str(selection)


def cuda(capability: tuple[int, int], *packages: str) -> Machine:
    return Machine("cuda", "", capability, tuple((name, "3.9.0") for name in packages))


@pytest.mark.parametrize(
    ("machine", "chosen", "reason"),
    [
        (cuda((9, 0), "triton"), "triton", "runs it"),
        (cuda((8, 6), "triton"), "triton", "runs it"),
        (cuda((7, 5), "triton"), "blocked", "cannot: compute capability >= 8.0 wanted, device has 7.5"),
        (cuda((9, 0)), "blocked", "cannot: package triton is not installed"),
        (
            Machine("cpu", packages=(("triton", "3.9.0"),)),
            "blocked",
            "cannot: on a CPU TRITON_INTERPRET=1 wanted",
        ),
    ],
)
@pytest.mark.usefixtures("without_native")
def test_triton_where_its_kernels_run(
    machine: Machine, chosen: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    problem = Problem(
        frozenset({Feature.GLOBAL_COLUMNS, Feature.BACKWARD}), "bfloat16", 1, 12, 12, 4096, 4096, 64
    )
    selection = lf.select(problem, machine)
    assert selection.chosen == chosen
    assert reason in next(line for line in str(selection).splitlines() if line.startswith("  triton"))


def test_triton_names_what_it_refuses() -> None:
    refused = {
        "dilations cross": Problem(frozenset({Feature.CROSSING_WINDOWS}), "bfloat16", 1, 2, 2, 64, 64, 64),
        "head_dim <= 256 wanted, call has 512": Problem(frozenset(), "float16", 1, 2, 2, 64, 64, 512),
        "dtype in": Problem(frozenset(), "float64", 1, 2, 2, 64, 64, 64),
        "batch * heads * length <= 2147483647": Problem(
            frozenset(), "float16", 1 << 16, 64, 64, 1 << 10, 1 << 10, 64
        ),
    }
    for reason, problem in refused.items():
        assert reason in str(lf.select(problem, cuda((9, 0), "triton")))
        assert lf.select(problem, cuda((9, 0), "triton")).chosen != "triton"
