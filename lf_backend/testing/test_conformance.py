"""The conformance kit: every registered backend against every case, forward and backward.

    pytest --pyargs lf_backend.testing                    # all backends that are installed
    pytest --pyargs lf_backend.testing -k my_backend      # one

Installing a distribution with an entry point in "lf_backend.backends" is all it takes to be tested.
A backend is given every case that it accepts on this machine. What it refuses must be refused with
reasons, what it claims must be exercised, and what it does not claim must be refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lf_backend as lf
from lf_backend.backend import Backend
from lf_backend.dispatch import registry
from lf_backend.pattern import block_map
from lf_backend.problem import Feature, Machine
from lf_backend.testing.case import Case
from lf_backend.testing.cases import CASES, named
from lf_backend.testing.checking import check
from lf_backend.testing.strategies import DTYPES, cases

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it

DEVICES = [torch.device("cpu")]
if torch.cuda.is_available():
    DEVICES.append(torch.device("cuda", torch.cuda.current_device()))

every_backend = pytest.mark.parametrize("name", list(registry.backends()))
every_working_backend = pytest.mark.parametrize("name", list(registry.working()))
every_device = pytest.mark.parametrize("device", DEVICES, ids=str)


def reasons(name: str, case: Case, dtype: str, device: torch.device) -> list[str]:
    problem = case.problem(getattr(torch, dtype))
    return registry.working()[name].reasons(problem, Machine.of(device))


def combinations() -> Iterator[tuple[str, torch.device, str, str, Case]]:
    """Everything that could be run: backend, device, dtype, and a case with its title."""
    for name, device, dtype in product(registry.working(), DEVICES, DTYPES):
        yield from ((name, device, dtype, title, case) for title, case in named())


accepted = pytest.mark.parametrize(
    "name, device, dtype, case",
    [
        pytest.param(name, device, dtype, case, id=f"{name}-{device}-{dtype}-{title}")
        for name, device, dtype, title, case in combinations()
        if not reasons(name, case, dtype, device)
    ],
)


@every_backend
def test_loads(name: str) -> None:
    entry = registry.backends()[name]
    assert isinstance(entry, Backend), f"{name}: {entry.error}"


@accepted
def test_case(name: str, device: torch.device, dtype: str, case: Case) -> None:
    check(case, name, getattr(torch, dtype), device)


@every_working_backend
@every_device
def test_what_cannot_run_here_is_refused_with_its_reasons(name: str, device: torch.device) -> None:
    """Asked for by name, the call fails with every reason, and nothing else runs it."""
    for case in CASES.values():
        against = reasons(name, case, "float32", device)
        if against and case.batch:
            with pytest.raises(lf.UnsupportedError) as refused:
                check(case, name, torch.float32, device)
            assert all(reason in str(refused.value) for reason in against)


@every_working_backend
@every_device
@given(case=cases(), dtype=st.sampled_from(DTYPES))
@settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
def test_random_case(name: str, device: torch.device, case: Case, dtype: str) -> None:
    if reasons(name, case, dtype, device):
        with pytest.raises(lf.UnsupportedError):
            check(case, name, getattr(torch, dtype), device)
    else:
        check(case, name, getattr(torch, dtype), device)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=title) for title, c in named() if c.pattern.lowered.others]
)
def test_bounds_hold(case: Case) -> None:
    """Backends trust a predicate's bounds: pairs outside are invisible, full spans are visible."""
    for rule in case.pattern.lowered.others:
        for head in range(case.heads):
            block_map.check(rule, head, case.queries, case.length)


@every_working_backend
def test_every_claim_is_exercised(name: str) -> None:
    """Each feature and dtype that the backend claims is part of a case that it accepts."""
    claims = registry.working()[name].capabilities
    features: set[Feature] = set()
    for case in CASES.values():
        needs = case.problem(torch.float32).features
        if needs <= claims.features:
            features |= needs
    assert features == claims.features, f"claimed and never exercised: {claims.features - features}"
    assert claims.dtypes <= set(DTYPES), f"claimed and never exercised: {claims.dtypes - set(DTYPES)}"


@every_working_backend
def test_what_is_not_claimed_is_refused(name: str) -> None:
    """Forced, such a call raises UnsupportedError that names the feature; nothing else runs it."""
    for feature in set(Feature) - registry.working()[name].capabilities.features:
        case = next(c for c in CASES.values() if c.batch and feature in c.problem(torch.float32).features)
        with pytest.raises(lf.UnsupportedError) as refused:
            check(case, name, torch.float32)
        assert feature.value in str(refused.value)
        assert refused.value.selection is not None
