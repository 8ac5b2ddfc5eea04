"""The tasks, by the word on the command line."""

from __future__ import annotations

from typing import Any

from lf_huggingface.recipes.task import Task
from lf_huggingface.recipes.tasks.classify import Classify
from lf_huggingface.recipes.tasks.hotpotqa import HotpotQA
from lf_huggingface.recipes.tasks.mlm import MLM
from lf_huggingface.recipes.tasks.summarize import Summarize
from lf_huggingface.recipes.tasks.triviaqa import TriviaQA
from lf_huggingface.recipes.tasks.wikihop import WikiHop

TASKS: dict[str, type[Task[Any]]] = {
    task.name: task for task in (MLM, WikiHop, TriviaQA, HotpotQA, Classify, Summarize)
}
