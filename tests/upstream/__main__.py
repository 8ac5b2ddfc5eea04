"""Run transformers' own modeling tests, stock and with our attention in sdpa's place; print what differs.

    python -m tests.upstream CHECKOUT bert llama mistral     # tests/models/bert, ...
    python -m tests.upstream CHECKOUT                        # all of them: hours

CHECKOUT is a folder or an archive of transformers' sources, at the version that is installed, with its tests;
what is published as its source distribution has none. Other options, after `--`, are pytest's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).parent
Outcomes = dict[str, str]


def main(arguments: list[str] | None = None) -> int:
    """Return 1 if a test that passes stock does not pass with our attention."""
    given = sys.argv[1:] if arguments is None else arguments
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="folder or .tar.gz of transformers' sources")
    parser.add_argument("models", nargs="*", help="folders of tests/models, all by default")
    asked = parser.parse_args(given[:cut])
    with tempfile.TemporaryDirectory() as scratch:
        root = _root(asked.checkout, Path(scratch))
        files = _files(root, asked.models)
        stock, ours = (
            _outcomes(root, files, given[cut + 1 :], Path(scratch) / f"{name}.xml", plugin)
            for name, plugin in (("stock", ()), ("ours", ("-p", "lf_in_sdpas_place")))
        )
    print(_differences(stock, ours))
    return int(any(stock.get(test) == "" and reason for test, reason in ours.items()))


def _root(checkout: Path, scratch: Path) -> Path:
    """The folder that holds tests/models, unpacked if need be."""
    if checkout.is_file():
        with tarfile.open(checkout) as archive:
            archive.extractall(scratch / "sources", filter="data")
        (checkout,) = (scratch / "sources").iterdir()
    if not (checkout / "tests" / "models").is_dir():
        raise SystemExit(f"checkout: sources of transformers with tests/models wanted, got {checkout}")
    return checkout.resolve()


def _files(root: Path, models: list[str]) -> list[str]:
    folders = [root / "tests" / "models" / name for name in models or ["*"]]
    found = [
        path for folder in folders for path in root.glob(f"{folder.relative_to(root)}/test_modeling_*.py")
    ]
    if not found:
        raise SystemExit(f"models: folders of {root / 'tests' / 'models'} wanted, got {models}")
    return [str(path.relative_to(root)) for path in sorted(found)]


def _outcomes(
    root: Path, files: list[str], options: list[str], report: Path, plugin: tuple[str, ...]
) -> Outcomes:
    """Each test that ran, with why it failed, or nothing."""
    command = [sys.executable, "-m", "pytest", *files, *plugin, "-q", f"--junitxml={report}", *options]
    paths = [str(HERE / "plugin"), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Not ours: neither our warnings, which are errors, nor our options.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTEST_ADDOPTS": ""}
    subprocess.run(command, cwd=root, env=env, stdout=sys.stderr)
    if not report.exists():
        raise SystemExit(f"pytest: a report wanted, got none from {' '.join(command)}")
    found: Outcomes = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        failed = [x for kind in ("failure", "error") for x in case.findall(kind)]
        if case.find("skipped") is None:
            text = (failed[0].get("message") or "").split("\n")[0] or "failed" if failed else ""
            found[f"{case.get('classname')}::{case.get('name')}"] = text
    return found


def _differences(stock: Outcomes, ours: Outcomes) -> str:
    passed = [test for test, reason in stock.items() if not reason]
    worse = [test for test in passed if ours.get(test, "did not run")]
    better = [test for test, reason in stock.items() if reason and not ours.get(test, "did not run")]
    lines = [f"{len(stock)} tests ran stock, {len(passed)} passed; of these {len(worse)} fail with ours"]
    lines += [f"  {test}\n    {ours.get(test, 'did not run')}" for test in worse]
    if better:
        lines += [f"{len(better)} that fail stock pass with ours", *(f"  {test}" for test in better)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
