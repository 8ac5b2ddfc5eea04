"""What a patched model does not cost: an N x N tensor, padding, global index work, broken graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lf_backend as lf
from lf_huggingface.patch.token_masks import NOTHING_SAID, TokenMasks
from tests.huggingface import zoo


class _Largest(TorchDispatchMode):
    """The largest number of elements that any operation stores, and how many operations ran."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return result


def _largest(model: nn.Module, length: int, **asked: bool) -> int:
    ids = zoo.tokens(1, length)
    masks = {"attention_mask": torch.ones_like(ids), "global_attention_mask": torch.zeros_like(ids)}
    masks["attention_mask"][0, -3:] = 0
    masks["global_attention_mask"][0, 0] = 1
    with _Largest() as seen:
        output = model(ids, **masks, **asked)
        output[0].sum().backward()
    return seen.elements


@pytest.mark.parametrize("asked", [{}, {"output_attentions": True}], ids=["plain", "with attentions"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: zoo.longformer(max_position_embeddings=2100),
        lambda: zoo.led("LEDModel", max_encoder_position_embeddings=2100).encoder,
    ],
    ids=["longformer", "led"],
)
def test_no_tensor_of_n_by_n_elements(make: Any, asked: dict[str, bool]) -> None:
    length = 2048
    assert _largest(make(), length) >= length * length  # the test can fail: stock builds its mask
    model = make()
    lf.patch(model)
    assert _largest(model, length, **asked) < length * length // 2


def test_a_short_input_is_not_padded_to_the_window() -> None:
    model = zoo.longformer(attention_window=128)
    lengths = []
    model.encoder.layer[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    lf.patch(model)
    model(zoo.tokens(1, 9))
    assert lengths == [9]


def test_masks_without_data_are_not_looked_at() -> None:
    ones = torch.ones(2, 8, dtype=torch.long, device="meta")  # reading one of these raises
    both = TokenMasks.read(ones, ones, most=2)
    assert both.padded is not None
    assert both.global_mask is not None
    assert TokenMasks.read(None, ones, most=2).padded is not None  # it may hold -1
    assert TokenMasks.read(None, ones.bool(), most=2).padded is None
    assert TokenMasks.read(ones.bool(), None, most=2).global_mask is None
    assert TokenMasks.read(None, None, most=2) == NOTHING_SAID


@pytest.fixture
def _dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_dynamo")
@pytest.mark.parametrize("given", ["nothing", "masks"])
def test_one_graph_for_all_lengths(given: str) -> None:
    model = zoo.longformer()
    lf.patch(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    torch._dynamo.utils.counters.clear()
    for length in (24, 17, 40):
        batch = {"input_ids": zoo.tokens(4, length), **(zoo.masks(length) if given == "masks" else {})}
        got = compiled(**batch)
        want = model(**batch)
        torch.testing.assert_close(got.last_hidden_state, want.last_hidden_state)
        torch.testing.assert_close(got.pooler_output, want.pooler_output)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    got.last_hidden_state.square().mean().backward()
    compiled_grads = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    model.zero_grad()
    want.last_hidden_state.square().mean().backward()
    for name, x in model.named_parameters():
        if x.grad is not None:
            torch.testing.assert_close(compiled_grads[name], x.grad, msg=name)


@pytest.mark.usefixtures("_dynamo")
def test_led_compiles_and_longformer_exports() -> None:
    encoder = zoo.led().led.encoder
    lf.patch(encoder)
    batch = {"input_ids": zoo.tokens(4, 21), **zoo.masks(21)}
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**batch)[0], encoder(**batch)[0])
    model = zoo.longformer()
    lf.patch(model)
    exported = torch.export.export(model, (), batch, strict=False).module()
    torch.testing.assert_close(exported(**batch)[0], model(**batch)[0])


@pytest.mark.usefixtures("_dynamo")
def test_in_a_graph_a_mask_of_one_and_zero_may_hold_globals_and_a_bool_mask_not() -> None:
    model = zoo.longformer()
    lf.patch(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ids = zoo.tokens(2, 24)
    codes = torch.ones_like(ids)
    codes[0, 5] = 2
    torch.testing.assert_close(compiled(ids, codes)[0], model(ids, codes)[0])
    compiled(ids, codes.bool())[0].sum().backward()
    assert model.encoder.layer[0].attention.self.key_global.weight.grad is None
