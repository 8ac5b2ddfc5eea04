"""The commands and their options. What they print is made elsewhere; here is how they are called.

Bad input ends with one line on stderr and exit code 2, never with a traceback. `demo` ends with 1 if the
two models disagree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from lf_backend.cli import arguments, hypothetical_call, info
from lf_backend.errors import LFError
from lf_backend.pattern.picture import draw as draw_pattern

BAD_INPUT, DISAGREEMENT = 2, 1


class _Group(TyperGroup):
    """Turns the library's errors, and files that cannot be used, into a line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LFError as error:
            text = str(error)
        except OSError as error:
            text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        Console(stderr=True, soft_wrap=True).print(Text(f"error: {text}", style="red"))
        raise typer.Exit(BAD_INPUT)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Exact Longformer-style sparse attention: look at it, ask about it, see it work.",
)

PatternText = Annotated[
    str, typer.Argument(help='What sees what, e.g. "window(256, 256) | global(0)", or a .json file.')
]
Length = Annotated[int, typer.Option(help="Number of queries.", min=1)]
Keys = Annotated[int | None, typer.Option(help="Number of keys, if more than queries.", min=1)]


@app.command("info")
def info_command() -> None:
    """Show what is installed here, and what the backends can do."""
    info.show(Console())


@app.command()
def explain(
    pattern: PatternText,
    length: Length = 4096,
    keys: Keys = None,
    batch: Annotated[int, typer.Option(help="Batch size.", min=0)] = 1,
    heads: Annotated[int, typer.Option(help="Query heads.", min=1)] = 12,
    kv_heads: Annotated[int | None, typer.Option(help="Key heads, if fewer.", min=1)] = None,
    head_dim: Annotated[int, typer.Option(help="Width of a head.", min=1)] = 64,
    dtype: Annotated[
        hypothetical_call.Dtype, typer.Option(help="Of q, k and v.")
    ] = hypothetical_call.Dtype.FLOAT32,
    needs: Annotated[
        list[hypothetical_call.Need] | None,
        typer.Option("--with", help="What else the call has; may be repeated."),
    ] = None,
    machine: Annotated[
        str, typer.Option(help='Where it would run: "cpu", "cuda", or one nobody has here, "cuda:9.0".')
    ] = "",
    package: Annotated[
        list[str] | None, typer.Option(help="What is installed there, NAME=VERSION; may be repeated.")
    ] = None,
) -> None:
    """Say which backend would run a call, and why not the others. Computes nothing."""
    call = hypothetical_call.HypotheticalCall(
        arguments.pattern(pattern),
        length,
        keys or length,
        batch,
        heads,
        kv_heads or heads,
        head_dim,
        dtype,
        frozenset(needs or ()),
    )
    typer.echo(str(hypothetical_call.ask(call, hypothetical_call.machine(machine, package or []))))


@app.command()
def draw(
    pattern: PatternText,
    length: Length = 24,
    keys: Keys = None,
    heads: Annotated[int | None, typer.Option(help="Number of heads.", min=1)] = None,
    cells: Annotated[int, typer.Option(help="At most so many cells in a row.", min=1)] = 32,
    ascii: Annotated[bool, typer.Option("--ascii", help="Nothing but ASCII.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write a PNG file instead (needs matplotlib).")] = None,
) -> None:
    """Draw a pattern, or one per layer, as text or as a PNG file."""
    console = Console(soft_wrap=True)
    layers = arguments.layers(pattern)
    if out is not None and len(layers) > 1:
        raise LFError(f"--out: one pattern wanted, {pattern} has {len(layers)} layers")
    for numbers, layer in arguments.runs(layers):
        picture = draw_pattern(layer, length, keys, heads, cells)
        if out is not None:
            picture.save(out)
            console.print(f"written: {out}", highlight=False)
            continue
        if len(layers) > 1:
            console.print(f"{numbers}:", style="bold", highlight=False)
        console.print(arguments.coloured(picture, ascii))


@app.command()
def demo(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Text to read, UTF-8; by default the language reference that comes with Python.",
            exists=True,
            dir_okay=False,
            readable=True,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="A Longformer or LED checkpoint with its tokenizer; by default seeded weights.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    max_length: Annotated[int, typer.Option(help="The longest input, in tokens.", min=2)] = 4096,
    window: Annotated[int, typer.Option(help="attention_window of the seeded model.", min=2)] = 512,
    layers: Annotated[int, typer.Option(help="Layers of the seeded model.", min=1)] = 2,
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
    device: Annotated[str, typer.Option(help='"cpu" or "cuda".')] = "cpu",
    plot: Annotated[Path | None, typer.Option(help="Where to save the plot. [default: lf-demo.png]")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON; what people read goes to stderr.")
    ] = False,
) -> None:
    """A Longformer of Hugging Face reads a long text, as it is and through this library."""
    from lf_backend.cli.demo import run  # loads what measures

    request = run.Request(tuple(files or ()), model, max_length, window, layers, seed, device, plot)
    found = run.run(request, Console(stderr=as_json))
    if as_json:
        typer.echo(found.as_json())
    if not found.agree:
        raise typer.Exit(DISAGREEMENT)
