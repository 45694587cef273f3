"""What must not be in the package's sources."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import greenconn

pytestmark = pytest.mark.programs

PACKAGE = Path(greenconn.__file__).resolve().parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

#: Calls that run code, or what an untrusted peer sent as code.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__"),
    *("os.system", "os.popen", "subprocess.run", "subprocess.Popen", "subprocess.call"),
    *("marshal.loads", "marshal.load", "shelve.open", "tempfile.mktemp"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all"),
    *("pickle.loads", "pickle.load", "pickle.Unpickler"),
    *("ssl.wrap_socket", "ssl._create_unverified_context"),
    *("random.seed", "gevent.monkey.patch_all", "monkey.patch_all", "patch_all"),
}
#: Where one of them may be.
ALLOWED = {
    ("serialization.py", "pickle.load"),
    # A process that imports the application which the user names.
    ("cli/doctor.py", "subprocess.run"),
    # The process of a program that asks for it, before anything of that program is imported.
    ("cli/run.py", "monkey.patch_all"),
    ("torture.py", "random.seed"),  # as it was before, at the end
    # Copies of the command that the user gave.
    ("service/processes.py", "subprocess.Popen"),
}


#: Their last parts: most calls need no closer look.
NAMES = {each.rpartition(".")[2] for each in FORBIDDEN}


@cache
def forbidden_calls(path: Path) -> set[tuple[str, str]]:
    """Return a source's name with each forbidden call in it."""
    name = str(path.relative_to(PACKAGE))
    functions = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    near = [each for each in functions if getattr(each, "attr", getattr(each, "id", "")) in NAMES]
    return {(name, each) for each in map(ast.unparse, near) if each in FORBIDDEN}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_runs_what_it_reads(path: Path) -> None:
    assert forbidden_calls(path) <= ALLOWED


def test_the_exceptions_are_still_needed() -> None:
    assert set().union(*map(forbidden_calls, SOURCES)) >= ALLOWED
