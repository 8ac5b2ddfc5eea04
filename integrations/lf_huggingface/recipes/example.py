"""One example as the model sees it: its text, its global tokens, the picture of its pattern."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

import lf_backend as lf

CELLS = 48


def show(batch: dict[str, Any], tokenizer: Any, config: Any, folder: Path, console: Console) -> None:
    """Print the first row of a batch; global tokens stand out, and [[ ]] is around them without colours.

    Args:
        batch: inputs of a model.
        config: of its encoder, which says the window.
        folder: where the picture is written too.
    """
    ids = batch["input_ids"][0]
    mask = batch["attention_mask"][0] if "attention_mask" in batch else torch.ones_like(ids)
    length = int(mask.sum())
    marked = batch["global_attention_mask"][0] if "global_attention_mask" in batch else torch.zeros_like(ids)
    marked = marked[:length].bool()
    text, inside = Text(), False
    for token, is_global in zip(
        tokenizer.convert_ids_to_tokens(ids[:length].tolist()), marked.tolist(), strict=True
    ):
        if is_global != inside:
            text.append("[[" if is_global else "]] ", "bold yellow")
        text.append(tokenizer.convert_tokens_to_string([token]), "bold yellow" if is_global else "")
        inside = is_global
    if inside:
        text.append("]]", "bold yellow")
    console.print(text, soft_wrap=True)
    pattern = pattern_of(config)
    positions = marked.nonzero()[:, 0].tolist()
    console.print(f"{length} tokens, {len(positions)} of them global; {pattern}", markup=False)
    if positions:
        pattern = pattern | lf.Global(*positions)
    drawn = lf.draw(pattern, length, cells=CELLS)
    console.print("\n".join(str(drawn).splitlines()[1:]), markup=False, highlight=False, soft_wrap=True)
    if find_spec("matplotlib") is not None:
        drawn.save(folder / "example.png")


def pattern_of(config: Any) -> Any:
    """The window of an encoder's first layer, from its config."""
    if (own := getattr(config, "lf_attention", None)) is not None:
        found = own[0] if isinstance(own, list) else own
        return lf.parse(found) if isinstance(found, str) else lf.from_dict(found)
    window: Any = getattr(config, "attention_window", None) or getattr(config, "local_attention", 512)
    return lf.conventions.huggingface(window[0] if isinstance(window, list) else window)
