"""A newer Python than this system has: a later Debian's, made to run beside this system's programs.

``python -m tests.newer_python`` prints the path of an interpreter, which environments can be made with.
It is unpacked the first time, into the folder of the brokers.  It needs that Debian's C library, so its
loader and its folder of libraries are written into it: what it starts has this system's, as always.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path

from tests.brokers.fetching import NoBroker, cache_folder, make_once, run
from tests.brokers.suite import unpack

MINOR = 14
NAME = f"python3.{MINOR}"
PACKAGES = (NAME, f"{NAME}-venv", "libc6", "patchelf")


def find() -> Path:
    """Return the path of the interpreter, unpacked now if it is not in the cache.  May switch.

    Raises:
        NoBroker: it is not to be had here.
    """
    root = cache_folder(Path(tempfile.gettempdir())) / NAME
    make_once(root, lambda made: _unpack(made, root))
    return root / "usr/bin" / NAME


def _unpack(made: Path, root: Path) -> None:
    """Unpack into *made* what will be at *root*."""
    unpack(made, PACKAGES)
    libraries = Path("usr/lib", f"{platform.machine()}-linux-gnu")
    (loader,) = (made / libraries).glob("ld-linux-*.so.*")
    run_here = [str(loader), "--library-path", str(made / libraries)]
    # An environment's pip comes from a folder of the distribution's.
    for file in (made / "usr/lib" / NAME).glob("_sysconfigdata_*.py"):
        wheels = "/usr/share/python-wheels/"
        file.write_text(file.read_text().replace(f"'{wheels}'", f"'{root}{wheels}'"))
    interpreter = made / "usr/bin" / NAME
    patch = [*run_here, str(made / "usr/bin/patchelf")]
    # In this order: patchelf 0.18 breaks the program in the other.
    run([*patch, "--force-rpath", "--set-rpath", str(root / libraries), str(interpreter)])
    run([*patch, "--set-interpreter", str(root / libraries / loader.name), str(interpreter)])
    run([*run_here, str(interpreter), "-c", "import ctypes, ensurepip, sqlite3, ssl, venv"])


def main() -> int:
    """Print the path; the exit code is 1 where there is none."""
    try:
        print(find())
    except NoBroker as error:
        print(f"no Python 3.{MINOR} here: {error}", file=sys.stderr)
        return 1
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
