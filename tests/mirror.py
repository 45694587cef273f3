"""List the modules of the package for which no test file is named.

Run it as ``python -m tests.mirror``.  The tests of ``greenconn/<room>/<module>.py`` are
``tests/unit/<room>/test_<module>.py``, those of a whole package may be
``tests/unit/<room>/test_<package>.py``; over a broker they are
``tests/integration/test_<room>_<module>.py``, with more words behind it where there are several, or
``test_<room>.py``, where the room of a transport has the transport's name.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Final

from tests.quality.mutants import ROOT, own_tests

#: The largest number of modules without a test file: lower it, never raise it.
LIMIT: Final = 85


def modules() -> list[Path]:
    """Return the modules of the package that hold a function."""
    found = sorted((ROOT / "greenconn").rglob("*.py"))
    return [path.relative_to(ROOT) for path in found if _has_code(path)]


def _has_code(path: Path) -> bool:
    return any(isinstance(each, ast.FunctionDef) for each in ast.walk(ast.parse(path.read_bytes())))


def files_of(path: Path) -> list[Path]:
    """Return the test files that are named after a module or its package."""
    rooms = path.parts[1:-1]
    unit, over_brokers = Path("tests", "unit"), Path("tests", "integration")
    whole = f"test_{'_'.join((*rooms, path.stem))}"
    further = sorted((ROOT / over_brokers).glob(f"{whole}_*.py"))
    names = [over_brokers / f"{whole}.py", *(over_brokers / each.name for each in further)]
    if rooms[:1] == ("transport",):
        names.append(over_brokers / f"test_{'_'.join((*rooms[1:], path.stem)).lower()}.py")
    elif rooms:
        names += [over_brokers / f"test_{rooms[-1]}.py"]
        names += [Path("tests", rooms[0], f"test_{path.stem}.py")]
    if len(rooms) == 1:
        names.append(unit / f"test_{rooms[0]}.py")
    return [*own_tests(path), *(each for each in names if (ROOT / each).exists())]


def without_tests() -> list[Path]:
    """Return the modules for which no test file is named."""
    return [path for path in modules() if not files_of(path)]


def main() -> int:
    """List them, the longest first; return 1 if there are more than may be."""
    found = without_tests()
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in found}
    for path in sorted(found, key=lambda path: -lines[path]):
        print(f"{lines[path]:5} {path}")
    print(f"{len(found)} of {len(modules())} modules have no test file of their name")
    return int(len(found) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
