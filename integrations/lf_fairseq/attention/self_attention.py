"""fairseq's self-attention, by `lf_backend.attention`.

Time x batch x channel is looked at as [B, H, T, D], not copied. The projections are called as modules, so
that hooks of quantisation noise and of others run; fairseq's own fast path reads their weights instead, and
leaves the noise out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor

import lf_backend as lf
from lf_backend.errors import ShapeError, UnsupportedError
from lf_backend.pattern.terms import Pattern
from lf_fairseq.attention import projections
from lf_fairseq.attention.decoding_buffer import Buffer
from lf_fairseq.attention.keys import OrderedKeys, whole

if TYPE_CHECKING:
    from lf_backend.patching import PatchMark

State = dict[str, Any]
_KEY = "lf_buffer"


class SparseMultiheadAttention(MultiheadAttention):
    """Takes the place of a `MultiheadAttention` with `self_attention=True`, whose parameters it uses."""

    if TYPE_CHECKING:
        lf_mark: PatchMark

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: State | None = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's output, and the weights behind it if asked for.

        Args:
            query: [T, B, E]; key and value are the same tensor.
            key_padding_mask: [B, T], True or 1 for padding, or as `marks` has it. The output of padding is
                what `out_proj` makes of 0.
            incremental_state: keeps keys and values between calls; see `buffer`.
            need_weights: also return weights [B, T, S], their mean over heads, before dropout and without
                gradient, S being all positions so far.
            attn_mask: nothing, or the mask [T, T] that hides the future.
            need_head_weights: weights of each head instead, [H, B, T, S].

        Returns:
            [T, B, E], and the weights or None.

        Raises:
            UnsupportedError: `static_kv`, `before_softmax`, another `attn_mask`, another key than the query,
                export to ONNX.
        """
        self._check(query, key, value, static_kv, before_softmax)
        pattern = self._pattern(attn_mask, query.shape[0], incremental_state)
        q, k, v = (self._heads(project(query)) for project in (self.q_proj, self.k_proj, self.v_proj))
        buffer = None
        if incremental_state is None:
            laid = whole(k, v, pattern, key_padding_mask)
        else:
            buffer = self._buffer(incremental_state) or Buffer.empty(k, v)
            buffer = buffer.extended(k, v, key_padding_mask, pattern)
            laid = buffer.laid(query.shape[0], pattern)
            self.set_incremental_state(incremental_state, _KEY, buffer.trimmed(pattern))
        own = self._own(query, laid, incremental_state)
        out = lf.attention(
            q,
            laid.k,
            laid.v,
            laid.pattern,
            key_padding=laid.key_padding,
            global_mask=laid.global_mask,
            global_q=own[0],
            global_k=own[1],
            global_v=own[2],
            scale=self.scaling,
            dropout_p=self._dropout_p(),
            backend=self.lf_mark.backend,
        )
        out = self.out_proj(out.permute(2, 0, 1, 3).reshape(*query.shape[:2], -1))
        if not (need_weights or need_head_weights):
            return out, None
        weights = self._weights(q, laid, own)
        weights = weights if buffer is None else buffer.spread(weights)
        return out, weights.transpose(0, 1) if need_head_weights else weights.mean(1)

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """fairseq's, which is called when a checkpoint is loaded; see `projections`."""
        super().upgrade_state_dict_named(state_dict, name)
        projections.fill(self, state_dict, name)

    def reorder_incremental_state(self, incremental_state: State | None, new_order: Tensor) -> State | None:
        """Put the kept examples in another order, as beam search asks."""
        buffer = self._buffer(incremental_state)
        if buffer is not None:
            self.set_incremental_state(incremental_state, _KEY, buffer.reordered(new_order))
        return incremental_state

    def _get_input_buffer(self, incremental_state: State | None) -> dict[str, Tensor | None]:
        """Return the kept keys under fairseq's names; they are fewer than fairseq keeps."""
        buffer = self._buffer(incremental_state)
        if buffer is None:
            return {}
        return {"prev_key": buffer.keys, "prev_value": buffer.values, "prev_key_padding_mask": buffer.mask}

    def _set_input_buffer(self, incremental_state: State | None, buffer: Any) -> None:
        raise UnsupportedError(
            "incremental_state: keys that this attention has kept itself wanted, got some from outside "
            "(prev_self_attn_state); where they belong in the sequence is not known"
        )

    def __prepare_scriptable__(self) -> None:
        raise UnsupportedError(
            "torch.jit.script: eager mode wanted, TorchScript is not carried; undo the patch"
        )

    def _buffer(self, incremental_state: State | None) -> Buffer | None:
        found: Any = self.get_incremental_state(incremental_state, _KEY)
        return found

    def _check(
        self, query: Tensor, key: Tensor | None, value: Tensor | None, static_kv: bool, before_softmax: bool
    ) -> None:
        if static_kv or before_softmax or self.onnx_trace:
            given = {"static_kv": static_kv, "before_softmax": before_softmax, "onnx_trace": self.onnx_trace}
            names = [name for name, value in given.items() if value]
            raise UnsupportedError(f"sparse self-attention: {' and '.join(names)} off wanted, got on")
        for name, x in (("key", key), ("value", value)):
            if x is not None and x is not query:
                raise UnsupportedError(
                    f"{name}: the query itself wanted in self-attention, got another tensor"
                )
        if query.shape[-1] != self.q_proj.in_features:
            raise ShapeError(f"query: {self.q_proj.in_features} channels wanted, got {query.shape[-1]}")

    def _pattern(self, attn_mask: Tensor | None, length: int, incremental_state: State | None) -> Pattern:
        """The layer's pattern, cut to the past where the stack's mask or one step after another does so."""
        pattern = self.lf_mark.pattern
        assert pattern is not None, "the plan gives every attention a pattern"
        if attn_mask is None:
            return pattern if incremental_state is None else pattern.past
        if not _hides_future(attn_mask, length):
            raise UnsupportedError(
                f"attn_mask: none, or [{length}, {length}] with -inf above the diagonal and 0 elsewhere "
                f"wanted, got another of shape {list(attn_mask.shape)}; the pattern says what is seen"
            )
        return pattern.past

    def _dropout_p(self) -> float:
        dropout = self.dropout_module
        return float(dropout.p) if self.training or dropout.apply_during_inference else 0.0

    def _heads(self, x: Tensor) -> Tensor:
        """[T, B, H * D] as [B, H, T, D], a view."""
        return x.view(*x.shape[:2], self.num_heads, self.head_dim).permute(1, 2, 0, 3)

    def _own(self, query: Tensor, laid: OrderedKeys, incremental_state: State | None) -> list[Tensor | None]:
        """Query, key and value [B, H, T, D] of global tokens, if they have projections of their own."""
        none: list[Tensor | None] = [None, None, None]
        if not projections.has_own(self):
            return none
        if incremental_state is not None:
            raise UnsupportedError("incremental_state: none wanted with global projections, got one")
        if laid.global_mask is None and not laid.pattern.lowered.positions:
            return none
        return [self._heads(x) for x in projections.project(self, query)]

    def _weights(self, q: Tensor, laid: OrderedKeys, own: list[Tensor | None]) -> Tensor:
        """[B, H, T, M], M being the keys at hand."""
        return lf.probabilities(
            q,
            laid.k,
            laid.v,
            laid.pattern,
            key_padding=laid.key_padding,
            global_mask=laid.global_mask,
            global_q=own[0],
            global_k=own[1],
            global_v=own[2],
            scale=self.scaling,
        )


def _hides_future(attn_mask: Tensor, length: int) -> bool:
    """Whether a mask hides what lies ahead and nothing else; fairseq adds it to the scores."""
    if tuple(attn_mask.shape) != (length, length):
        return False
    if attn_mask.dtype == torch.bool:
        return bool((attn_mask == torch.ones_like(attn_mask).triu(1)).all())
    future = torch.full_like(attn_mask, -torch.inf).triu(1)
    return bool((attn_mask == future).all())
