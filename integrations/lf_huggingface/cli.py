"""`python -m lf_huggingface convert SRC DST`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lf_backend.errors import LFError
from lf_huggingface.errors import ConversionError

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


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A checkpoint's folder.", exists=True, file_okay=False)],
    target: Annotated[Path, typer.Argument(help="The ONNX file to write.", dir_okay=False)],
) -> None:
    """Write a checkpoint as an ONNX file of any batch and length, and check it in onnxruntime."""
    try:
        text = _export(source, target)
    except (LFError, OSError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(BAD_INPUT) from None
    typer.echo(text)


def _export(source: Path, target: Path) -> str:
    """Load, export and compare; what was found, as text."""
    from lf_huggingface.onnx_file import LENGTHS
    from lf_huggingface.onnx_file import export as write
    from lf_huggingface.patch.adapter import is_known

    kind = _class_of(source)
    model = kind.from_pretrained(source)
    if not is_known(model):
        if not model._can_set_attn_implementation():
            raise ConversionError(f"model: one that this library can run wanted, got {kind.__name__}")
        model.set_attn_implementation("lf")
    found = write(model, target)
    lengths = ", ".join(f"{batch} x {length}" for batch, length in LENGTHS)
    return (
        f"{kind.__name__} -> {target}, any batch and length\n"
        f"difference in onnxruntime, at {lengths}: {found:.1e} of the largest value"
    )


def _class_of(source: Path) -> Any:
    """The class of a checkpoint's model."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(source)
    names = config.architectures or []
    if len(names) != 1 or not hasattr(transformers, names[0]):
        raise ConversionError(f"architectures: one class of transformers in config.json wanted, got {names}")
    return getattr(transformers, names[0])


def _convert(
    source: Path, target: Path, max_length: int, attention_window: int, keep_class: bool, shard_size: str
) -> str:
    """Convert, write, read back and verify; what was found, as text."""
    import transformers

    from lf_huggingface.conversion import verify
    from lf_huggingface.conversion.convert import convert

    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConversionError(f"target: a new or empty folder wanted, got {target}")
    kind = _class_of(source)
    short = kind.from_pretrained(source)
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
