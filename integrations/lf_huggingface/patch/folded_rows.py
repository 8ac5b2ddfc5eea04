"""The rows of few global tokens, without keys and values of their own for all tokens.

Global rows have projections of their own, K x + b of every token x, for the few queries that use them. But
the score of a query q is q . (K x + b) = (K^T q) . x + q . b, and the sum of weights w times V x + c is
V (sum of w x) + c (sum of w). So queries are taken back through one projection, and sums forward through the
other: with G global tokens and H heads that is 2 G H products of each token instead of 2 E. The answer is the
same up to rounding, gradients too.
"""

from __future__ import annotations

import operator
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lf_backend.backend import Columns, Documents
from lf_backend.numerics.precision import accumulation_dtype
from lf_huggingface.patch.attention_weights import Replay


class Tokens(NamedTuple):
    """The global tokens of a batch, and what there is to see for them.

    Attributes:
        columns: the global tokens, none of them padded.
        padded: bool [B, N] or None.
        documents: packed documents or None.
    """

    columns: Columns
    padded: Tensor | None
    documents: Documents | None

    def hidden(self, length: int) -> Tensor | None:
        """bool [B, 1, G, N], the keys that a row does not see; a slot without a row sees all of them."""
        at, valid, causal = self.columns
        hidden = [] if self.padded is None else [self.padded[:, None]]
        if causal or self.documents is not None:
            keys = torch.arange(length, device=at.device)
            if causal:
                hidden.append(keys > at[..., None])
            if self.documents is not None:
                start, end = (x.gather(1, at)[..., None] for x in self.documents)
                hidden.append((keys < start) | (keys >= end))
        return (reduce(operator.or_, hidden) & valid[..., None])[:, None] if hidden else None


class Projections(NamedTuple):
    """The linear layers [E, E] of global rows, whose heads are neighbours in what they give."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    heads: int

    def pay(self, rows: int, like: Tensor) -> bool:
        """Tell whether folding is less than half of the work, of layers that do what their weights say.

        On a GPU projections in half precision are so fast that the copy of tokens in float32, which scores
        want, costs as much (by a count of bytes, not measured).

        Args:
            rows: how many global tokens an example has at the most.
            like: a tensor of the dtype that the layers give.
        """
        copies = like.device.type != "cpu" and accumulation_dtype(like.dtype) != like.dtype
        few = 2 * rows * self.heads <= self.key.in_features
        return few and not copies and _is_plain(self.key) and _is_plain(self.value)


def write(out: Tensor, x: Tensor, layers: Projections, tokens: Tokens, replay: Replay) -> Tensor:
    """Return `out` with the rows of its global tokens.

    Args:
        out, x: [B, N, E], of the layer without them, and the tokens.
        replay: the dropout of the layer's weights.
    """
    at = tokens.columns.positions[..., None].expand(-1, -1, x.shape[2])
    query = layers.query(x.gather(1, at))
    with torch.autocast(x.device.type, enabled=False):
        rows = _rows(query, x, layers, tokens, replay).to(out.dtype)
    return out.scatter(1, at, torch.where(tokens.columns.valid[..., None], rows, out.gather(1, at)))


def _rows(query: Tensor, x: Tensor, layers: Projections, tokens: Tokens, replay: Replay) -> Tensor:
    """The rows [B, G, E] in the dtype of scores, of projected queries [B, G, E]."""
    dtype, heads = accumulation_dtype(query.dtype), layers.heads
    x = x.to(dtype)
    if tokens.padded is not None:
        x = x.masked_fill(tokens.padded[..., None], 0)  # a weight of 0 times NaN is NaN
    q = _by_heads(query.to(dtype), heads) * (query.shape[2] // heads) ** -0.5
    folded = q @ _weight(layers.key, heads, dtype)
    scores = (folded.flatten(1, 2) @ x.mT).unflatten(1, q.shape[1:3])
    if layers.key.bias is not None:
        scores = scores + q @ _bias(layers.key, heads, dtype).mT
    hidden = tokens.hidden(x.shape[1])
    weights = (scores if hidden is None else scores.masked_fill(hidden, -torch.inf)).softmax(3)
    keys = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
    factors = replay.factors(weights, tokens.columns.positions, keys)
    weights = weights if factors is None else weights * factors
    sums = (weights.flatten(1, 2) @ x).unflatten(1, q.shape[1:3])
    rows = sums @ _weight(layers.value, heads, dtype).mT
    if layers.value.bias is not None:
        rows = rows + weights.sum(3, keepdim=True) * _bias(layers.value, heads, dtype)
    return rows.transpose(1, 2).flatten(2)


def _by_heads(x: Tensor, heads: int) -> Tensor:
    """[B, G, E] as [B, H, G, D]."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _weight(layer: nn.Linear, heads: int, dtype: torch.dtype) -> Tensor:
    """The weight as [H, D, E]."""
    return layer.weight.to(dtype).unflatten(0, (heads, -1))


def _bias(layer: nn.Linear, heads: int, dtype: torch.dtype) -> Tensor:
    """The bias as [H, 1, D]."""
    return layer.bias.to(dtype).view(heads, 1, -1)


def _is_plain(layer: nn.Module) -> bool:
    """Tell whether a layer is its weight and bias: no adapter, quantised weight, hook or other forward."""
    if type(layer) is not nn.Linear or "forward" in vars(layer) or type(layer.weight) is not nn.Parameter:
        return False
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not any(hooks) and layer.weight.is_floating_point() and not layer.weight.is_meta
