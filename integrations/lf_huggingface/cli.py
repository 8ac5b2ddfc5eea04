"""`python -m lf_huggingface convert SRC DST`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lf_backend.errors import LFError

BAD_INPUT = 2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Hugging Face checkpoints and lf_backend.",
)


@app.callback()
def main() -> None:
    """Hugging Face checkpoints and lf_backend."""


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint's folder.", exists=True, file_okay=False)],
    target: Annotated[Path, typer.Argument(help="Where to write; a new or empty folder.")],
    max_length: Annotated[int, typer.Option(help="Positions of the new model.", min=1)] = 4096,
    attention_window: Annotated[int, typer.Option(help="Keys of a window, half on each side.", min=2)] = 512,
    keep_class: Annotated[
        bool, typer.Option("--keep-class", help='The same class, with attn_implementation="lf".')
    ] = False,
    shard_size: Annotated[str, typer.Option(help="Largest file of weights.")] = "5GB",
) -> None:
    """Make a checkpoint long: RoBERTa, BERT and the like into Longformer, BART into LED."""
    try:
        text = _convert(source, target, max_length, attention_window, keep_class, shard_size)
    except (LFError, OSError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(BAD_INPUT) from None
    typer.echo(text)


def _convert(
    source: Path, target: Path, max_length: int, attention_window: int, keep_class: bool, shard_size: str
) -> str:
    """Convert, write, read back and verify; what was found, as text."""
    import transformers

    from lf_huggingface.conversion import verify
    from lf_huggingface.conversion.convert import convert
    from lf_huggingface.errors import ConversionError

    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConversionError(f"target: a new or empty folder wanted, got {target}")
    config = transformers.AutoConfig.from_pretrained(source)
    names = config.architectures or []
    if len(names) != 1 or not hasattr(transformers, names[0]):
        raise ConversionError(f"architectures: one class of transformers in config.json wanted, got {names}")
    short = getattr(transformers, names[0]).from_pretrained(source)
    tokenizer = None
    if (source / "tokenizer_config.json").exists():
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    made: Any = convert(short, max_length, attention_window, keep_class=keep_class, tokenizer=tokenizer)
    made.save_pretrained(target, max_shard_size=shard_size)
    if tokenizer is not None:
        tokenizer.save_pretrained(target)
    implementation = {"attn_implementation": "lf"} if keep_class else {}
    read, info = type(made).from_pretrained(target, output_loading_info=True, **implementation)
    if wrong := {name: keys for name, keys in info.items() if keys}:
        raise ConversionError(f"target: a checkpoint that loads whole wanted, got {wrong}")
    found = verify.check(short, read)
    return (
        f"{type(short).__name__} -> {type(made).__name__}: {max_length} positions, window "
        f"{attention_window}\n"
        f"{'with' if tokenizer else 'without'} tokenizer; read back: nothing missing, nothing unexpected\n"
        f"difference to the source on short inputs: {found:.1e} of the largest value"
    )
