"""Any rule as a term of a pattern.

    even = lf.Predicate(lambda head, query, key: key % 2 == query % 2)

    def one_block(head, first, last, m):  # keys that queries first .. last may see
        return [(first // 64 * 64, (last // 64 + 1) * 64)]

    blocks = lf.Predicate(lambda head, query, key: key // 64 == query // 64, bounds=one_block)

Without bounds a rule is asked about every pair once for each length, to find the blocks that it touches;
with them it is asked about those alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from lf_backend import _callers
from lf_backend._device_constants import on_device
from lf_backend.errors import PatternError
from lf_backend.pattern.bands import Sees
from lf_backend.pattern.lowered import Form, Tokens
from lf_backend.pattern.spans import Span, Spans, united
from lf_backend.pattern.terms import Index, Term

Bounds = Callable[[int, int, int, int], Iterable[Sequence[int]]]
Table = tuple[Any, ...]  # ints, or tables of one shape

_living: WeakValueDictionary[str, Predicate] = WeakValueDictionary()  # by their text


@dataclass(frozen=True)
class Predicate(Term):
    """Pairs for which `fn(head, query, key, *tables)` is true.

    Args:
        fn: takes int tensors that broadcast with each other and returns a bool tensor that broadcasts
            to their shape. Its answer for a pair depends on that pair alone. No branches on values:
            `&`, `|` and `torch.where`, as in a mask_mod of FlexAttention.
        bounds: `bounds(head, first, last, m)` gives the keys, of `m`, that the queries first .. last
            (both inclusive) may see, as (start, stop) or (start, stop, full), in any order; with `full`
            every one of these queries sees every one of these keys. Keys outside 0 .. m - 1 are dropped.
            `Pattern.check(n)` compares bounds and rule pair by pair.
        tables: what `fn` looks up, as (nested) tuples of ints, so that the pattern remains a value; `fn`
            gets each as an int64 tensor on the device of the indices.

    Equal to another predicate only if functions and tables are. Its text can be read back only while it
    lives. To give it a name by which it reads and writes text and JSON, return it from a function under
    `@lf.term`.

    Raises:
        PatternError: arguments of other types; from what evaluates it, an `fn` that fails or returns
            another dtype or shape.
    """

    fn: Callable[..., Any]
    bounds: Bounds | None = None
    tables: tuple[Table, ...] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise PatternError(f"fn(head, query, key) wanted, got {self.fn!r}")
        if self.bounds is not None and not callable(self.bounds):
            raise PatternError(f"bounds(head, first, last, m) or None wanted, got {self.bounds!r}")
        if not isinstance(self.tables, tuple):
            raise PatternError(f"tables: a tuple of tuples of ints wanted, got {self.tables!r}")
        super().__post_init__()
        if not torch.compiler.is_compiling():
            _living[self.text] = self

    def sees(self, head: Index, query: Index, key: Index) -> Any:
        given = [index for index in (head, query, key) if isinstance(index, Tensor)]
        device = given[0].device if given else torch.device("cpu")
        indices = [
            index if isinstance(index, Tensor) else torch.as_tensor(index, device=device)
            for index in (head, query, key)
        ]
        seen, shape = self._ask(*indices), Tokens(()).sees(*indices).shape
        try:
            seen = seen.expand(shape)
        except RuntimeError:
            wanted = f"a shape that broadcasts to {list(shape)}"
            raise PatternError(f"fn: {wanted} wanted, got {list(seen.shape)} from {self}") from None
        return seen if given else bool(seen)

    def _ask(self, *indices: Tensor) -> Tensor:
        try:
            seen: Any = self.fn(*indices, *self.on(indices[0].device))
            if not isinstance(seen, Tensor):
                seen = torch.as_tensor(seen, device=indices[0].device)
        except Exception as error:  # whatever the user's function does wrong
            raise PatternError(
                f"fn: a rule on index tensors that broadcast, without branches on values, wanted; "
                f"{self} raised {type(error).__name__}: {error}"
            ) from error
        if seen.dtype != torch.bool:
            raise PatternError(f"fn: a bool tensor wanted, got {seen.dtype} from {self}")
        found: Tensor = seen
        return found

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The tables on a device; kept, but for those that a tracer makes."""
        if _callers.is_recorded():
            return tuple(on_device(table, torch.int64, device) for table in self.tables)
        if device not in self._tensors:
            with torch.inference_mode(False):
                tables = (torch.tensor(table, dtype=torch.int64, device=device) for table in self.tables)
                self._tensors[device] = tuple(tables)
        return self._tensors[device]

    def traced(self, device: torch.device) -> Sees:
        fn, tables = self.fn, self.on(device)
        return lambda head, query, key: fn(head, query, key, *tables)

    @cached_property
    def _tensors(self) -> dict[torch.device, tuple[Tensor, ...]]:
        return {}

    def spans(self, head: int, first: int, last: int, m: int) -> Spans:
        """Keys, of `m`, that queries first .. last may see, by the bounds; all without them."""
        if self.bounds is None:
            return (Span(0, m),)
        try:
            return united((_span(*span) for span in self.bounds(head, first, last, m)), m)
        except TypeError as error:
            raise PatternError(
                f"bounds: (start, stop) or (start, stop, full) of each range wanted; {self}: {error}"
            ) from error

    @property
    def bounded(self) -> bool:
        return self.bounds is not None

    @cached_property
    def per_head(self) -> bool:
        """The answer has a dimension of heads where the question has one."""
        zero = torch.zeros(1, 1, 1, dtype=torch.int64)
        return self._ask(zero.expand(2, 1, 1), zero, zero).shape[:1] == (2,)

    @property
    def form(self) -> Form:
        return self

    def _write(self) -> str:
        name = getattr(self.fn, "__qualname__", type(self.fn).__name__)
        return f"predicate<{name} at {id(self):#x}>"


def living(text: str) -> Predicate:
    """The predicate that writes itself so.

    Raises:
        PatternError: there is none any more, or never was: it was made in another process, or inside
            compiled code, which makes objects only after it has run.
    """
    found = _living.get(text)
    if found is None:
        raise PatternError(
            f"a predicate that lives in this process wanted, got {text}; one that is used in compiled code "
            "has to be made outside of it, or by a function under @lf.term"
        )
    return found


def _span(start: int, stop: int, full: int = False) -> Span:
    return Span(start, stop, bool(full))
