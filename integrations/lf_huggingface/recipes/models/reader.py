"""An encoder and a head as one model of transformers: whichever encoder it is, from_pretrained finds both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes.models import encoders


class ReaderConfig(PreTrainedConfig):
    """The encoder's config as a dict, and what the head is told."""

    model_type = "lf_reader"
    encoder: dict[str, Any] | None = None
    head: dict[str, Any] | None = None


class Reader(PreTrainedModel):
    """An encoder under a head; subclasses add the head in `add_head` and use `self.encode`."""

    config_class = ReaderConfig
    base_model_prefix = "reader"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: ReaderConfig, encoder: Any = None) -> None:
        super().__init__(config)
        if encoder is None:
            settings = dict(config.encoder or {})
            made = AutoConfig.for_model(settings.pop("model_type"), **settings)
            auto: Any = AutoModel
            encoder = auto.from_config(made, **encoders.attention(made), **_without_pooler(made))
        self.encoder = encoders.sparse(encoder)
        encoders.check_takes_globals(self.encoder)
        self.add_head(int(self.encoder.config.hidden_size), dict(config.head or {}))
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def on(cls, encoder: Any, **head: Any) -> Any:
        """A model on an encoder, with a new head."""
        return cls(ReaderConfig(encoder=encoder.config.to_dict(), head=head), encoder)

    @classmethod
    def trained(cls, folder: Path) -> Any:
        """A saved model, whole.

        Raises:
            RecipeError: tensors are missing.
        """
        loading: Any = cls.from_pretrained
        model, info = loading(folder, output_loading_info=True, local_files_only=True)
        if info["missing_keys"]:
            raise RecipeError(
                f"a checkpoint of {cls.__name__} wanted, {folder} lacks {sorted(info['missing_keys'])[:3]}"
            )
        return model

    def add_head(self, width: int, settings: dict[str, Any]) -> None:
        """Make the head's modules for hidden states of a width."""
        raise NotImplementedError

    def encode(self, input_ids: Tensor, attention_mask: Tensor, global_attention_mask: Tensor) -> Tensor:
        """Hidden states [rows, N, width] of ids [rows, N]; masks are 1 at tokens, and at global tokens."""
        found = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, global_attention_mask=global_attention_mask
        )
        return found.last_hidden_state

    def save_pretrained(self, *arguments: Any, state_dict: Any = None, **settings: Any) -> None:
        """See transformers; a tensor that modules share is written under each of its names, as it is read."""
        found = dict(self.state_dict() if state_dict is None else state_dict)
        written: set[int] = set()
        for name, x in found.items():
            if x.data_ptr() in written:
                found[name] = x.clone()
            written.add(x.data_ptr())
        saving: Any = super().save_pretrained
        saving(*arguments, state_dict=found, **settings)

    def get_input_embeddings(self) -> Any:
        return self.encoder.get_input_embeddings()

    def resize_token_embeddings(self, *arguments: Any, **settings: Any) -> Any:
        """See transformers; the encoder's config, which is saved, follows."""
        found = self.encoder.resize_token_embeddings(*arguments, **settings)
        self.config.encoder = self.encoder.config.to_dict()
        return found

    def set_input_embeddings(self, value: Any) -> None:
        self.encoder.set_input_embeddings(value)

    def _init_weights(self, module: nn.Module) -> None:
        """New layers of the head start as the encoder's did."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=getattr(self.encoder.config, "initializer_range", 0.02))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def load_encoder(folder: Any) -> Any:
    """The encoder of a long checkpoint, without a pooler, which no head here uses.

    Raises:
        RecipeError: tensors of the encoder are missing.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return encoders.load(AutoModel, folder, **_without_pooler(config))


def _without_pooler(config: Any) -> dict[str, Any]:
    return (
        {"add_pooling_layer": False}
        if config.model_type in ("longformer", "bert", "roberta", "big_bird")
        else {}
    )


AutoConfig.register(ReaderConfig.model_type, ReaderConfig)
