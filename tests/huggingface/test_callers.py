"""What other callers of transformers pass: masks of any shape, positions that jump, words of losses."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lf_backend as lf
from lf_huggingface.interface import mask_kind
from tests.huggingface import families, zoo


def _ids(length: int = 12, batch: int = 2) -> Tensor:
    return torch.randint(5, families.VOCABULARY, (batch, length))


@pytest.mark.parametrize(
    "words",
    [
        {"shift_labels": torch.zeros(2, 12, dtype=torch.long)},
        {"ignore_index": -1},
        {"labels": torch.zeros(2, 12, dtype=torch.long), "num_items_in_batch": 3},
        {"decoder_input_ids": torch.zeros(2, 12, dtype=torch.long)},
        {"pixel_values": torch.zeros(1)},
    ],
    ids=lambda words: next(iter(words)),
)
def test_words_of_losses_and_inputs_pass(words: dict[str, Any]) -> None:
    families.build("BERT")  # and with it what an encoder declares
    import transformers

    assert transformers.ViTModel and transformers.BartModel
    model, ids = families.build("Llama"), _ids()
    wanted = model(ids)[0]
    found = model(ids, **words)
    assert torch.equal(found[-1] if isinstance(found, tuple) else getattr(found, "logits", found[0]), wanted)


@pytest.mark.parametrize("word", ["temperature_of_attention", "head_mask"])
def test_words_that_change_attention_or_that_nobody_declares(word: str) -> None:
    with pytest.raises(lf.UnsupportedError, match=f"{word}: passed by LlamaAttention to its attention"):
        families.build("Llama")(_ids(), **{word: torch.ones(1)})


@pytest.mark.parametrize("steps", [2, 5])
def test_positions_that_jump_are_one_document(steps: int) -> None:
    """PoSE, scaled and repeated positions; only positions that go back are documents."""
    model, ids = families.build("Llama"), _ids()
    jumping = torch.arange(12) + steps * (torch.arange(12) >= 6)
    repeated = torch.arange(12) // 2
    for positions in (jumping, repeated):
        given = {"position_ids": positions.expand(2, -1), "attention_mask": torch.ones_like(ids)}
        found = model(ids, **given)[0]
        model.set_attn_implementation("eager")
        torch.testing.assert_close(found, model(ids, **given)[0], rtol=1e-4, atol=1e-5)
        model.set_attn_implementation("lf")


@pytest.mark.parametrize("shape", [(2, 1, 1, 12), (1, 1, 12, 12), (1, 1, 1, 12)])
def test_broadcast_masks(shape: tuple[int, ...]) -> None:
    model, ids = families.build("BERT"), _ids()
    mask = torch.rand(shape) > 0.2
    mask[..., 0] = True
    found = model(ids, attention_mask=mask)[0]
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(found, model(ids, attention_mask=mask)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [zoo.longformer, zoo.led])
@pytest.mark.parametrize("with_mask", [False, True])
def test_minus_one_in_a_global_attention_mask_is_padding(make: Any, with_mask: bool) -> None:
    """What LED's tokenizer pads with; upstream computes with it, and so padding comes out."""
    model, ids = make().eval(), zoo.tokens(2, 16)
    marked = torch.zeros_like(ids)
    marked[:, 0] = 1
    marked[1, 12:] = -1
    given = {"global_attention_mask": marked}
    if with_mask:
        given["attention_mask"] = (marked >= 0).long()
    read = model.get_encoder() if hasattr(model, "get_encoder") and model.config.is_encoder_decoder else model
    with torch.no_grad():
        wanted = read(ids, **given)[0]
        with lf.patch(model):
            found = read(ids, **given)[0]
    keep = marked >= 0
    torch.testing.assert_close(found[keep], wanted[keep], rtol=1e-4, atol=1e-5)


def test_minus_one_hides_in_a_configured_model() -> None:
    model, ids = families.build("BERT", lf_attention="window(3, 3)"), _ids()
    marked = torch.zeros_like(ids)
    marked[:, 0] = 1
    marked[1, 9:] = -1
    found = model(ids, global_attention_mask=marked)[0]
    wanted = model(ids, global_attention_mask=marked.clamp(min=0), attention_mask=(marked >= 0).long())[0]
    torch.testing.assert_close(found[marked >= 0], wanted[marked >= 0], rtol=1e-4, atol=1e-5)


def test_kinds_of_many_threads_are_their_own() -> None:
    start, kinds = threading.Barrier(16), [None] * 16

    def work(index: int) -> None:
        start.wait()
        kinds[index] = mask_kind.kind_for(None, lf.Window(900 + index, 1), True)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, found in enumerate(kinds):
        assert found.pattern == lf.Window(900 + index, 1)


def test_exports_of_one_process_do_not_meet() -> None:
    """A second export, and one after an eager call: no symbol of the first is kept."""
    model, ids = families.build("BERT", lf_attention="window(4, 4)"), _ids(24)
    mask = torch.ones_like(ids)

    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            found: Tensor = self.model(input_ids=ids, attention_mask=mask)[0]
            return found

    length = torch.export.Dim("length", min=2, max=30)
    for _ in range(2):
        First()(ids, mask)
        program = torch.export.export(First(), (ids, mask), dynamic_shapes=({1: length}, {1: length}))
        other = _ids(17)
        found = program.module()(other, torch.ones_like(other))
        torch.testing.assert_close(found, First()(other, torch.ones_like(other)))


def test_a_converted_model_writes_as_its_source_does() -> None:
    import transformers

    import lf_huggingface

    config = transformers.BartConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=37,
        decoder_ffn_dim=37,
        max_position_embeddings=64,
    )
    short = transformers.BartForConditionalGeneration(config).eval()
    short.generation_config.num_beams, short.generation_config.max_length = 3, 17
    long = lf_huggingface.convert(short, 128, 32)
    assert long.generation_config.to_dict() == short.generation_config.to_dict()
    assert long.generation_config is not short.generation_config


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("Data2VecTextModel", {"pad_token_id": 1}),
        ("XmodModel", {"pad_token_id": 1, "default_language": "en_XX"}),
        ("RobertaModel", {"pad_token_id": 3}),
        ("BertModel", {}),
    ],
)
def test_positions_that_start_elsewhere(kind: str, config: dict[str, Any]) -> None:
    """With `keep_class` all of the promised length runs, and short inputs give what they gave."""
    import transformers

    import lf_huggingface
    from lf_huggingface.conversion import verify

    made = getattr(transformers, kind)
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    short = made(made.config_class(**sizes, intermediate_size=37, max_position_embeddings=66, **config))
    long = lf_huggingface.convert(short, 200, 32, keep_class=True)
    assert verify.check(short, long) < 1e-5
    assert long(torch.randint(5, 60, (1, 200)))[0].shape[1] == 200


@pytest.mark.parametrize("family", ["Mistral", "ModernBERT"])
def test_windows_of_its_own_are_not_replaced(family: str) -> None:
    import lf_huggingface
    from lf_huggingface.errors import ConversionError

    with pytest.raises(ConversionError, match="model: one without windows of its own wanted"):
        lf_huggingface.convert(families.build(family), 512, 16, keep_class=True)


MAKERS = [zoo.longformer, zoo.led, zoo.big_bird, zoo.bigbird_pegasus, zoo.pegasus_x, zoo.longt5]


@pytest.mark.parametrize("make", MAKERS)
def test_hidden_states_survive_the_patch(make: Any) -> None:
    model, ids = make().eval(), zoo.tokens(2, 64)
    read = model.get_encoder() if model.config.is_encoder_decoder else model
    with torch.no_grad():
        wanted = read(ids, output_hidden_states=True).hidden_states
        with lf.patch(model):
            found = read(ids, output_hidden_states=True).hidden_states
    assert len(found) == len(wanted) > 1
    for got, like in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, like, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", MAKERS)
def test_the_class_of_a_patched_module_makes_one_of_transformers(make: Any, tmp_path: Path) -> None:
    import transformers

    from lf_huggingface import auto_patch

    model, ids = make(), zoo.tokens(1, 64)
    with lf.patch(model):
        parts = [x for x in model.modules() if isinstance(x, transformers.PreTrainedModel)]
        for part in parts:
            made = type(part)(part.config).eval()
            assert type(made).__module__.startswith("transformers.")
            assert type(made).__name__ == type(part).__name__
            made.load_state_dict(part.state_dict())
            if not part.config.is_encoder_decoder and "Decoder" not in type(part).__name__:
                torch.testing.assert_close(made(ids)[0], part(ids)[0], atol=2e-5, rtol=1e-4)
        whole = parts[0]
        whole.save_pretrained(tmp_path)
        words = {"decoder_input_ids": ids[:, :5]} if whole.config.is_encoder_decoder else {}
        read = type(whole).from_pretrained(tmp_path).eval()
        torch.testing.assert_close(read(ids, **words)[0], whole(ids, **words)[0], atol=2e-5, rtol=1e-4)
        with auto_patch():
            assert lf.Patch.of(type(whole)(whole.config))


@pytest.mark.parametrize("make", MAKERS)
def test_hooks_of_accelerate_and_undo(make: Any) -> None:
    import accelerate

    model, ids = make(), zoo.tokens(1, 64)
    words = {"decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        wanted = model(ids, **words)[0]
        patch = lf.patch(model)
        model = accelerate.dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
        torch.testing.assert_close(model(ids, **words)[0], wanted, atol=2e-5, rtol=1e-4)
        patch.undo()
        assert torch.equal(model(ids, **words)[0], wanted)
        accelerate.hooks.remove_hook_from_submodules(model)
        assert torch.equal(model(ids, **words)[0], wanted)


@pytest.mark.parametrize("make", MAKERS)
def test_what_transformers_keeps_by_class(make: Any) -> None:
    from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

    model = make()
    kept = {path: _CAN_RECORD_REGISTRY.get(str(type(x))) for path, x in model.named_modules()}
    names = {path: type(x).__name__ for path, x in model.named_modules()}
    with lf.patch(model):
        assert {path: _CAN_RECORD_REGISTRY.get(str(type(x))) for path, x in model.named_modules()} == kept
        assert {path: type(x).__name__ for path, x in model.named_modules()} == names


def test_a_crop_beyond_the_start() -> None:
    import lf_huggingface

    model = families.build("Mistral", lf_attention="window(20, 0)")
    cache = lf_huggingface.WindowCache(model.config)
    model(_ids(), past_key_values=cache)
    with pytest.raises(
        lf.UnsupportedError, match=r"crop: at most the 12 tokens that were seen wanted, got 13"
    ):
        cache.crop(-13)
