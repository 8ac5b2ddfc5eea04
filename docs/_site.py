"""What the site adds to the pages: files from outside this folder, and the table of backends as registered.

Pages read well where they lie, with links like `../benchmarks/...`; the site has those files beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from lf_backend import Feature
from lf_backend.dispatch import registry
from lf_backend.dispatch.priorities import PLACES

ROOT = Path(__file__).parents[1]
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to outside of their folder."""
    for name, source in PAGES.items():
        files.append(File.generated(config, name, content=_moved((ROOT / source).read_text("utf8"))))
    for path in sorted((ROOT / "benchmarks" / "results").iterdir()):
        files.append(File.generated(config, f"benchmarks/results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at the files where the site has them."""
    text = _moved(markdown)
    return f"{text}\n\n{_backends()}" if page.file.src_path == "backends.md" else text


def _moved(text: str) -> str:
    for name, source in PAGES.items():
        text = text.replace(f"](../{source}", f"]({name}").replace(f"]({source}", f"]({name}")
    return text.replace("](../benchmarks/", "](benchmarks/").replace("](docs/", "](")


def _backends() -> str:
    """Return a table of what each backend says that it can do."""
    backends = registry.working()
    lines = ["## Features", "", f"| | {' | '.join(backends)} |", "|---" * (len(backends) + 1) + "|"]
    for feature in Feature:
        marks = ("yes" if feature in entry.capabilities.features else "" for entry in backends.values())
        lines.append(f"| {feature.value} | {' | '.join(marks)} |")
    lines += ["", "## Order until measured", ""]
    lines += [f"- `{name}` ({place.priority}): {place.because}" for name, place in PLACES.items()]
    return "\n".join(lines)
