"""Dump files for messages that cannot be kept at the broker."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pprint import pformat
from tempfile import mkstemp
from typing import IO, Any

from greenconn.exceptions import error_text

__all__ = ["emergency_dump_state"]

logger = logging.getLogger("greenconn.dump")


def emergency_dump_state(
    state: Any,
    open_file: Callable[[str, str], IO[Any]] = open,
    dump: Callable[..., Any] | None = None,
    stderr: IO[str] | None = None,
) -> str:
    """Write *state* to a new temporary file that only this user may read, and return its path.

    Arguments:
        open_file: called as ``open_file(path, mode)``.
        dump: called as ``dump(state, file, protocol=0)`` with a text file; None pickles into a
            binary one.
        stderr: where the path is written to; None logs it.
    """
    descriptor, path = mkstemp()
    os.close(descriptor)
    _report(f"EMERGENCY DUMP STATE TO FILE -> {path} <-", stderr)
    with open_file(path, "wb" if dump is None else "w") as file:
        try:
            (dump or pickle.dump)(state, file, protocol=0)
        except Exception as exc:
            _report(
                f"Cannot pickle state. Falling back to pformat. ({error_text(exc, repr)})", stderr
            )
            _rewind(file)
            text = pformat(state)
            try:
                file.write(text.encode())
            except TypeError:  # a text file
                file.write(text)
    return path


def _rewind(file: IO[Any]) -> None:
    try:
        file.seek(0)
        file.truncate()
    except (OSError, ValueError):
        # What was written in part stays before the text.
        with suppress(OSError, ValueError):
            file.seek(0, os.SEEK_END)


def _report(text: str, stderr: IO[str] | None) -> None:
    if stderr is None:
        logger.error("%s", text)
    else:
        print(text, file=stderr)
