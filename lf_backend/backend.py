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

from lf_backend.numerics.deltas import deltas
from lf_backend.pattern.lowered import Lowered
from lf_backend.problem import Feature, Machine, Problem

FLOATS = frozenset({"float64", "float32", "bfloat16", "float16"})


class Columns(NamedTuple):
    """Keys that all rows see besides their window: the global tokens.

    Attributes:
        positions: int64 [B, G], distinct within an example.
        valid: bool [B, G]; False marks a slot that this example does not use. With packed documents, slots
            that are used come first, in ascending order.
        causal: a row sees a column only if it is not ahead.
    """

    positions: Tensor
    valid: Tensor
    causal: bool


class Documents(NamedTuple):
    """Packed documents: a position sees its own document alone, start <= key < end.

    Positions that predicates and global tokens name count from its start; bands are distances, and do not
    care. Both ascend along a row.

    Attributes:
        start: int64 [B, M], where the document of a position begins.
        end: int64 [B, M], where it ends.
    """

    start: Tensor
    end: Tensor

    def together(self, batch: int, query: Tensor, key: Tensor) -> Tensor:
        """Whether positions of an example share a document; int tensors that broadcast."""
        start = self.start[batch]
        return start[query] == start[key]

    def inside(self, batch: int, position: Tensor) -> Tensor:
        """Return the positions, counted from the start of their documents."""
        return position - self.start[batch][position]


@dataclass(frozen=True, eq=False)
class Call:
    """The call that a backend is given.

    Attributes:
        q: [B, H, N, D], any strides; the queries are the last N of the M positions, unless `positions` says
            otherwise.
        k, v: [B, Hkv, M, D], any strides. Finite where padded, like q, unless the backend `skips_padding`.
        lowered: the pattern; its `positions` are already part of `columns`.
        columns: global columns, or None. A pair that a band shows as well counts once.
        key_padding: bool [B, M], True where padded, or None. Columns are never padded.
        band_bias: [1 or B, H, N, taps], added to the capped score of the pair at distance
            dilation * (tap - left), or None. Exists only with exactly one band.
        scale: multiplies q @ k.
        softcap: cap * tanh(score / cap) after scaling, or None.
        dropout_p: probability of dropping a weight, with `dropout.keep` as the only source.
        seed: int64 [1], or [2] with the place of the call in its row; None without dropout. See `dropout`.
        positions: int64, of the queries; None for the last N positions. Comes only to a backend that says
            `listed_queries` or `rows_in_place`, with one undilated band and without columns or band bias.
            To the former [B, N]; those of packed documents ascend as far as they are of any use. To the
            latter [B, R], those of some queries among the last N positions, each once, and then -1; those
            of packed documents ascend.
        documents: packed documents, or None where each row is one. Columns are visible from their own
            document alone.
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
    documents: Documents | None = None

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
        rows_in_place: takes calls with `positions` in `forward_rows` and `backward_rows` instead.
        skips_padding: never computes with what padded positions hold, so that they come to it as they are; to
            others comes 0 where they are not finite.
        clears_padding: besides, gives padded queries out 0 and lse -inf itself.
        deterministic: the same call gives the same bits. Where gradients do so only under
            `torch.use_deterministic_algorithms(True)`, a differentiable call has to ask for it by name.
    """

    features: frozenset[Feature]
    dtypes: frozenset[str] = FLOATS
    devices: frozenset[str] | None = None
    max_head_dim: int | None = None
    packages: tuple[str, ...] = ()
    listed_queries: bool = False
    rows_in_place: bool = False
    skips_padding: bool = False
    clears_padding: bool = False
    deterministic: bool = True

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
        priority: among backends that can run a call, the highest runs it. Those of the built-in ones are in
            `dispatch/priorities.py`.
        capabilities: what it can do.
    """

    name: ClassVar[str]
    priority: ClassVar[int]
    capabilities: ClassVar[Capabilities]

    def reasons(self, problem: Problem, machine: Machine) -> list[str]:
        """All reasons against. Extend it for what class data cannot say; never shorten it."""
        return self.capabilities.reasons(problem, machine)

    def by_name_alone(self, problem: Problem) -> bool:
        """Whether the backend runs the problem only if it is asked for."""
        return Feature.BACKWARD in problem.features and not self.capabilities.deterministic

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

    def deltas(
        self, grad_out: Tensor, out: Tensor, lse: Tensor, idle: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the `delta` and the `lse` that `backward` takes, both [B, H, N].

        Args:
            grad_out, out: [B, H, N, D].
            lse: [B, H, N], of the whole softmax; -inf in rows that saw nothing.
            idle: int64 [B, R], indices of rows that the local part leaves alone, -1 for none; or None.
        """
        return deltas(grad_out, out, lse, idle)

    def forward_rows(self, call: Call, out: Tensor, lse: Tensor) -> None:
        """Overwrite the rows of out and lse, those of the whole call, that are at the call's `positions`."""
        raise NotImplementedError(f"{self.name} says rows_in_place, which takes forward_rows")

    def backward_rows(
        self, call: Call, grad_out: Tensor, delta: Tensor, lse: Tensor, into: Gradients | None
    ) -> Gradients:
        """Gradients from the rows at the call's `positions` alone; grad_out, delta, lse are the whole call's.

        Args:
            into: gradients of the whole call, in which these rows of that of q are overwritten, and to whose
                others is added; None for new ones.
        """
        raise NotImplementedError(f"{self.name} says rows_in_place, which takes backward_rows")
