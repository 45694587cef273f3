"""The runner's exit code and closing lines when tests fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import nightly

ROOT = Path(__file__).resolve().parents[2]
PLANTED = "tests/unit/planted_failures.py"
DEADLINE = 170.0


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run planted tests."""
    return subprocess.run(
        [sys.executable, "-m", "tests", "--plain-only", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


@pytest.mark.programs
@pytest.mark.full
def test_a_failure_fails_the_run() -> None:
    done = run(f"{PLANTED}::test_that_is_broken")
    assert done.returncode == 1, done.stdout
    assert f"FAILED plain:     {PLANTED}::test_that_is_broken\n        " in done.stdout
    said_again = done.stdout.rpartition("FAILED plain:")[2]
    assert "Failed: broken" in said_again
    assert re.search(r"called at \S+planted_failures.py:\d+\n", said_again)
    assert re.search(r"planted_failures.py:\d+ about to break\n", said_again)
    assert done.stdout.endswith("\n0 passed, 1 failed, 0 skipped\n")


@pytest.mark.programs
@pytest.mark.full
def test_reasons_of_skips_are_counted() -> None:
    done = run(f"{PLANTED}::test_that_is_skipped")
    assert done.stdout.count("planted reason") == 1
    assert "\nskipped    2: planted reason\n" in done.stdout


def test_a_nightly_step_that_fails_fails_the_run_after_all_have_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def step(code: int, text: str) -> tuple[str, ...]:
        return (sys.executable, "-c", f"print({text!r}); raise SystemExit({code})")

    steps = {"broken": step(3, "plain:     1 passed, 2 failed"), "whole": step(0, "all 7 held")}
    monkeypatch.setattr(nightly, "STEPS", steps)
    monkeypatch.setattr(nightly, "LOGS", ROOT / "build" / tmp_path.name)
    try:
        assert nightly.main([]) == 1
        assert nightly.main(["whole"]) == 0
        assert nightly.main(["nosuch"]) == 2
    finally:
        shutil.rmtree(nightly.LOGS)
    out, err = capsys.readouterr()
    assert re.search(r"^broken +FAILED +\d+  1 passed, 2 failed$", out, re.MULTILINE)
    assert len(re.findall(r"^whole +passed +\d+  all 7 held$", out, re.MULTILINE)) == 2
    assert "no step 'nosuch'; known: broken, whole" in err
