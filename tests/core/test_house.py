"""The house rules that no linter knows, and that these tests can fail. Which room may import which is in
pyproject.toml, and `tox run -e lint` holds it."""

import ast
import subprocess
import sys
from pathlib import Path

import lf_backend

ROOT = Path(lf_backend.__file__).parent
OPTIONAL = {
    "triton",
    "xformers",
    "transformers",
    "fairseq",
    "matplotlib",
    "typer",
    "rich",
    "lark",
    "hypothesis",
}


def test_no_one_outside_a_backend_compares_its_name() -> None:
    for path in ROOT.rglob("*.py"):
        if "backends" in path.parts or "testing" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.Compare):
                words = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
                assert not words & {"blocked", "reference"}, f"{path}: {ast.unparse(node)}"


def loaded_by(code: str) -> set[str]:
    script = f"import sys; {code}; print(' '.join(m for m in sys.modules if '.' not in m))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_import_is_light_and_touches_no_gpu() -> None:
    code = "import lf_backend, torch; lf_backend.backends(); assert not torch.cuda.is_initialized()"
    by_torch = loaded_by("import torch._dynamo")  # triton, where it is installed
    assert not (loaded_by(code) - by_torch) & OPTIONAL


def test_a_heavy_import_would_be_seen() -> None:
    assert "hypothesis" in loaded_by("import hypothesis")
