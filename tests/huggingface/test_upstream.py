"""The command that runs transformers' own tests with our attention in sdpa's place, on sources of our own."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.upstream.__main__ import main

ROOT = Path(__file__).parents[2]
TESTS = """
import torch, transformers
from ...common import SIZES

def _answer():
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES)
    model = transformers.BertModel._from_config(config, attn_implementation="sdpa").eval()
    return model, torch.arange(9)[None]

def test_the_same():
    model, ids = _answer()
    want = model(ids)[0]
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(ids)[0], want, atol=1e-5, rtol=0)

def test_whose():
    home = transformers.AttentionInterface._global_mapping["sdpa"].__module__
    assert home.startswith("transformers"), home

def test_that_never_passes():
    assert False
"""
COMMON = (
    "SIZES = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, "
    "intermediate_size=8)\n"
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    models = tmp_path / "transformers" / "tests" / "models"
    (models / "tiny").mkdir(parents=True)
    for folder in (models.parent, models, models / "tiny"):
        (folder / "__init__.py").touch()
    (models.parent / "common.py").write_text(COMMON)
    (models / "tiny" / "test_modeling_tiny.py").write_text(TESTS)
    return tmp_path / "transformers"


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.upstream", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("packed", [False, True])
def test_what_differs_is_printed(sources: Path, packed: bool) -> None:
    given = sources
    if packed:
        given = sources.parent / "transformers.tar.gz"
        with tarfile.open(given, "w:gz") as archive:
            archive.add(sources, "transformers-5")
    done = _run(given, "tiny", "--", "-p", "no:cacheprovider")
    lines = done.stdout.splitlines()
    assert lines[0] == "3 tests ran stock, 2 passed; of these 1 fail with ours", done.stderr
    assert lines[1].strip() == "tests.models.tiny.test_modeling_tiny::test_whose"
    assert "lf_huggingface.interface.attention" in lines[2]
    assert len(lines) == 3 and done.returncode == 1


def test_what_are_no_sources(tmp_path: Path, sources: Path) -> None:
    with pytest.raises(SystemExit, match="checkout: sources of transformers with tests/models wanted"):
        main([str(tmp_path)])
    with pytest.raises(SystemExit, match=r"models: folders of .* wanted, got"):
        main([str(sources), "none"])
