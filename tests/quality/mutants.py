"""Change one thing in a module, run the module's own unit tests, and see whether they notice.

Run it as ``python -m tests.quality.mutants [--seed N] [--count N] [PATH ...]``.  It takes a sample
of all changes to the modules below the paths, makes them one at a time, and lists those that
survive.  The tests of ``greenconn/<room>/<module>.py`` are ``tests/unit/<room>/test_<module>.py``
and ``test_<module>_*.py``.

A change swaps an operator, changes a number, turns a condition around, returns None, or removes a
statement.  No file is changed: the process that runs the tests loads this module as a plug-in of pytest,
and compiles the changed module in place of the one on the disk.  Limits at the top of a module, texts,
annotations, protocols and assertions (also ``raise AssertionError``, where no program comes) are left
alone, and so are the defaults of arguments that a function accepts for their name and never reads, as
``nowait``.  Programs that a test starts run the module as it is.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
ROOMS: Final = ("greenconn/wire", "greenconn/green", "greenconn/broker")
#: What is to be changed in this process: the path of a module and the number of a change.
MUTANT: Final = "GREENCONN_MUTANT"
#: Parts of the changes that must be noticed.
ENOUGH: Final = 0.9

_SWAPPED: Final[dict[type[ast.AST], type[Any]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
}
_REMOVED: Final = (ast.AugAssign, ast.Delete, ast.Raise, ast.Continue, ast.Break)
#: What holds no behaviour, or none that a test could see.
_LEFT_ALONE: Final = frozenset({"annotation", "returns", "decorator_list", "type_params", "bases"})
#: Who asks for truth would see no difference to None.
_NOTHING: Final = frozenset({"return", "return None", "return False"})
_DEFINITIONS: Final = (ast.ClassDef, ast.FunctionDef)


@dataclass(frozen=True)
class Change:
    """One change to a tree, not made yet.

    Attributes:
        text: says what it does.
        make: makes it.
    """

    line: int
    text: str
    make: Callable[[], None]


@dataclass(frozen=True)
class Mutant:
    """One change to a module, by its number."""

    path: Path
    number: int
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def changes(tree: ast.Module) -> Iterator[Change]:
    """Yield the changes to a module, always in the same order."""
    for node in tree.body:
        if isinstance(node, _DEFINITIONS):
            yield from _within(node)


def _within(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.JoinedStr) or _is_assertion(node) or _is_protocol(node):
        return
    yield from _of(node)
    unread = _unread_defaults(node) if isinstance(node, ast.FunctionDef) else []
    for name, value in ast.iter_fields(node):
        if name in _LEFT_ALONE:
            continue
        for number, each in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(each, ast.AST):
                continue
            if isinstance(value, list) and isinstance(each, ast.stmt) and _may_go(each):
                yield _removal(value, number, each)
            if isinstance(each, ast.arguments):
                for default in _defaults(each).values():
                    if default not in unread:
                        yield from _within(default)
            else:
                yield from _within(each)


def _is_assertion(node: ast.AST) -> bool:
    """Return whether *node* says what is always so."""
    return isinstance(node, ast.Assert) or (
        isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and _text(node.exc.func) == "AssertionError"
    )


def _defaults(arguments: ast.arguments) -> dict[str, ast.expr]:
    """Return the defaults of arguments by their names."""
    by_position = [*arguments.posonlyargs, *arguments.args]
    first = len(by_position) - len(arguments.defaults)
    pairs = [
        *zip(by_position[first:], arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return {each.arg: default for each, default in pairs if default is not None}


def _unread_defaults(function: ast.FunctionDef) -> list[ast.expr]:
    """Return the defaults of those arguments that a function never reads."""
    names = {
        node.id for each in function.body for node in ast.walk(each) if isinstance(node, ast.Name)
    }
    return [each for name, each in _defaults(function.args).items() if name not in names]


def _is_protocol(node: ast.AST) -> bool:
    """Return whether *node* only says what others have."""
    return isinstance(node, ast.ClassDef) and any(
        _text(base).partition("[")[0] == "Protocol" for base in node.bases
    )


def _of(node: Any) -> Iterator[Change]:
    """Yield the changes to one node itself."""
    text = _text(node)
    if isinstance(node, ast.Compare):
        for number, old in enumerate(node.ops):
            new = _SWAPPED[type(old)]()
            label = f"{_name(old)} becomes {_name(new)}: {text}"
            yield Change(node.lineno, label, partial(_put, node.ops, number, new))
    elif isinstance(node, (ast.BoolOp, ast.BinOp, ast.AugAssign)) and type(node.op) in _SWAPPED:
        other = _SWAPPED[type(node.op)]()
        label = f"{_name(node.op)} becomes {_name(other)}: {text}"
        yield Change(node.lineno, label, lambda: setattr(node, "op", other))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield _negation(node, "operand")
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        if not isinstance(node.test, (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Constant)):
            yield _negation(node, "test")
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        value = not node.value if isinstance(node.value, bool) else node.value + 1
        label = f"{node.value!r} becomes {value!r}"
        yield Change(node.lineno, label, lambda: setattr(node, "value", value))
    elif isinstance(node, ast.Return) and _text(node) not in _NOTHING:
        none = ast.copy_location(ast.Constant(None), node)
        yield Change(node.lineno, f"returns None: {text}", lambda: setattr(node, "value", none))


def _may_go(node: ast.stmt) -> bool:
    if _is_assertion(node):
        return False
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        is_local = all(isinstance(each, (ast.Name, ast.Tuple)) for each in targets)
        return not is_local and node.value is not None
    return isinstance(node, _REMOVED)


def _removal(body: list[Any], number: int, node: ast.stmt) -> Change:
    nothing = ast.copy_location(ast.Pass(), node)
    return Change(node.lineno, f"is removed: {_text(node)}", lambda: _put(body, number, nothing))


def _negation(node: Any, name: str) -> Change:
    inner = getattr(node, name)
    turned = ast.copy_location(ast.UnaryOp(ast.Not(), inner), inner)
    return Change(
        node.lineno, f"is turned around: {_text(inner)}", lambda: setattr(node, name, turned)
    )


def _put(items: list[Any], number: int, item: ast.AST) -> None:
    items[number] = item


def _name(operator: ast.AST) -> str:
    return type(operator).__name__


def _text(node: ast.AST) -> str:
    """Return the first line of the source of a node."""
    is_code = isinstance(node, (ast.stmt, ast.expr))
    return ast.unparse(node).partition("\n")[0] if is_code else ""


def mutants_of(path: Path) -> list[Mutant]:
    """Return all that can be done to a module."""
    tree = ast.parse((ROOT / path).read_bytes())
    return [Mutant(path, number, each.line, each.text) for number, each in enumerate(changes(tree))]


def own_tests(path: Path) -> list[Path]:
    """Return the test files of a module."""
    room = ROOT.joinpath("tests", "unit", *path.parts[1:-1])
    own = room / f"test_{path.stem}.py"
    further = sorted(room.glob(f"test_{path.stem}_*.py"))
    others = {f"test_{each.stem}" for each in (ROOT / path).parent.glob(f"{path.stem}_*.py")}
    return [
        each.relative_to(ROOT)
        for each in (own, *further)
        if each.exists() and each.stem not in others
    ]


def modules_below(paths: Sequence[str]) -> list[Path]:
    """Return the modules at or below *paths* that hold any code."""
    found = []
    for each in paths:
        path = (ROOT / each).resolve()
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        found += [file.relative_to(ROOT) for file in files]
    return [path for path in found if mutants_of(path)]


# -- in the process that runs the tests


class _Loader(SourceFileLoader):
    """Loads a module with one change."""

    number = 0

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(self.get_data(self.path))
        list(changes(tree))[self.number].make()
        code: CodeType = compile(
            ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True
        )
        return code


class _Finder(MetaPathFinder):
    """Finds one module for that loader.

    Arguments:
        mutant: the path of the module and the number of the change, with a colon between them.
    """

    def __init__(self, mutant: str) -> None:
        path, _, number = mutant.partition(":")
        self.name = ".".join(Path(path).with_suffix("").parts)
        self.number = int(number)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return where the module is."""
        if fullname != self.name:
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = loader = _Loader(fullname, spec.origin)
        loader.number = self.number
        return spec


if MUTANT in os.environ:
    sys.meta_path.insert(0, _Finder(os.environ[MUTANT]))


# -- in the process that chooses


def run(files: Sequence[Path], mutant: Mutant | None, timeout: float | None) -> int | None:
    """Run tests, and return pytest's exit code; None: they took too long."""
    environment = dict(os.environ)
    if mutant is not None:
        environment[MUTANT] = f"{mutant.path}:{mutant.number}"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-p", __spec__.name, *map(str, files)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if mutant is None and process.returncode:
        print(output.decode(errors="replace"))
    return process.returncode


def main() -> int:
    """Try a sample; return 1 if too many survive, or if a module has no tests of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.quality.mutants", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the sample")
    parser.add_argument("--count", type=int, default=100, help="changes to try")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for the tests of one")
    parser.add_argument("paths", nargs="*", default=ROOMS, help="modules or folders")
    options = parser.parse_args()
    modules = modules_below(options.paths)
    untested = [path for path in modules if not own_tests(path)]
    for path in untested:
        print(f"{path} has no tests of its own")
    known = [each for path in modules if own_tests(path) for each in mutants_of(path)]
    chosen = random.Random(options.seed).sample(known, min(options.count, len(known)))
    print(f"{len(chosen)} of {len(known):,} changes, seed {options.seed}")
    if not chosen:  # without a file, pytest would run all tests
        return 1
    files = {file: None for each in chosen for file in own_tests(each.path)}
    if run(list(files), None, None):
        print("The tests fail without any change.")
        return 2
    survivors = []
    for number, each in enumerate(chosen, 1):
        code = run(own_tests(each.path), each, options.timeout)
        how = {0: "SURVIVES", None: "killed (too long)"}.get(code, "killed")
        print(f"{number:4} {how:9} {each}", flush=True)
        if code == 0:
            survivors.append(each)
    killed = len(chosen) - len(survivors)
    print(f"{killed} of {len(chosen)} were noticed ({killed / max(len(chosen), 1):.0%})")
    for each in survivors:
        print(f"  {each}")
    return int(bool(untested) or killed < ENOUGH * len(chosen))


if __name__ == "__main__":
    sys.exit(main())
