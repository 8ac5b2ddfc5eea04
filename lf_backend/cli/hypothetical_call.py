"""Calls that nobody makes, to ask who would run them: meta tensors and the name of a machine."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lf_backend.api import explain
from lf_backend.dispatch.selection import Selection
from lf_backend.errors import LFError
from lf_backend.pattern.terms import Pattern
from lf_backend.problem import Machine


class Dtype(str, enum.Enum):
    """Names of the dtypes that attention takes."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT64 = "float64"


class Need(str, enum.Enum):
    """Things that a call may have besides q, k, v."""

    KEY_PADDING = "key_padding"
    GLOBAL_MASK = "global_mask"
    GLOBAL_PROJECTIONS = "global_projections"
    SINKS = "sinks"
    BAND_BIAS = "band_bias"
    SOFTCAP = "softcap"
    DROPOUT = "dropout"
    BACKWARD = "backward"


@dataclass(frozen=True)
class HypotheticalCall:
    """A call of `lf_backend.attention` by its shapes alone."""

    pattern: Pattern
    queries: int
    keys: int
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: Dtype
    needs: frozenset[Need] = frozenset()


def ask(call: HypotheticalCall, machine: Machine) -> Selection:
    """Return which backend would run the call on the machine.

    Raises:
        LFError: shapes and needs that do not fit each other or the pattern.
    """
    floats: dict[str, Any] = {
        "dtype": getattr(torch, call.dtype.value),
        "device": "meta",
        "requires_grad": Need.BACKWARD in call.needs,
    }
    q = torch.empty(call.batch, call.heads, call.queries, call.head_dim, **floats)
    k = torch.empty(call.batch, call.kv_heads, call.keys, call.head_dim, **floats)
    return explain(q, k, k, call.pattern, machine=machine, **_extras(call, q, k))


def _extras(call: HypotheticalCall, q: torch.Tensor, k: torch.Tensor) -> dict[str, Any]:
    """The arguments of `explain` that stand for the needs."""
    mask = torch.empty(call.batch, call.keys, dtype=torch.bool, device="meta")
    bands = call.pattern.lowered.bands
    taps = (bands[0].taps() if len(bands) == 1 else None) or 0
    arguments: dict[Need, dict[str, Any]] = {
        Need.KEY_PADDING: {"key_padding": mask},
        Need.GLOBAL_MASK: {"global_mask": mask},
        Need.GLOBAL_PROJECTIONS: {"global_q": q, "global_k": k, "global_v": k},
        Need.SINKS: {"sinks": q.new_empty(call.heads)},
        Need.BAND_BIAS: {"band_bias": q.new_empty(1, call.heads, call.queries, taps)},
        Need.SOFTCAP: {"softcap": 30.0},
        Need.DROPOUT: {"dropout_p": 0.1},
        Need.BACKWARD: {},
    }
    return {name: value for need in call.needs for name, value in arguments[need].items()}


def machine(name: str, packages: Sequence[str]) -> Machine:
    """The machine of a name: this one's device, or `cuda:9.0` for a capability that it need not have.

    Args:
        name: "" for this machine's best device.
        packages: what is installed there, as NAME=VERSION, besides what is installed here.

    Raises:
        LFError: another name, or a package without version.
    """
    here = "cuda" if torch.cuda.is_available() else "cpu"
    found = re.fullmatch(r"([a-z]+)(?::(\d+)\.(\d+))?", name or here)
    if not found or (found[1] == "cuda" and found[2] is None and here != "cuda"):
        raise LFError(f"--machine: a device, or cuda:MAJOR.MINOR wanted, got {name!r}")
    if found[2] is None:
        known = Machine.of(torch.device(found[1]))
    else:
        capability = (int(found[2]), int(found[3]))
        known = replace(Machine.of(torch.device("cpu")), device=found[1], capability=capability)
    pairs = [package.partition("=")[::2] for package in packages]
    if bad := [package for package, version in pairs if not (package and version)]:
        raise LFError(f"--package: NAME=VERSION wanted, got {bad[0]!r}")
    return replace(known, packages=tuple({**dict(known.packages), **dict(pairs)}.items()))
