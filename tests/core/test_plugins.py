"""Installing a third party's backend tests it: two distributions, one good and one broken.

They are installed where only child processes look, so that no other test meets them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[1] / "plugins"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--root-user-action=ignore", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, str(PLUGINS / "good"), str(PLUGINS / "broken")], check=True)
    return target


def run(installed: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def conformance(installed: Path, name: str) -> subprocess.CompletedProcess[str]:
    return run(
        installed, "pytest", "--pyargs", "lf_backend.testing", "-q", "-p", "no:cacheprovider", "-k", name
    )


def test_a_good_plug_in_is_tested_and_passes(installed: Path) -> None:
    done = conformance(installed, "loop")
    assert done.returncode == 0, done.stdout
    passed = int(done.stdout.rsplit(" passed", 1)[0].rsplit(maxsplit=1)[-1])
    assert passed > 20


def test_a_broken_plug_in_fails_its_tests_and_says_why(installed: Path) -> None:
    done = conformance(installed, "broken")
    assert done.returncode == 1
    assert "ImportError: libbroken.so: cannot open shared object file" in done.stdout


def test_both_show_in_info(installed: Path) -> None:
    done = run(installed, "lf_backend", "info")
    assert done.returncode == 0, done.stderr
    assert "loop" in done.stdout and "libbroken.so" in done.stdout
