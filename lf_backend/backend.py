"""The contract between the operator and a backend.

A backend computes the *local* part of the attention: bands, global columns and predicates in one
softmax, for all rows. Everything around it is written once in `ops/around_backend.py`: which rows are
global and what they are, sinks, padded queries, empty rows in the backward, NaN in padded keys. So a
backend is its capabilities (class data) and two functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from lf_backend.pattern.lowered import Lowered
from lf_backend.problem import Feature, Machine, Problem

FLOATS = frozenset({"float64", "float32", "bfloat16", "float16"})


class Columns(NamedTuple):
    """Keys that all rows see besides their window: the global tokens.

    Attributes:
        positions: int64 [B, G], distinct within an example.
        valid: bool [B, G]; False marks a slot that this example does not use.
        causal: a row sees a column only if it is not ahead.
    """

    positions: Tensor
    valid: Tensor
    causal: bool


@dataclass(frozen=True, eq=False)
class Call:
    """The call that a backend is given.

    Attributes:
        q: [B, H, N, D], any strides; the queries are the last N of the M positions, unless `positions` says
            otherwise.
        k, v: [B, Hkv, M, D], any strides, finite where padded.
        lowered: the pattern; its `positions` are already part of `columns`.
        columns: global columns, or None. A pair that a band shows as well counts once.
        key_padding: bool [B, M], True where padded, or None. Columns are never padded.
        band_bias: [1 or B, H, N, taps], added to the capped score of the pair at distance
            dilation * (tap - left), or None. Exists only with exactly one band.
        scale: multiplies q @ k.
        softcap: cap * tanh(score / cap) after scaling, or None.
        dropout_p: probability of dropping a weight, with `dropout.keep` as the only source.
        seed: int64 tensor of one element, None without dropout.
        positions: int64 [B, N], of the queries; None for the last N positions. Comes only to a backend that
            says `listed_queries`, with one undilated band and without columns or band bias.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    lowered: Lowered
    columns: Columns | None
    key_padding: Tensor | None
    band_bias: Tensor | None
    scale: float
    softcap: float | None
    dropout_p: float
    seed: Tensor | None
    positions: Tensor | None = None

    @property
    def shows_anything(self) -> bool:
        """A pattern without window or rule in a batch without global token: backends are not asked."""
        return bool(self.lowered.bands or self.lowered.others) or self.columns is not None

    @property
    def offset(self) -> int:
        """Position of the first query."""
        return self.k.shape[2] - self.q.shape[2]


class Gradients(NamedTuple):
    """Gradients of the local part, each in the shape and dtype of its input."""

    q: Tensor
    k: Tensor
    v: Tensor
    band_bias: Tensor | None


@dataclass(frozen=True)
class Capabilities:
    """The abilities of a backend, as data. Nothing here depends on the machine at hand.

    Attributes:
        features: needs it can satisfy.
        dtypes: names of the dtypes of q, k, v.
        devices: device types, or None for any that torch has.
        max_head_dim: largest D, or None for no limit.
        packages: optional packages that must be installed.
        listed_queries: takes calls with `positions`; then rows of global tokens come to it as such calls,
            and are not computed by dense products above it.
    """

    features: frozenset[Feature]
    dtypes: frozenset[str] = FLOATS
    devices: frozenset[str] | None = None
    max_head_dim: int | None = None
    packages: tuple[str, ...] = ()
    listed_queries: bool = False

    def reasons(self, problem: Problem, machine: Machine) -> list[str]:
        """All reasons against running `problem` on `machine`, with values wanted and got."""
        found = [
            f"{feature.value} is not supported"
            for feature in sorted(problem.features - self.features, key=lambda f: f.value)
        ]
        if problem.dtype not in self.dtypes:
            found.append(f"dtype in {sorted(self.dtypes)} wanted, call has {problem.dtype}")
        if self.devices is not None and machine.device not in self.devices:
            found.append(f"device in {sorted(self.devices)} wanted, call has {machine.device}")
        if self.max_head_dim is not None and problem.head_dim > self.max_head_dim:
            found.append(f"head_dim <= {self.max_head_dim} wanted, call has {problem.head_dim}")
        found.extend(
            f"package {package} is not installed"
            for package in self.packages
            if machine.version(package) is None
        )
        return found


class Backend(ABC):
    """One way to compute the local part. Stateless: one instance serves all calls and threads.

    What only building a kernel can tell is a `BuildError` from `forward` or `backward`: it becomes a reason
    for calls of that kind, whatever their length, and the next backend runs unless this one was asked for.

    Class attributes:
        name: what users write, in `backend=`, `use_backend` and `LF_BACKEND`.
        priority: among backends that can run a call, the highest runs it.
        capabilities: what it can do.
    """

    name: ClassVar[str]
    priority: ClassVar[int]
    capabilities: ClassVar[Capabilities]

    def reasons(self, problem: Problem, machine: Machine) -> list[str]:
        """All reasons against. Extend it for what class data cannot say; never shorten it."""
        return self.capabilities.reasons(problem, machine)

    def details(self) -> str:
        """Describe for `info` what capabilities do not say, such as the operators of a package behind it."""
        return ""

    @abstractmethod
    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        """Out [B, H, N, D] in q's dtype and lse [B, H, N], float32 (float64 for float64).

        A row that sees no key gives out 0 and lse -inf.
        """

    @abstractmethod
    def backward(
        self, call: Call, grad_out: Tensor, out: Tensor | None, delta: Tensor, lse: Tensor
    ) -> Gradients:
        """Gradients, with weights P = exp(score - lse).

        Args:
            grad_out: [B, H, N, D].
            out: [B, H, N, D], what the whole call gave, with `delta` the sum of grad_out * out over D; None
                where the log-sum-exp has a gradient, so that no output has this delta.
            delta: [B, H, N], like lse; the gradient of a score is P * (grad_out @ v - delta).
            lse: [B, H, N], of the *whole* softmax, which may hold more than the local part.
                +inf marks a row without any effect, whatever grad_out, out and delta hold there.
        """
