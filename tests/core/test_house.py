"""The house rules that no linter knows, and that these tests can fail. Which room may import which is in
pyproject.toml, and `tox run -e lint` holds it."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import lf_backend
from lf_backend._graphs import constant_in_graphs

ROOT = Path(lf_backend.__file__).parent


def test_no_one_outside_a_backend_compares_its_name() -> None:
    for path in ROOT.rglob("*.py"):
        if "backends" in path.parts or "testing" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.Compare):
                words = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
                assert not words & {"blocked", "reference"}, f"{path}: {ast.unparse(node)}"


def loaded_by(code: str) -> set[str]:
    """Modules that a fresh process has loaded after the code, those of `import torch` alone apart."""
    script = f"import sys, torch; before = set(sys.modules); {code}; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def foreign(modules: set[str]) -> set[str]:
    """Modules that are neither ours nor Python's own."""
    ours = {"lf_backend"} | sys.stdlib_module_names
    return {name for name in modules if name.partition(".")[0] not in ours}


def test_import_loads_nothing_but_torch_and_touches_no_gpu() -> None:
    code = "import lf_backend; lf_backend.backends(); assert not torch.cuda.is_initialized()"
    assert foreign(loaded_by(code)) == set()


def test_a_heavy_import_would_be_seen() -> None:
    assert "torch._dynamo" in foreign(loaded_by("import torch._dynamo"))
    assert "hypothesis" in foreign(loaded_by("import hypothesis"))


def test_all_is_what_the_package_says() -> None:
    public = {name for name in vars(lf_backend) if not name.startswith("_")}
    modules = {name for name in public if inspect.ismodule(getattr(lf_backend, name))}
    assert sorted(public - modules | {"conventions", "schedules", "sparsity"}) == sorted(lf_backend.__all__)
    assert sorted(lf_backend.__all__) == lf_backend.__all__


def test_marks_a_function_as_torch_compiler_does() -> None:
    script = "import torch; f = torch.compiler.assume_constant_result(lambda: 0); print(*vars(f))"
    marks = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert marks.stdout.split() == list(vars(constant_in_graphs(lambda: 0)))


NOUN_CLAUSES = ("What ", "Of ", "The same", "As ", "Not ", "By ", "Where ", "Who ", "Which ")


def test_docstrings_are_sentences_or_name_a_thing() -> None:
    """None begins with a noun clause, in the core and in the integrations."""
    for path in (*ROOT.rglob("*.py"), *(ROOT.parent / "integrations").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                assert not text.startswith(NOUN_CLAUSES), f"{path}: {text.splitlines()[0]}"
