"""The changes that are made to modules, to see whether their tests notice."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.quality.mutants import ROOT, changes, main, mutants_of

pytestmark = pytest.mark.programs

SOURCE = '''
LIMIT = 3


class Queue:
    """Some text."""

    size: int = 0

    def put(self, item: int) -> bool:
        if self.closed or item < LIMIT:
            return False
        self.items.append(item)
        self.size += 1
        name = f"{item + 1}"
        while not self.ready:
            wait("text", 0.5)
        return self.size if item else name

    def get(self, block: bool = True, /, limit: int = 1, *, nowait: bool = False) -> object:
        for each in self.items:
            if block or (lambda left=5: left)() > limit:
                return each
        raise AssertionError("there is always one")


class Sink(Protocol[T]):
    def put(self, item: T, force: bool = False) -> bool: ...
'''


def test_what_is_changed() -> None:
    assert [(each.line, each.text) for each in changes(ast.parse(SOURCE))] == [
        (8, "0 becomes 1"),
        (11, "Or becomes And: self.closed or item < LIMIT"),
        (11, "Lt becomes LtE: item < LIMIT"),
        (12, "False becomes True"),
        (13, "is removed: self.items.append(item)"),
        (14, "is removed: self.size += 1"),
        (14, "Add becomes Sub: self.size += 1"),
        (14, "1 becomes 2"),
        (16, "is turned around: self.ready"),
        (17, "is removed: wait('text', 0.5)"),
        (17, "0.5 becomes 1.5"),
        (18, "returns None: return self.size if item else name"),
        (18, "is turned around: item"),
        # ``nowait`` is not read, and what is raised says what never happens.
        (20, "True becomes False"),
        (20, "1 becomes 2"),
        (22, "Or becomes And: block or (lambda left=5: left)() > limit"),
        (22, "Gt becomes GtE: (lambda left=5: left)() > limit"),
        (22, "5 becomes 6"),
        (23, "returns None: return each"),
    ]


def test_each_is_one_change() -> None:
    plain = ast.unparse(ast.parse(SOURCE))
    changed = set()
    for number, _ in enumerate(changes(ast.parse(SOURCE))):
        tree = ast.parse(SOURCE)
        list(changes(tree))[number].make()
        compile(ast.fix_missing_locations(tree), "changed", "exec")
        changed.add(ast.unparse(tree))
    assert len(changed) == len(list(changes(ast.parse(SOURCE))))
    assert plain not in changed


def test_a_change_is_in_the_process_that_tests() -> None:
    path = Path("greenconn/green/state.py")
    (number,) = (
        each.number for each in mutants_of(path) if each.text == "returns None: return new"
    )
    program = (
        "import os; from enum import Enum\n"
        f"os.environ['GREENCONN_MUTANT'] = '{path}:{number}'\n"
        "import tests.quality.mutants\n"
        "from greenconn.green.state import moved\n"
        "State = Enum('State', 'A B')\n"
        "print(moved(State.A, State.B, {State.A: {State.B}}, 'it'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("None\n", "")


@pytest.mark.full
def test_a_sample(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        sys, "argv", ["mutants", "--seed", "1", "--count", "1", "greenconn/green/state.py"]
    )
    assert main() == 0
    assert "1 of 1 were noticed (100%)" in capsys.readouterr().out
