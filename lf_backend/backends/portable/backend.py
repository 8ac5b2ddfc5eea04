"""The local part of a call, by ordinary operators; its backward is their autograd."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lf_backend.backend import Backend, Call, Capabilities, Gradients
from lf_backend.backends.portable.pieces import Piece, joined
from lf_backend.backends.portable.tokens import column_piece, rule_piece
from lf_backend.backends.portable.windows import window
from lf_backend.numerics.recorded import recorded
from lf_backend.problem import Feature


class Portable(Backend):
    """See the package."""

    name = "portable"
    capabilities = Capabilities(features=frozenset(Feature))

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        out, lse = joined(local_pieces(call))
        return out.to(call.q.dtype), lse

    def backward(
        self, call: Call, grad_out: Tensor, out: Tensor | None, delta: Tensor, lse: Tensor
    ) -> Gradients:
        """Differentiate the local softmax by autograd.

        With w = exp(own lse - lse), the share of the local part, its upstream gradients are w * grad_out
        and, of its lse, what makes every delta ours: sum(w * grad_out * out) - w * delta.
        """

        def differentiate() -> tuple[Tensor | None, ...]:
            bias = call.band_bias
            inputs = [x.detach().requires_grad_() for x in (call.q, call.k, call.v)]
            more = [] if bias is None else [bias.detach().requires_grad_()]
            q, k, v = inputs
            again = replace(call, q=q, k=k, v=v, band_bias=more[0] if more else None)
            found, own = joined(local_pieces(again))
            share = (own.detach() - lse).exp()
            upstream = share[..., None] * grad_out
            upstream_lse = (upstream * found.detach()).sum(-1) - share * delta
            grads = torch.autograd.grad(
                (found, own), [*inputs, *more], (upstream, upstream_lse), materialize_grads=True
            )
            return (*grads, None)[:4]

        q, k, v, bias = recorded(call.q.device, differentiate)
        assert q is not None and k is not None and v is not None, "they are materialised"
        return Gradients(q, k, v, bias)


def local_pieces(call: Call) -> list[Piece]:
    """Return the pieces of bands, columns and rules; no pair is in two of them."""
    found = [window(call, index) for index in range(len(call.lowered.bands))]
    if call.columns is not None:
        found.append(column_piece(call, call.columns))
    if call.lowered.others:
        found.append(rule_piece(call))
    return found
