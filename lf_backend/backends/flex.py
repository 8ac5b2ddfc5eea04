"""FlexAttention, compiled, with block masks from the bounds of the pattern instead of from N x M pairs.

Columns of global tokens are gathered behind the keys, so that one softmax holds everything; padding,
columns and lengths are tensors that the mask captures, so that a new length does not compile again.

CUDA alone: compiled for a CPU, FlexAttention (torch 2.13) has no backward and gives no log-sum-exp. No GPU
has run this file so far. Its arithmetic is tested with a dense stand-in for `flex_attention` that reads the
lists of blocks, its masks with `flex_attention` itself, compiled for a CPU; its speed is unmeasured, hence
a place below whatever else can run a call. The backward computes the forward once more.

`flex_flash` is the same with FlexAttention's FLASH kernel, FlashAttention-4, forward; its backward is that of
`flex`, as FLASH takes no gradient of a log-sum-exp, which is how other deltas come in.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from torch import Tensor

from lf_backend.backend import Backend, Call, Capabilities, Gradients
from lf_backend.errors import BuildError
from lf_backend.numerics.recorded import recorded
from lf_backend.pattern.interchange import BLOCK, MaskMod, block_mask, block_states, mask_mod
from lf_backend.pattern.kept import kept
from lf_backend.pattern.lowered import Form
from lf_backend.pattern.terms import Window
from lf_backend.problem import Feature, Machine, Problem

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

SMALLEST = 16  # head_dim of its kernels
VARIANTS = 256  # patterns, dtypes and shapes of heads that may be compiled in one process


class Flex(Backend):
    """See the module."""

    name = "flex"
    capabilities = Capabilities(
        features=frozenset(Feature) - {Feature.BAND_BIAS, Feature.DROPOUT, Feature.VALUE_WIDTH},
        dtypes=frozenset({"float32", "bfloat16", "float16"}),
        devices=frozenset({"cuda"}),
        packages=("triton",),
    )
    forward_options: ClassVar[dict[str, Any] | None] = None  # FlexAttention's kernel_options

    def reasons(self, problem: Problem, machine: Machine) -> list[str]:
        found = super().reasons(problem, machine)
        if problem.head_dim < SMALLEST:
            found.append(f"head_dim >= {SMALLEST} wanted, call has {problem.head_dim}")
        return found

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        out, lse = self._attend(call, call.q, *_with_columns(call), self.forward_options)
        return out.masked_fill(lse[..., None] == -torch.inf, 0), lse

    def backward(
        self, call: Call, grad_out: Tensor, out: Tensor | None, delta: Tensor, lse: Tensor
    ) -> Gradients:
        """FlexAttention's own backward, of the local softmax.

        With w = exp(own lse - lse), the share of the local part, its upstream gradients are w * grad_out
        and, of its lse, what makes every delta ours: sum(w * grad_out * out) - w * delta.
        """
        keys = call.k.shape[2]

        def differentiate() -> tuple[Tensor, ...]:
            q, k, v = (x.detach().requires_grad_() for x in (call.q, *_with_columns(call)))
            out, own = self._attend(call, q, k, v)
            share = (own.detach() - lse).exp_()
            upstream = (share[..., None] * grad_out).to(out.dtype)
            upstream_lse = (upstream * out.detach()).sum(-1, dtype=own.dtype) - share * delta
            return torch.autograd.grad((out, own), (q, k, v), (upstream, upstream_lse))

        grad_q, *more = recorded(call.q.device, differentiate)
        grad_k, grad_v = (grad[:, :, :keys] for grad in more)
        if call.columns is not None:
            for example, at in enumerate(call.columns.positions):
                for grad, found in zip((grad_k, grad_v), more, strict=True):
                    grad[example].index_add_(1, at, found[example, :, keys:])
        return Gradients(grad_q, grad_k.contiguous(), grad_v.contiguous(), None)

    def _attend(
        self, call: Call, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Out and lse of the local part; k and v end with the columns."""
        forms, padded = call.lowered.forms, call.key_padding is not None
        (heads, queries), keys, slots = q.shape[1:3], call.k.shape[2], k.shape[2]
        if call.documents is None:
            mask = copy(_blocks(forms, heads, queries, keys, slots, padded, q.device))
        else:
            # A rule's blocks count from the start of a document: those of all its pairs are looked at.
            looked_at = (Window(None, None).form,) if call.lowered.others else forms
            states = _states(looked_at, heads, queries, keys, slots, padded or bool(call.lowered.others))
            states = states.to(q.device)
            mask = block_mask(_in_documents(states, call), queries, slots, _everything)
        mask.mask_mod = _mask(call)
        return self.attention(q, k, v, mask, call.scale, _softcap(call.softcap, q.device), options)

    @staticmethod
    def attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Any,
        scale: float,
        score_mod: Any,
        options: dict[str, Any] | None,
    ) -> tuple[Tensor, Tensor]:
        """The one call of FlexAttention."""
        from torch._dynamo import config
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
        from torch.nn.attention.flex_attention import AuxRequest

        try:
            with config.patch(recompile_limit=VARIANTS, accumulated_recompile_limit=VARIANTS):
                out, more = _compiled()(
                    q,
                    k,
                    v,
                    score_mod,
                    mask,
                    scale,
                    q.shape[1] != k.shape[1],
                    kernel_options=options,
                    return_aux=AuxRequest(lse=True),
                )
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            raise BuildError(f"FlexAttention does not compile: {type(error).__name__}: {error}") from error
        return out, more.lse


class FlexFlash(Flex):
    """FlexAttention with its FLASH kernel; see the module."""

    name = "flex_flash"
    capabilities = replace(
        Flex.capabilities,
        dtypes=frozenset({"bfloat16", "float16"}),
        max_head_dim=128,
        packages=("triton", "flash-attn-4"),
    )
    forward_options: ClassVar[dict[str, Any] | None] = {"BACKEND": "FLASH"}

    def reasons(self, problem: Problem, machine: Machine) -> list[str]:
        found = super().reasons(problem, machine)
        if problem.head_dim % 8:
            found.append(f"head_dim % 8 == 0 wanted, call has {problem.head_dim}")
        if machine.capability is not None and machine.capability[0] != 9:
            got = ".".join(map(str, machine.capability))
            found.append(f"compute capability 9.x wanted (blocks of {BLOCK} queries), device has {got}")
        return found

    def details(self) -> str:
        return _without_flash()

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        if why := _without_flash():
            raise BuildError(why)
        return super().forward(call)


def _without_flash() -> str:
    """Say so where PyTorch's FlexAttention has no FLASH kernel."""
    from torch.nn.attention import flex_attention

    known = get_args(getattr(flex_attention, "_Backend", None))
    return "" if "FLASH" in known else f"FlexAttention of torch {torch.__version__} has no FLASH kernel"


@cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True, dynamic=True)


def _with_columns(call: Call) -> tuple[Tensor, Tensor]:
    """k and v [B, Hkv, M + G, D]: the keys, and those of global columns once more."""
    if call.columns is None:
        return call.k, call.v
    at = call.columns.positions[:, None, :, None]
    k, v = (
        torch.cat([x, x.gather(2, at.expand(-1, x.shape[1], -1, x.shape[3]))], 2) for x in (call.k, call.v)
    )
    return k, v


@kept(64)
def _blocks(
    forms: tuple[Form, ...],
    heads: int,
    queries: int,
    keys: int,
    slots: int,
    padded: bool,
    device: torch.device,
) -> BlockMask:
    """Lists of blocks over keys and, up to `slots`, columns."""
    with torch.inference_mode(False):  # kept, and saved for a backward
        states = _states(forms, heads, queries, keys, slots, padded)[None]
        return block_mask(states.to(device), queries, slots, _everything)


def _states(forms: tuple[Form, ...], heads: int, queries: int, keys: int, slots: int, padded: bool) -> Tensor:
    """States of blocks, as `block_states` has them, over columns as well; with padding none is full."""
    states = block_states(forms, heads, queries, keys).clamp(max=1 if padded else 2)
    whole = states.shape[2] if slots == keys else keys // BLOCK
    wide = torch.ones(*states.shape[:2], -(-slots // BLOCK), dtype=states.dtype)
    wide[..., :whole] = states[..., :whole]
    return wide


def _in_documents(states: Tensor, call: Call) -> Tensor:
    """States [B, H or 1, ...] where documents are packed: none of others, and full ones within one alone.

    A block with columns is looked at whatever its documents are.
    """
    assert call.documents is not None, "asked only with documents"
    start, end = call.documents
    keys, offset = call.k.shape[2], call.offset
    first = torch.arange(offset, keys, BLOCK, device=start.device)
    last = (first + (BLOCK - 1)).clamp(max=keys - 1)
    low = torch.arange(states.shape[-1], device=start.device) * BLOCK
    high = low + BLOCK
    columns = high > keys if call.columns is not None else high < 0
    some = (low < end[:, last, None]) & (high > start[:, first, None]) | columns
    every = (low >= start[:, last, None]) & (high <= end[:, first, None])
    most = some.to(states.dtype) + (some & every).to(states.dtype)
    return torch.minimum(states[None], most[:, None])


def _everything(batch: Any, head: Any, query: Any, key: Any) -> Any:
    return key >= 0


def _mask(call: Call) -> MaskMod:
    """Pairs of the local part, each once: in its place if a band or rule shows it, else in its column."""
    device, columns, padding = call.q.device, call.columns, call.key_padding
    local = mask_mod(call.lowered.forms, device)
    start = None if call.documents is None else call.documents.start
    offset, keys = (torch.tensor(x, device=device) for x in (call.offset, call.k.shape[2]))

    def visible(batch: Any, head: Any, query: Any, key: Any) -> Any:
        """Pairs that the pattern shows of one document, in which positions count from its start."""
        if start is None:
            return local(head, query, key)
        first = start[batch, query]
        return local(head, query - first, key - first) & (first == start[batch, key])

    def in_place(batch: Any, head: Any, query: Any, key: Any) -> Any:
        at = key.clamp(max=keys - 1)
        seen = visible(batch, head, query + offset, at) & (key < keys)
        return seen if padding is None else seen & ~padding[batch, at]

    if columns is None:
        return in_place
    positions, valid, causal = columns

    def either(batch: Any, head: Any, query: Any, key: Any) -> Any:
        slot = (key - keys).clamp(min=0)
        at = positions[batch, slot]
        column = valid[batch, slot] & ~visible(batch, head, query + offset, at)
        if start is not None:
            column = column & (start[batch, query + offset] == start[batch, at])
        if causal:
            column = column & (at <= query + offset)
        return torch.where(key < keys, in_place(batch, head, query, key), column)

    return either


def _softcap(cap: float | None, device: torch.device) -> Any:
    if cap is None:
        return None
    limit = torch.tensor(cap, device=device)
    return lambda score, batch, head, query, key: limit * torch.tanh(score / limit)
