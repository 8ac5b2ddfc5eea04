"""The paper's character language model, trained and evaluated: `python -m lf_fairseq.recipes.char_lm`.

    python -m lf_fairseq.recipes.char_lm --size laptop                       # all five phases, on any machine
    python -m lf_fairseq.recipes.char_lm --data DIR --size small --phase 1   # one phase, on text8 or enwik8
    python -m lf_fairseq.recipes.char_lm evaluate CHECKPOINT --length 32256 --step 512

A phase that is done is not done again and one that was interrupted continues, so the first command may be
given as often as it takes. Everything is in the folder `--out`: the binarised text, for each phase
fairseq's checkpoints and log, `results.json` and `curves.png`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from lf_backend.errors import LFError
from lf_fairseq import upstream
from lf_fairseq.recipes.phases import LAST_PHASE, SIZES, Run

BAD_INPUT = 2


class SizeName(str, Enum):
    """The values of `--size`; `phases.SIZES` describes each."""

    small = "small"
    large = "large"
    laptop = "laptop"


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, help="The character language model of Longformer."
)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with text8 or enwik8, or their .zip; Python's own sources if not given."),
    ] = None,
    size: Annotated[SizeName, typer.Option(help="Model and training.")] = SizeName.laptop,
    phase: Annotated[
        int | None,
        typer.Option(help=f"One phase, 1 to {LAST_PHASE}; all if not given.", min=1, max=LAST_PHASE),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of results [default: char_lm-SIZE].")] = None,
    seed: Annotated[int, typer.Option(help="Of initial weights, order and dropout.")] = 1,
    sequences: Annotated[
        int | None, typer.Option(help="Of one device at a time; the rest of a batch accumulates.", min=1)
    ] = None,
    devices: Annotated[
        int | None, typer.Option(help="GPUs, 0 for the CPU; all there are if not given.", min=0)
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Half precision with attention in float32, as in the paper.")
    ] = False,
    trial: Annotated[
        int | None,
        typer.Option(
            help="So many updates in every phase and little text to score: tries the command.", min=1
        ),
    ] = None,
) -> None:
    """Train one phase or all five, and evaluate after each."""
    if context.invoked_subcommand is not None:
        _refuse(context)
        return
    chosen = SIZES[size.value] if trial is None else SIZES[size.value].trial(trial)
    folder = out or Path(f"char_lm-{chosen.name}")
    found = torch.cuda.device_count() if devices is None else devices
    run = Run(folder / "data", folder, seed=seed, sequences=sequences, devices=found, half=half)
    numbers = [phase] if phase else list(range(1, LAST_PHASE + 1))

    def work(console: Console) -> None:
        from lf_fairseq.recipes import recipe

        recipe.train(chosen, numbers, data, run, console)

    _reported(work)


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Of any language model that fairseq has trained.")],
    length: Annotated[int, typer.Option(help="Characters of a sequence.", min=1)] = 32_256,
    step: Annotated[int, typer.Option(help="Characters at its end that are scored.", min=1)] = 512,
    data: Annotated[
        Path | None, typer.Option(help="Folder of binarised data; that of its training if not given.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    characters: Annotated[int | None, typer.Option(help="The first ones; all if not given.", min=1)] = None,
    sequences: Annotated[int, typer.Option(help="At a time.", min=1)] = 1,
    pattern: Annotated[
        str | None, typer.Option(help="Another --attention-pattern than the checkpoint's.")
    ] = None,
) -> None:
    """Bits per character with overlapping long sequences; each character is scored exactly once."""
    overrides = {} if pattern is None else {"attention_pattern": pattern}

    def work(console: Console) -> None:
        from lf_fairseq.recipes import evaluation

        with Progress(console=console) as progress:
            model, task = evaluation.load(checkpoint, data, overrides)
            if torch.cuda.is_available():
                model.cuda()
            tokens = evaluation.tokens_of(task, split, characters)
            start = task.dictionary.eos()
            found = evaluation.score(model, tokens, start, length, step, sequences, progress)
        console.print(f"{found.per_character:.4f} bits per character on {found.characters:,} of {split}")

    _reported(work)


def _refuse(context: typer.Context) -> None:
    """Raise for options before a sub-command: they are those of a training."""
    sources = {option: context.get_parameter_source(option) for option in context.params}
    names = [option for option, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given := ", ".join(f"--{name}" for name in names):
        raise typer.BadParameter(
            f"{given}: not with {context.invoked_subcommand}, whose options come after it"
        )


def _reported(work: Callable[[Console], None]) -> None:
    """Do the work; bad input ends with its message and a status."""
    try:
        upstream.fairseq()
        logging.getLogger().setLevel(logging.WARNING)  # one of its modules has asked for DEBUG
        work(Console())
    except LFError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(BAD_INPUT) from None


if __name__ == "__main__":
    logging.captureWarnings(True)
    app(prog_name="python -m lf_fairseq.recipes.char_lm")
