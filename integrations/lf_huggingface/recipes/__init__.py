"""The paper's document tasks, from files as distributed to a table: `python -m lf_huggingface.recipes TASK`.

    python -m lf_huggingface.recipes wikihop --model roberta-base --data qangaroo_v1.1/wikihop --out wikihop
    python -m lf_huggingface.recipes wikihop evaluate --out wikihop
    python -m lf_huggingface.recipes wikihop predict --input questions.json --out wikihop
    python -m lf_huggingface.recipes wikihop --trial --out trial

__main__.py   the command: which task, which action
options.py    what every task can be asked, and what a size of the paper settles
workflow.py   train, evaluate, predict, show: the four actions, stage by stage
folder.py     the folder of a run: whose it is, its commands, its results, its last whole checkpoint
processes.py  which process this is, of how many
training.py   transformers' Trainer with an order of examples that resumes, and evaluation by a task
task.py       what a task says of itself
tasks/        one file a task: MLM, WikiHop, TriviaQA, HotpotQA, classification, summarisation
formats/      one file a format: the published files to records, every mistake by file and record
data/         token ids in a cache on disk, order of examples, batches, normalised text
models/       any encoder from a folder, converted and sparse; the heads; new tokens
metrics/      the official metrics, from their definitions
trial/        small data in each format and a small model
curves.py, example.py   pictures of a training and of one example
"""
