"""What must not be in the package's sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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


def calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_runs_what_it_reads(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    found = {(name, each) for each in calls(ast.parse(path.read_text())) if each in FORBIDDEN}
    assert found <= ALLOWED


def test_the_exceptions_are_still_needed() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), each)
        for path in SOURCES
        for each in calls(ast.parse(path.read_text()))
    }
    assert found >= ALLOWED
