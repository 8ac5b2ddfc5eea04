"""ONNX files of any batch and length agree with their models, in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

import lf_backend as lf
import lf_huggingface
from lf_huggingface.cli import app
from lf_huggingface.errors import ExportError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SMALL: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 37, "pad_token_id": 1, "max_position_embeddings": 258,
}  # fmt: skip


def longformer() -> Any:
    return transformers.LongformerModel(transformers.LongformerConfig(**SMALL, attention_window=8))


def led() -> Any:
    config = transformers.LEDConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=37,
        decoder_ffn_dim=37,
        attention_window=8,
        max_encoder_position_embeddings=256,
        pad_token_id=1,
    )
    return transformers.LEDForConditionalGeneration(config)


def roberta() -> Any:
    config = transformers.RobertaConfig(**{**SMALL, "max_position_embeddings": 66})
    return lf_huggingface.convert(transformers.RobertaModel(config), 256, 8)


def bert() -> Any:
    config = transformers.BertConfig(**SMALL)
    config.lf_attention = "window(4, 4) | global(0)"
    return transformers.AutoModel.from_config(config, attn_implementation="lf")


def modernbert() -> Any:
    config = transformers.ModernBertConfig(**SMALL, local_attention=8, global_attn_every_n_layers=2)
    return transformers.AutoModel.from_config(config, attn_implementation="lf")


def mistral() -> Any:
    config = transformers.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="lf")


@pytest.mark.parametrize("make", [longformer, led, roberta, bert, modernbert, mistral])
def test_a_file_agrees_with_its_model(make: Any, tmp_path: Path) -> None:
    model = make()
    assert lf_huggingface.export(model, tmp_path / "model.onnx") < 2e-6
    assert model.training == (make is not roberta)  # what `convert` gives is in evaluation
    if make is longformer:  # patched while it was exported, and no longer
        assert not any("lf_mark" in vars(module) for module in model.modules())


def test_a_patched_model_stays_patched(tmp_path: Path) -> None:
    model = longformer()
    lf.patch(model, "window(6, 2) | global(3)")
    with pytest.raises(lf.LFError):  # two tokens have no position 3
        lf_huggingface.export(model, tmp_path / "model.onnx")
    assert lf.Patch.of(model)


def test_the_command(tmp_path: Path) -> None:
    mistral().save_pretrained(tmp_path / "source")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "source"), str(tmp_path / "model.onnx")])
    assert done.exit_code == 0, done.output
    assert "MistralForCausalLM -> " in done.output and "of the largest value" in done.output


def test_what_takes_no_tokens(tmp_path: Path) -> None:
    model = transformers.ViTModel(transformers.ViTConfig(hidden_size=32, num_attention_heads=4))
    with pytest.raises(ExportError, match="model: one that takes input_ids wanted, got ViTModel"):
        lf_huggingface.export(model, tmp_path / "model.onnx")


def test_a_traced_longformer_follows_padding() -> None:
    """Traced with an example without padding, as stock it hides the padding of later inputs."""
    model = longformer().eval()
    lf.patch(model)
    ids = torch.randint(5, 60, (2, 24))
    mask = torch.ones_like(ids)

    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.model(ids, attention_mask=mask)[0]
            return found

    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(First(), (ids, mask), check_trace=False)
    other = torch.randint(5, 60, (2, 31))
    padding = torch.ones_like(other)
    padding[0, 20:] = 0
    for given, hidden in ((ids, mask), (other, padding)):
        with torch.no_grad():
            torch.testing.assert_close(traced(given, hidden), First()(given, hidden))
