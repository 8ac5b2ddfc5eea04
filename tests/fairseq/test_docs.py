"""The commands and the Python of docs/fairseq.md run, in its order."""

import re
from pathlib import Path

from tests.fairseq.commands import TINY, USER_DIR, binarised, run, sizes, words

PAGE = (Path(__file__).parents[2] / "docs" / "fairseq.md").read_text("utf8")


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    binarised(tmp_path).rename("data-bin")
    stock = "--task language_modeling --arch transformer_lm --tokens-per-sample 64 --sample-break-mode none"
    run(
        "train",
        "data-bin",
        *words(stock),
        *sizes("decoder"),
        *TINY,
        *words("--max-update 1 --save-dir stock"),
    )
    names = {"__name__": "page"}
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert [kind for kind, _ in blocks] == ["sh", "python", "python", "python"]
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "docs/fairseq.md", "exec"), names)
            continue
        text = block.replace("\\\n", " ").replace("$(python -m lf_fairseq)", str(USER_DIR))
        for command in text.strip().split("\n"):
            tool, *arguments = words(command)
            run(tool.removeprefix("fairseq-"), *arguments)
    common = f"--user-dir {USER_DIR} --task masked_lm_marked --arch roberta_base_lf --criterion masked_lm"
    common += " --sample-break-mode none --tokens-per-sample 64 --max-positions 64 --max-update 2"
    pattern = ["--attention-pattern", "window(2, 2)", "--save-dir", "marked"]
    log = run("train", "data-bin", *words(common), *pattern, *sizes("encoder"), *TINY)
    assert "num_updates 2" in log and "task: MarkedTask" in log


def test_the_pages_options_are_there():
    from lf_fairseq.archs import options

    for name in {*options.ENCODER, *options.TWO_SIDED}:
        assert f"| `{options.option(name)}` |" in PAGE
