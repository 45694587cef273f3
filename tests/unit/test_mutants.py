"""The changes that are made to modules, to see whether their tests notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.quality import mutants
from tests.quality.mutants import ROOT, main, mutants_of

pytestmark = pytest.mark.programs


def test_a_change_is_in_the_process_that_tests() -> None:
    path = Path("greenconn/green/supervisor.py")
    (number,) = (
        each.number for each in mutants_of(path) if each.text == "returns None: return new"
    )
    program = (
        "import os; from enum import Enum\n"
        f"os.environ['GREENCONN_MUTANT'] = '{path}:{number}'\n"
        "import tests.quality.mutants\n"
        "from greenconn.green.supervisor import moved\n"
        "State = Enum('State', 'A B')\n"
        "print(moved(State.A, State.B, {State.A: {State.B}}, 'it'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("None\n", "")


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mutants", *arguments])
    return main()


@pytest.mark.full
def test_a_sample(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--seed", "1", "--count", "1", "greenconn/green/deadline.py")
    assert run_main(monkeypatch, *arguments) == 0
    assert "1 of 1 were noticed (100%)" in capsys.readouterr().out


def test_a_module_without_tests_has_no_others_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutants, "own_tests", lambda path: [])
    monkeypatch.setattr(mutants, "run", lambda *arguments: pytest.fail("tests were run"))
    assert run_main(monkeypatch, "greenconn/green/deadline.py") == 1
    assert "greenconn/green/deadline.py has no tests of its own" in capsys.readouterr().out
