"""The applications that the files of a directory make, found without an import."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

#: Directories that are looked at, at most, and their depth below the given one.
MOST_FOLDERS: Final = 1000
DEPTH: Final = 3
#: Directories of other things than the program.
_LEFT_OUT: Final = frozenset({"build", "dist", "node_modules", "site-packages", "tests"})


def applications_in(folder: str) -> list[str]:
    """Return the applications that modules in *folder* make at their top level, as ``module:name``."""
    found = []
    for path in _files(folder):
        parts = Path(os.path.relpath(path, folder)).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts and all(map(str.isidentifier, parts)):
            found += [f"{'.'.join(parts)}:{name}" for name in _names_in(path)]
    return found


def _files(folder: str) -> Iterator[str]:
    depth = len(Path(folder).parts)
    for where, folders, files in islice(os.walk(folder), MOST_FOLDERS):
        folders[:] = sorted(
            name
            for name in folders
            if len(Path(where).parts) - depth < DEPTH
            and name[:1] not in ("_", ".")
            and name not in _LEFT_OUT
            and not os.path.exists(os.path.join(where, name, "pyvenv.cfg"))
        )
        yield from (os.path.join(where, name) for name in sorted(files) if name.endswith(".py"))


def _names_in(path: str) -> Iterator[str]:
    """Yield the names to which a module assigns a new ``greenconn.App``."""
    try:
        source = Path(path).read_bytes()
        if b"greenconn" not in source or b"App" not in source:
            return
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        return
    classes: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            classes |= {
                f"{each.asname or each.name}.App" for each in node.names if each.name == "greenconn"
            }
        elif isinstance(node, ast.ImportFrom) and node.module == "greenconn":
            classes |= {each.asname or each.name for each in node.names if each.name == "App"}
        elif (
            isinstance(node, (ast.Assign, ast.AnnAssign))
            and isinstance(node.value, ast.Call)
            and ast.unparse(node.value.func) in classes
        ):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (each.id for each in targets if isinstance(each, ast.Name))
