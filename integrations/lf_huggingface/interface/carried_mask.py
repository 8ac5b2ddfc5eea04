"""How a mask crosses a model of transformers: as an object that no arithmetic survives.

A mask function is told lengths, offsets and padding, and not the layer; an attention function is told the
layer and its tensors, and not the offsets. What goes from one to the other is a `Mask`, which transformers
hands on as it is: through layers, generation, gradient checkpoints and graphs.

                 queries  5 6 7          positions
    keys  ~0 ~1 2 3 4 5 6 7              positions; ~ where a key must not be seen: padding, an empty slot

It is no tensor, because models that add a mask to scores or compare it with 0 would take whatever it holds
for numbers. All of that raises; the last of its queries may be sliced, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _pytree

from lf_backend.errors import ShapeError, UnsupportedError
from lf_backend.pattern.terms import Pattern
from lf_huggingface.interface.mask_kind import MaskKind


class NotNumbersError(UnsupportedError, AttributeError):
    """A model that computes with a mask, or asks for what only a tensor has."""


class Mask:
    """Positions of queries and keys, and which keys may be seen, [B, 1, Q, K] if it were written out.

    Attributes:
        kind: see there.
        queries: int [B, Q], positions.
        keys: int [B, K], positions, `~position` where a key must not be seen.
        documents: int [B, K], the document of each key, those of the queries being the last; or None.
        kept: keys before the queries' own that a sliding cache has not dropped; None if none is dropped.
        model: the kind of model that it was made for, for errors.
    """

    def __init__(
        self,
        kind: MaskKind,
        queries: Tensor,
        keys: Tensor,
        documents: Tensor | None = None,
        kept: int | None = None,
        model: str = "",
    ) -> None:
        self.kind, self.queries, self.keys, self.documents = kind, queries, keys, documents
        self.kept, self.model = kept, model

    def _changed(self, **changes: Any) -> Mask:
        return Mask(**{**vars(self), **changes})

    @property
    def shape(self) -> torch.Size:
        """That of the mask written out, which transformers asks for."""
        return torch.Size((self.queries.shape[0], 1, self.queries.shape[1], self.keys.shape[1]))

    @property
    def ndim(self) -> int:
        """4: a mask that is prepared already."""
        return 4

    @property
    def device(self) -> torch.device:
        """That of its tensors."""
        return self.keys.device

    def dim(self) -> int:
        return 4

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def contiguous(self) -> Mask:
        """The mask itself."""
        return self

    def to(self, *args: Any, **kwargs: Any) -> Mask:
        """The mask on another device. A dtype means nothing to it."""
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if device is None:
            return self
        moved = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return self._changed(**moved)

    @property
    def hidden(self) -> Tensor:
        """Bool [B, K], True where a key must not be seen."""
        return self.keys < 0

    @property
    def positions(self) -> Tensor:
        """Int [B, K], positions of the keys."""
        return torch.where(self.hidden, ~self.keys, self.keys)

    def without(self, hidden: Tensor) -> Mask:
        """The mask without some keys more, bool [B, K]."""
        keys = torch.where(hidden & ~self.hidden, ~self.keys, self.keys)
        return self._changed(kind=replace(self.kind, padded=True), keys=keys)

    def within_documents(self, documents: Tensor) -> Mask:
        """The mask of tokens that see their own document, int [B, K], alone."""
        return self._changed(kind=replace(self.kind, packed=True), documents=documents)

    def visible(self, pattern: Pattern, heads: int) -> Tensor:
        """Bool [B, H, Q, K], pair by pair: dense, for what has no sparse form."""
        head = torch.arange(heads, device=self.keys.device)[:, None, None]
        query, key = self.queries[:, None, :, None], self.positions[:, None, None]
        seen = pattern.sees(head, query, key) & ~self.hidden[:, None, None]
        if self.documents is not None:
            own = self.documents[:, self.keys.shape[1] - self.queries.shape[1] :]
            seen = seen & (own[:, None, :, None] == self.documents[:, None, None])
        return torch.as_tensor(seen)

    def of_layer(self, queries: int, keys: int) -> Mask:
        """The mask as a layer with so many queries and keys has to read it.

        Raises:
            ShapeError: it was made for others.
        """
        extra = self.keys.shape[1] - keys
        if self.queries.shape[1] != queries or extra < 0 or (extra > 0 and self.kind.sinks is None):
            raise ShapeError(
                f"attention_mask: a mask for {queries} queries and {keys} keys wanted, got one for "
                f"{self.queries.shape[1]} and {self.keys.shape[1]}"
            )
        if self.kind.sinks:
            return self._changed(keys=self._without_twins(extra))
        return self if not extra else self._changed(keys=self.keys[:, extra:])

    def check_kept(self, pattern: Pattern) -> None:
        """Raise UnsupportedError if a pattern needs keys that a sliding cache has dropped."""
        reach = pattern.lowered.reach
        if self.kept is not None and (pattern.global_positions or reach is None or reach > self.kept):
            raise UnsupportedError(
                f"past_key_values: a cache that keeps what {pattern} needs wanted, got one that keeps the "
                f"last {self.kept} keys; give it lf_huggingface.WindowCache(model.config)"
            )

    def _without_twins(self, extra: int) -> Tensor:
        """The keys of a `WindowCache` in a layer whose window is `extra` shorter than the mask's.

        A global token that the window still holds is hidden in front.
        """
        sinks = self.kind.sinks or 0
        front, window = self.keys[:, :sinks], self.keys[:, sinks + extra :]
        at, first = (torch.where(x < 0, ~x, x) for x in (front, window[:, :1]))
        return torch.cat([torch.where((at >= first) & (front >= 0), ~front, front), window], dim=1)

    def __getitem__(self, index: Any) -> Mask:
        """The mask of the last queries, as `mask[:, :, -n:]`."""
        given = index if isinstance(index, tuple) else (index,)
        if any(x is ... for x in given):
            at = next(at for at, x in enumerate(given) if x is ...)
            given = (*given[:at], *[slice(None)] * (5 - len(given)), *given[at + 1 :])
        rows = slice(None)
        for dim, part in enumerate(given):
            if not isinstance(part, slice) or part.step is not None:
                _refuse("__getitem__", self)
            if part.stop is not None and part.stop < self.shape[dim]:
                _refuse("__getitem__", self)
            if dim == 2:
                rows = part
            elif part.start is not None and part.start != 0:
                _refuse("__getitem__", self)
        return self._changed(queries=self.queries[:, rows])

    # Everything else that a tensor can do is refused.

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        _refuse(name, self)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = (x for x in (*args, *(kwargs or {}).values()) if isinstance(x, Mask))
        _refuse(getattr(function, "__name__", repr(function)), next(given, None))


def _refuse(use: str, mask: Mask | None) -> NoReturn:
    name = "this one" if mask is None else vars(mask).get("model") or "this one"
    raise NotNumbersError(
        f"attention_mask: a model that hands its mask on to its attention wanted, {name} computes with it "
        f"({use}) and cannot run under attn_implementation='lf'; load it with 'sdpa' or 'eager'"
    )


def _refused(operator: str) -> Callable[..., Any]:
    def method(self: Mask, *_: Any) -> Any:
        _refuse(operator, self)

    return method


for _operator in (
    "setitem",
    "len",
    "iter",
    "bool",
    "int",
    "float",
    "contains",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "add",
    "radd",
    "iadd",
    "sub",
    "rsub",
    "isub",
    "mul",
    "rmul",
    "imul",
    "truediv",
    "rtruediv",
    "and",
    "rand",
    "iand",
    "or",
    "ror",
    "ior",
    "xor",
    "rxor",
    "invert",
    "neg",
    "abs",
    "pow",
    "matmul",
    "array",
):
    setattr(Mask, f"__{_operator}__", _refused(f"__{_operator}__"))
Mask.__hash__ = object.__hash__  # type: ignore[method-assign]  # an object for its own sake


def _flatten(mask: Mask) -> tuple[list[Tensor | None], tuple[Any, ...]]:
    return [mask.queries, mask.keys, mask.documents], (mask.kind, mask.kept, mask.model)


def _unflatten(tensors: Any, rest: Any) -> Mask:
    kind, kept, model = rest
    queries, keys, documents = tensors
    return Mask(kind, queries, keys, documents, kept, model)


# So that a graph which is exported takes one that was made before.
_pytree.register_pytree_node(Mask, _flatten, _unflatten, serialized_type_name=f"{__name__}.Mask")
