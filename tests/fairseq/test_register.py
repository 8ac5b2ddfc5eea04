"""Import, registration, and a fairseq that is missing, broken or too old."""

import runpy
import subprocess
import sys
from pathlib import Path

import fairseq
import pytest
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY

import lf_fairseq
from lf_backend.errors import LFError
from lf_fairseq import upstream

HERE = Path(lf_fairseq.__file__).parent


def run(code, *paths, **variables):
    import os

    path = os.pathsep.join([*map(str, paths), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **variables},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light_and_order_does_not_matter(tmp_path):
    """One process: nothing of fairseq at first; a stand-in for it is registered with when it comes."""
    package = tmp_path / "fairseq"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '0.12.3'\n")
    code = """
import sys, types
import lf_fairseq
assert "fairseq" not in sys.modules and "omegaconf" not in sys.modules
for name in ("archs.transformers", "archs.longformer_lm"):
    sys.modules[f"lf_fairseq.{name}"] = types.ModuleType(name)
came = []
from lf_fairseq import upstream
checked = upstream.check_version
upstream.check_version = lambda version: came.append(version) or checked(version)
import fairseq
assert came == ["0.12.3"] and not any("_Waiting" in type(f).__name__ for f in sys.meta_path)
from lf_fairseq.register import when_fairseq_is_imported
when_fairseq_is_imported()
assert came == ["0.12.3"] * 2
"""
    run(code, tmp_path)


def test_models_are_registered_once():
    before = dict(MODEL_REGISTRY), dict(ARCH_MODEL_REGISTRY)
    lf_fairseq.register()
    assert before == (MODEL_REGISTRY, ARCH_MODEL_REGISTRY)
    for name in ("transformer_lm_lf", "transformer_lf", "bart_lf", "roberta_lf"):
        assert name in MODEL_REGISTRY and name in ARCH_MODEL_REGISTRY
    for name in (
        "transformer_lm_gpt2_small_lf",
        "transformer_iwslt_de_en_lf",
        "bart_base_lf",
        "roberta_large_lf",
    ):
        assert name in ARCH_MODEL_REGISTRY


def test_every_architecture_of_the_four_models_is_there():
    models = {MODEL_REGISTRY[name]: name for name in ("transformer_lm", "transformer", "bart", "roberta")}
    stock = {name for name, model in ARCH_MODEL_REGISTRY.items() if model in models}
    assert len(stock) > 30 and {f"{name}_lf" for name in stock} <= set(ARCH_MODEL_REGISTRY)


def test_the_folder_is_printed(capsys):
    runpy.run_module("lf_fairseq", run_name="__main__")
    assert capsys.readouterr().out.strip() == str(HERE)


def test_the_user_dir_is_this_package(tmp_path):
    from argparse import Namespace

    from fairseq.utils import import_user_module

    import_user_module(Namespace(user_dir=str(HERE)))
    import_user_module(Namespace(user_dir=str(HERE)))
    assert sys.modules["lf_fairseq"] is lf_fairseq
    same_name = tmp_path / "lf_fairseq"
    same_name.symlink_to(HERE)
    with pytest.raises(ImportError, match=r"lf_fairseq.*is not globally unique"):  # fairseq's own words
        import_user_module(Namespace(user_dir=str(same_name)))
    other_name = tmp_path / "another"
    other_name.symlink_to(HERE)
    with pytest.raises(
        LFError, match=r"--user-dir: the folder lf_fairseq by its own name wanted, got .*another as an"
    ):
        import_user_module(Namespace(user_dir=str(other_name)))
    sys.path.remove(str(tmp_path))


def test_the_version_is_checked():
    upstream.check_version(fairseq.__version__)
    upstream.check_version("1.0.0a0")
    with pytest.raises(
        upstream.FairseqError,
        match=r"fairseq >= 0.12 wanted, got 0.10.2; python -m pip install fairseq-fixed",
    ):
        upstream.check_version("0.10.2")


def test_a_fairseq_that_cannot_be_imported(monkeypatch):
    def broken(name):
        raise ValueError("mutable default <class 'CommonConfig'> for field common is not allowed")

    monkeypatch.setattr(upstream, "import_module", broken)
    with pytest.raises(
        upstream.FairseqError, match=r"ValueError: mutable default .*0.12.2 cannot from Python 3.11 on; py"
    ):
        lf_fairseq.register()


@pytest.mark.parametrize(
    ("missing", "message"), [("fairseq", "installed wanted, got none"), ("hydra", "can be imported")]
)
def test_a_fairseq_that_is_missing(monkeypatch, missing, message):
    def none(name):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(upstream, "import_module", none)
    with pytest.raises(upstream.FairseqError, match=f"{message}.*python -m pip install fairseq-fixed"):
        lf_fairseq.register()


def test_an_old_fairseq_still_imports(tmp_path):
    (tmp_path / "fairseq").mkdir()
    (tmp_path / "fairseq" / "__init__.py").write_text("__version__ = '0.9.0'\n")
    code = """
import warnings, lf_fairseq
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fairseq
assert fairseq.__version__ == "0.9.0"
print(*[w.message for w in caught])
"""
    assert "lf_fairseq is not registered with fairseq: fairseq >= 0.12 wanted, got 0.9.0" in run(
        code, tmp_path
    )
