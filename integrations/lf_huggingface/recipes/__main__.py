"""`python -m lf_huggingface.recipes TASK [train | evaluate | predict] --model DIR --data DIR --out DIR`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console

from lf_backend.errors import LFError
from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes import folder as run_folder
from lf_huggingface.recipes import options, processes, workflow
from lf_huggingface.recipes.tasks import TASKS

ACTIONS = ("train", "evaluate", "predict")
BAD_INPUT = 2
OF_THE_MACHINE = frozenset(
    {"out", "input", "device_batch", "workers", "context_parallel"}
)  # what evaluate and predict may say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; bad input ends with its message and a status."""
    transformers.logging.set_verbosity_error()  # what a checkpoint lacks is an error here
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(words, Console(quiet=not processes.state().is_main_process))
    except (LFError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return BAD_INPUT
    return 0


def _run(words: list[str], console: Console) -> None:
    if not words or words[0] not in TASKS:
        raise RecipeError(f"TASK: one of {', '.join(TASKS)} wanted, got {words[0] if words else 'nothing'}")
    task, rest = TASKS[words[0]], words[1:]
    action = rest.pop(0) if rest and not rest[0].startswith("-") else "train"
    if action not in ACTIONS:
        raise RecipeError(f"the action after {task.name}: one of {', '.join(ACTIONS)} wanted, got {action}")
    make: Any = transformers.HfArgumentParser
    parser = make(task.kind, prog=f"python -m lf_huggingface.recipes {task.name}")
    [given] = parser.parse_args_into_dataclasses(rest)
    if given.out is None:
        given.out = Path(f"{task.name}-{'trial' if given.trial else given.size}")
    if given.input is not None and action == "train":
        raise RecipeError("--input: with evaluate and predict alone")
    if action != "train" and not given.trial:
        given = _as_trained(given, task)
    given = options.settled(given, task.sizes)
    with processes.state().main_process_first():
        run = _workflow(task, given, console)
    if processes.state().is_main_process:
        run_folder.note_command(run.out, words)
    if given.show:
        run.show()
        return
    console.print(_act(run, action, given))


def _workflow(task: Any, given: Any, console: Console) -> workflow.Workflow:
    if given.trial:
        return workflow.trial(task, given, console)
    if given.model is None or given.data is None:
        raise RecipeError("--model, --data: both wanted, or --trial to see the recipe run")
    return workflow.Workflow(task(given), given.model, given.data, console)


def _act(run: workflow.Workflow, action: str, given: options.Options) -> dict[str, Any]:
    if given.trial and action == "train":
        if processes.state().is_main_process:
            run.show()
        metrics = run.train()
        run.evaluate(None)
        if run.task.has_predictions:
            run.predict(None)
        return metrics
    if action == "train":
        return run.train()
    return run.evaluate(given.input) if action == "evaluate" else run.predict(given.input)


def _as_trained(given: Any, task: Any) -> Any:
    """The options of the run in --out: evaluate and predict take them from there."""
    owner = run_folder.owner(given.out)
    if owner["task"] != task.name:
        raise RecipeError(f"--out: a run of {task.name} wanted, {given.out} is one of {owner['task']}")
    untouched = dataclasses.asdict(task.kind())
    asked = {name for name, value in dataclasses.asdict(given).items() if value != untouched[name]}
    if settled_before := sorted(asked - OF_THE_MACHINE):
        raise RecipeError(
            f"--{settled_before[0]}: not with evaluate and predict, which take it from the run in {given.out}"
        )
    made = task.kind(**{name: value for name, value in owner.items() if name != "task"})
    made.model, made.data = Path(made.model), Path(made.data)
    for name in OF_THE_MACHINE:
        setattr(made, name, getattr(given, name))
    return made


if __name__ == "__main__":
    sys.exit(main())
