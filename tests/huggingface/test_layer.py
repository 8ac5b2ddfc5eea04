"""One attention layer against dense attention under the pattern's mask: dilation, causal, globals, weights.

Stock transformers ignores dilation and `autoregressive`, so here the oracle is `pattern.mask`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lf_backend as lf
from tests.huggingface import zoo

LENGTH = 21
PATTERNS = (
    "window(4, 4)",
    "window(4, 4, dilation=3)",
    "window(2, 3, dilation=[1, 1, 2, 5])",
    "window(5, 0)",
    "window(5, 0, dilation=2)",
    "window(4, 4) | global(0, 7)",
    "(window(6, 6) | global(3)) & causal()",
)


def _layer(pattern: str) -> nn.Module:
    layer = zoo.longformer().double().encoder.layer[0].attention.self
    lf.patch(layer, pattern)
    return layer


def _masks() -> dict[str, Any]:
    padded = torch.zeros(3, LENGTH, dtype=torch.bool)
    padded[1, 15:] = padded[2, 4:6] = True
    is_global = torch.zeros_like(padded)
    is_global[0, [2, 19]] = is_global[1, 9] = True
    return {"is_index_masked": padded, "is_index_global_attn": is_global, "is_global_attn": True}


class _Dense:
    """The layer's own projections, dense weights [B, H, N, N] and what follows from them."""

    def __init__(self, layer: nn.Module, x: Tensor, masks: dict[str, Any]) -> None:
        pattern = layer.lf_mark.pattern
        q, k, v = (self._heads(p(x)) for p in (layer.query, layer.key, layer.value))
        own = (self._heads(p(x)) for p in (layer.query_global, layer.key_global, layer.value_global))
        self.padded = masks.get("is_index_masked", torch.zeros(x.shape[:2], dtype=torch.bool))
        self.globals = masks.get("is_index_global_attn", torch.zeros_like(self.padded)).clone()
        self.globals[:, list(pattern.lowered.positions)] = True
        self.globals &= ~self.padded
        rows, columns = self.globals[:, None, :, None], self.globals[:, None, None]
        seen = pattern.mask(LENGTH, heads=4) | rows | columns
        if pattern.is_causal:
            seen = seen & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        seen = seen & ~self.padded[:, None, None]
        gq, gk, gv = own
        self.weights = torch.where(rows, self._softmax(gq, gk, seen), self._softmax(q, k, seen))
        self.weights = self.weights.masked_fill(self.padded[:, None, :, None], 0)
        mixed = torch.where(rows, self.weights @ gv, self.weights @ v)
        self.out = mixed.transpose(1, 2).reshape(x.shape)

    @staticmethod
    def _heads(x: Tensor) -> Tensor:
        return x.unflatten(2, (4, -1)).transpose(1, 2)

    @staticmethod
    def _softmax(q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -1e30)
        return scores.softmax(-1) * seen.any(-1, keepdim=True)


@pytest.mark.parametrize("some", ["no global", "globals"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_output_and_gradients_are_those_of_dense_attention(pattern: str, some: str) -> None:
    layer = _layer(pattern)
    masks = _masks() if some == "globals" else {}
    x = torch.randn(3, LENGTH, 32, dtype=torch.float64, requires_grad=True)
    got, want = layer(x, **masks)[0], _Dense(layer, x, masks).out
    torch.testing.assert_close(got, want)
    direction = torch.randn_like(want)
    inputs = (x, *layer.parameters())
    got, want = (_gradients(out, inputs, direction) for out in (got, want))
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two)


def _gradients(out: Tensor, inputs: tuple[Tensor, ...], direction: Tensor) -> list[Tensor]:
    """Zero for what the output does not depend on."""
    found = torch.autograd.grad(out, inputs, direction, allow_unused=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, found, strict=True)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_weights_have_the_documented_layout(pattern: str) -> None:
    layer = _layer(pattern)
    masks = _masks()
    x = torch.randn(3, LENGTH, 32, dtype=torch.float64)
    _, local, rows = layer(x, **masks, output_attentions=True)
    dense = _Dense(layer, x, masks)
    band = layer.lf_mark.pattern.lowered.bands[0]
    slots, taps = int(dense.globals.sum(1).max()), band.left + band.right + 1
    assert local.shape == (3, LENGTH, 4, slots + taps)
    assert rows.shape == (3, 4, slots, LENGTH)
    for b, h in torch.cartesian_prod(torch.arange(3), torch.arange(4)).tolist():
        at = dense.globals[b].nonzero()[:, 0].tolist()
        weights = dense.weights[b, h].detach()
        for slot in range(slots):
            want = weights[at[slot]] if slot < len(at) else torch.full((LENGTH,), 1 / LENGTH)
            torch.testing.assert_close(rows[b, h, slot].detach(), want.double())
        want = torch.zeros(LENGTH, slots + taps, dtype=torch.float64)
        for i in set(range(LENGTH)) - set(at):
            want[i, : len(at)] = weights[i, at]
            for tap in range(taps):
                j = i + band.dilation(h) * (tap - band.left)
                if 0 <= j < LENGTH and j not in at:
                    want[i, slots + tap] = weights[i, j]
        torch.testing.assert_close(local[b, :, h].detach(), want)


def test_weights_carry_the_gradient_of_dense_weights() -> None:
    layer = _layer("window(4, 4)")
    x = torch.randn(3, LENGTH, 32, dtype=torch.float64, requires_grad=True)
    _, local, rows = layer(x, **_masks(), output_attentions=True)
    dense = _Dense(layer, x, _masks())
    used = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)[:, None, :, None]
    got = local.square().sum() + (rows * used).square().sum()
    want = dense.weights.square().sum()
    torch.testing.assert_close(got, want)
    inputs = (x, layer.query.weight, layer.key.weight, layer.query_global.weight, layer.key_global.weight)
    for one, two in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(one, two)


def test_weights_of_a_training_step_are_those_that_made_its_output() -> None:
    layer = _layer("window(4, 4)").train()
    layer.dropout = 0.4
    x, masks = torch.randn(3, LENGTH, 32, dtype=torch.float64), _masks()
    out, local, rows = (y.detach() for y in layer(x, **masks, output_attentions=True))
    v, gv = (p(x).unflatten(2, (4, -1)).detach() for p in (layer.value, layer.value_global))
    want = torch.zeros_like(v)
    for b in range(3):
        at = (masks["is_index_global_attn"] & ~masks["is_index_masked"])[b].nonzero()[:, 0].tolist()
        for slot, i in enumerate(at):
            want[b] += local[b, :, :, slot, None] * v[b, i]
            want[b, i] = torch.einsum("hm,mhd->hd", rows[b, :, slot], gv[b])
        for i in set(range(LENGTH)) - set(at):
            for tap in range(9):
                if 0 <= (j := i + tap - 4) < LENGTH:
                    want[b, i] += local[b, i, :, 2 + tap, None] * v[b, j]
    torch.testing.assert_close(out.unflatten(2, (4, -1)), want)
    dropped = (local[0, 5:16, :, 2:] == 0).double().mean()
    assert 0.3 < float(dropped) < 0.5
    assert float(local.max()) > 0


def test_dropout_follows_the_seed_and_stops_in_eval_mode() -> None:
    layer = _layer("window(4, 4)").train()
    layer.dropout = 0.4
    x = torch.randn(1, LENGTH, 32, dtype=torch.float64)

    def once(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return layer(x)[0]

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))
    mean = torch.stack([once(seed).detach() for seed in range(400)]).mean(0)
    plain = layer.eval()(x)[0].detach()
    assert torch.equal(once(1), once(2))
    assert float((mean - plain).abs().mean() / plain.abs().mean()) < 0.1


def test_asking_for_weights_changes_neither_the_output_nor_the_random_state() -> None:
    layer = _layer("window(4, 4)").train()
    layer.dropout = 0.4
    x = torch.randn(3, LENGTH, 32, dtype=torch.float64)
    found = []
    for asked in (False, True):
        torch.manual_seed(3)
        found.append((layer(x, **_masks(), output_attentions=asked)[0], torch.rand(1)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_weights_of_blocks_join(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = _layer("window(4, 4, dilation=[1, 1, 2, 5])")
    x = torch.randn(3, LENGTH, 32, dtype=torch.float64)
    whole = layer(x, **_masks(), output_attentions=True)
    monkeypatch.setattr("lf_huggingface.patch.attention_weights.BLOCK", 4)
    for one, two in zip(layer(x, **_masks(), output_attentions=True), whole, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("pattern", ["window(none, 0)", "window(1, 1) | window(2, 2, dilation=4)"])
def test_weights_without_a_layout_are_an_error(pattern: str) -> None:
    layer = _layer(pattern)
    x = torch.randn(1, LENGTH, 32, dtype=torch.float64)
    layer(x)
    with pytest.raises(lf.PatternError, match="output_attentions: a pattern of one limited window and"):
        layer(x, output_attentions=True)


def test_weights_under_autocast_belong_to_their_row() -> None:
    layer = _layer("window(4, 4)").float()
    with torch.autocast("cpu", torch.bfloat16):
        _, local, _ = layer(8 * torch.randn(3, LENGTH, 32), **_masks(), output_attentions=True)
    hidden = _masks()["is_index_masked"] | _masks()["is_index_global_attn"]
    sums = local.float().sum(-1)[~hidden]
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=0.02, rtol=0)  # 11 roundings of bfloat16


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)], ids=["no example", "no token"])
def test_nothing_gives_nothing(shape: tuple[int, int]) -> None:
    out, local = _layer("window(4, 4)")(torch.zeros(*shape, 32).double(), output_attentions=True)
    assert out.shape == (*shape, 32)
    assert local.shape == (*shape, 4, 9)


def test_projections_reach_the_operator_as_views(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, seen = _layer("window(4, 4)"), []
    attention = lf.attention

    def spy(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> Any:
        seen.extend([q, k, v, named["global_q"]])
        return attention(q, k, v, *rest, **named)

    monkeypatch.setattr(lf, "attention", spy)
    layer(torch.randn(3, LENGTH, 32, dtype=torch.float64), **_masks())
    for x in seen:
        assert x.shape == (3, 4, LENGTH, 8)
        assert x.stride() == (LENGTH * 32, 8, 32, 1)
