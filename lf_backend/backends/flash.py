"""FlashAttention as PyTorch has it, with a window: `aten::_flash_attention_forward` and its backward.

    band            one call for all heads; queries are the last positions, as ours are
    shared keys     as they are: heads of a group read one copy
    documents       one call, of sequences end to end. How many there are is part of the launch, and of the
                    memory that its backward takes: the host reads it, once for each tensor of documents
    global columns  few keys: plain products, joined by the log-sum-exp
    grad_out * out  is summed by the kernel, from the output of the whole call. Where no output has this
                    delta, because the log-sum-exp has a gradient, half of the values go in at a time, and
                    delta into dimensions that then are free

Nothing is installed. Which FlashAttention runs is PyTorch's affair: version 2, unless somebody has called
`torch.nn.attention.activate_flash_attention_impl`. Its kernels know no mask of keys, so padding is refused:
`unpad=True` and packed documents are ways around it.

No GPU has run this file so far: the kit runs it with a reference in place of the two operators, under their
own schema and the meaning that FlashAttention gives their arguments. Gradients of queries are summed by
atomics unless `torch.use_deterministic_algorithms(True)` is set.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lf_backend._looked import once
from lf_backend.backend import Backend, Call, Capabilities, Gradients
from lf_backend.errors import BuildError
from lf_backend.numerics.global_columns import add_gradients, join_columns
from lf_backend.numerics.positive_scale import positive_scale
from lf_backend.problem import Feature, Machine, Problem

STEP = 8  # elements: what addresses are multiples of, and so the head dimension
OLDEST = (8, 0)  # compute capability
NARROW = frozenset({(8, 6), (8, 9), (12, 0), (12, 1)})  # not enough shared memory for some gradients
MOST = 2**16 - 1  # sequences: programs along a grid's second axis
PIECES = 3  # of the dtype, which hold a float32


class Flash(Backend):
    """See the module."""

    name = "flash"
    capabilities = Capabilities(
        features=frozenset(
            {
                Feature.UNLIMITED_REACH,
                Feature.GLOBAL_COLUMNS,
                Feature.GROUPED_HEADS,
                Feature.LONGER_KEYS,
                Feature.BACKWARD,
                Feature.DOCUMENTS,
            }
        ),
        dtypes=frozenset({"float16", "bfloat16"}),
        devices=frozenset({"cuda"}),
        max_head_dim=256,
        deterministic=False,
    )

    def reasons(self, problem: Problem, machine: Machine) -> list[str]:
        found = super().reasons(problem, machine)
        if problem.head_dim % STEP:
            found.append(f"head_dim % {STEP} == 0 wanted, call has {problem.head_dim}")
        if machine.capability is not None and machine.capability < OLDEST:
            wanted, got = (".".join(map(str, x)) for x in (OLDEST, machine.capability))
            found.append(f"compute capability >= {wanted} wanted, device has {got}")
        narrow = Feature.BACKWARD in problem.features and machine.capability in NARROW
        if narrow and 192 < problem.head_dim <= 224:
            found.append(f"head_dim <= 192 or > 224 wanted here for gradients, call has {problem.head_dim}")
        if problem.batch > MOST:
            found.append(f"batch <= {MOST} wanted, call has {problem.batch}")
        return found

    def details(self) -> str:
        return self.missing() or "in this PyTorch"

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        if call.lowered.bands:
            out, lse = self._window(call).forward()
        else:
            out = torch.zeros_like(call.q)
            lse = call.q.new_full(call.q.shape[:3], -torch.inf, dtype=torch.float32)
        if call.columns is not None:
            out = out.float()
            join_columns(call, out, lse)
        return out.to(call.q.dtype).contiguous(), lse.contiguous()

    def backward(
        self, call: Call, grad_out: Tensor, out: Tensor | None, delta: Tensor, lse: Tensor
    ) -> Gradients:
        if call.lowered.bands:
            grads = self._window(call).backward(grad_out, out, delta, lse)
        else:
            grads = torch.zeros_like(call.q), torch.zeros_like(call.k), torch.zeros_like(call.v)
        if call.columns is not None:
            grads = grads[0].float(), grads[1].float(), grads[2].float()
            add_gradients(call, grad_out, delta, lse, grads)
        q, k, v = (grad.to(call.q.dtype).contiguous() for grad in grads)
        return Gradients(q, k, v, None)

    def _window(self, call: Call) -> _Window:
        if why := self.missing():
            raise BuildError(why)
        documents = call.documents
        return _Window(call, None if documents is None else once(_ends, documents.start, call.q.shape[2]))

    @staticmethod
    def missing() -> str:
        """Say why the operators do not run here, if they do not."""
        if torch.version.hip is not None:
            return "PyTorch for ROCm has other kernels behind these operators, which nobody has compared"
        if not torch.backends.cuda.is_flash_attention_available():
            return "this PyTorch was built without FlashAttention"
        return ""


class _Ends(NamedTuple):
    """Sequences end to end: int32 [documents + 1], where they begin and the last one ends; the longest."""

    queries: Tensor
    keys: Tensor
    most_queries: int
    most_keys: int


class _Window(NamedTuple):
    """The band of a call, in the operators' words: [B, n, H, D], or [n, H, D] for sequences end to end.

    Attributes:
        ends: of packed documents.
    """

    call: Call
    ends: _Ends | None

    def forward(self) -> tuple[Tensor, Tensor]:
        """Out [B, H, N, D] and lse [B, H, N]."""
        q, scale, _ = positive_scale(self.call.q, self.call.scale)
        inputs = self._laid(q), self._laid(self.call.k), self._laid(self.call.v)
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *inputs, *self._lengths(), 0.0, self._causal, False, scale=scale, **self._reach()
        )
        return self._apart(out), self._lse_apart(lse)

    def backward(
        self, grad_out: Tensor, out: Tensor | None, delta: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v, in their shapes and dtype."""
        lse = self._lse_laid(lse)
        if out is not None:
            return self._gradients(grad_out, out, self.call.v, lse)
        half = grad_out.shape[-1] // 2
        low, high, values = grad_out.clone(), grad_out.clone(), self.call.v.clone()
        low[..., half:] = high[..., :half] = values[..., half:] = 0
        made, rest = torch.zeros_like(grad_out), delta
        for at in range(half, half + PIECES):
            low[..., at] = 1
            made[..., at] = rest
            rest = rest - made[..., at]
        of_low = self._gradients(low, made, values, lse)
        values.copy_(self.call.v)[..., :half] = 0
        of_high = self._gradients(high, torch.zeros_like(made), values, lse)
        grad_q, grad_k = of_low[0].float() + of_high[0].float(), of_low[1].float() + of_high[1].float()
        grad_v = torch.cat([of_low[2][..., :half], of_high[2][..., half:]], -1)
        return grad_q, grad_k, grad_v

    def _gradients(
        self, grad_out: Tensor, out: Tensor, v: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, scale, sign = positive_scale(self.call.q, self.call.scale)
        inputs = (self._laid(x) for x in (grad_out, q, self.call.k, v, out))
        unused = q.new_empty(0)  # where it keeps the state of its dropout
        found = torch.ops.aten._flash_attention_backward(
            *inputs, lse, *self._lengths(), 0.0, self._causal, unused, unused, scale=scale, **self._reach()
        )
        grad_q, grad_k = self._apart(found[0]), self._apart(found[1])
        return grad_q if sign == 1 else sign * grad_q, grad_k, self._apart(found[2])

    def _reach(self) -> dict[str, int]:
        """Return the window, -1 for no limit; the last query is at the last key."""
        left, right = self.call.lowered.bands[0].left, self.call.lowered.bands[0].right
        return {
            "window_size_left": -1 if left is None else left,
            "window_size_right": -1 if right is None else right,
        }

    @property
    def _causal(self) -> bool:
        band = self.call.lowered.bands[0]
        return band.left is None and band.right == 0

    def _lengths(self) -> tuple[Tensor | None, Tensor | None, int, int]:
        if self.ends is None:
            return None, None, self.call.q.shape[2], self.call.k.shape[2]
        return self.ends

    def _laid(self, x: Tensor) -> Tensor:
        """[B, n, H, D] or [n, H, D] of x [B, H, n, D], where its kernels can load it: a copy if need be."""
        x = x.transpose(1, 2)
        x = x if self.ends is None else x.flatten(0, 1)
        steps = zip(x.stride()[:-1], x.shape, strict=False)
        aligned = x.stride(-1) == 1 and not any(stride % STEP and size > 1 for stride, size in steps)
        if aligned and x.data_ptr() % (STEP * x.element_size()) == 0:
            return x
        return x.clone(memory_format=torch.contiguous_format)

    def _apart(self, x: Tensor) -> Tensor:
        """Undo `_laid`."""
        x = x if self.ends is None else x.unflatten(0, (self.call.q.shape[0], -1))
        return x.transpose(1, 2)

    def _lse_laid(self, lse: Tensor) -> Tensor:
        """[B, H, N], or [H, n] for sequences end to end."""
        return (lse if self.ends is None else lse.transpose(0, 1).flatten(1)).contiguous()

    def _lse_apart(self, lse: Tensor) -> Tensor:
        return lse if self.ends is None else lse.unflatten(1, (self.call.q.shape[0], -1)).transpose(0, 1)


def _ends(start: Tensor, queries: int) -> _Ends:
    """Return the ends of all documents, by one look of the host.

    Args:
        start: int64 [B, M], where the document of a position begins; the queries are the last ones of M.
    """
    batch, keys = start.shape
    starts = start.cpu()
    row, begin = (starts == torch.arange(keys)).nonzero(as_tuple=True)
    if len(row) > MOST:
        raise BuildError(f"at most {MOST} documents wanted, call has {len(row)}")
    of_keys = torch.cat([row * keys + begin, torch.tensor([batch * keys])])
    first = (begin - (keys - queries)).clamp(min=0)
    of_queries = torch.cat([row * queries + first, torch.tensor([batch * queries])])
    ends = (x.to(start.device, torch.int32) for x in (of_queries, of_keys))
    return _Ends(next(ends), next(ends), int(of_queries.diff().max()), int(of_keys.diff().max()))
