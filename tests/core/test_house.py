"""The house rules that imports must keep, and that these tests can fail."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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

# Lower layers first. A module imports from its own layer's left or from layers above it in this list.
LAYERS = (
    ("errors", "integers", "optional", "constants"),
    ("spans",),
    ("bands",),
    ("blockmap", "disjoint"),
    ("interchange",),
    ("pattern",),
    ("predicate", "terms"),
    ("grammar", "sparsity"),
    ("notation", "schedules", "conventions", "picture", "problem", "dropout", "measure"),
    ("backend",),
    ("dense", "taps"),
    ("globals", "registry", "backends", "measured"),
    ("selection",),
    ("ops",),
    ("checks",),
    ("patching", "upstream"),
    ("api",),
    ("__init__",),
    ("testing", "cli", "demo"),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(source: str) -> set[str]:
    """Parts of lf_backend that a module imports, those for type checkers apart."""
    found, todo = set(), [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        todo.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lf_backend":
            below = (node.module or "").split(".")[1:]
            found |= {below[0]} if below else {alias.name for alias in node.names}
    return found


def upward(part: str, source: str) -> set[str]:
    """Imports that point up: to a layer above the part's own."""
    return {name for name in imports(source) if LEVEL.get(name, LEVEL["__init__"]) > LEVEL[part]}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    assert upward(part_of(path), path.read_text("utf8")) == set()


def test_imports_that_point_up_are_seen() -> None:
    assert upward("bands", "from lf_backend import ops\nfrom lf_backend.errors import LFError") == {"ops"}
    assert upward("bands", "if TYPE_CHECKING:\n    from lf_backend.ops import x") == set()


def test_backends_do_not_import_each_other() -> None:
    folder = ROOT / "backends"
    names = {path.name.removesuffix(".py") for path in folder.iterdir() if not path.name.startswith("_")}
    for path in folder.rglob("*.py"):
        own = path.relative_to(folder).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lf_backend.backends."):
                other = (node.module or "").split(".")[2]
                assert other == own or other not in names, f"{path} imports {other}"


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
