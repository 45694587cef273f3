"""The source files of a program, and the first of them that changes."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Final

import gevent

#: Seconds between two looks at the files.
INTERVAL: Final = 0.5
#: Where packages are installed: they do not change while one works on a program.
_INSTALLED: Final = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


class SourceFiles:
    """The files of all modules that are loaded, but for the standard library and installed packages.

    Arguments:
        further: files that are looked at besides.
    """

    def __init__(self, further: tuple[str, ...] = ()) -> None:
        self._further = further
        self._seen: dict[str, float] = {}
        self._changed()

    def wait_change(self) -> str:
        """Return the path of the first file that changes after this was made.  May switch."""
        while (path := self._changed()) is None:
            gevent.sleep(INTERVAL)
        return path

    def _changed(self) -> str | None:
        for path in {*self._loaded(), *self._further}:
            try:
                changed_at = os.stat(path).st_mtime
            except OSError:
                continue  # it is just being written, or gone
            if self._seen.setdefault(path, changed_at) != changed_at:
                self._seen[path] = changed_at
                return path
        return None

    def _loaded(self) -> list[str]:
        standard = os.path.dirname(os.__file__)
        return [
            path
            for module in list(sys.modules.values())
            if (path := getattr(module, "__file__", None))
            and not path.startswith(standard)
            and not any(each in path for each in _INSTALLED)
        ]


def files_of_error(error: BaseException) -> tuple[str, ...]:
    """Return the files in which *error* was raised, or in which the syntax is wrong."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        files.append(error.filename)
    return tuple(files)
