"""Room on the disk that is kept for the day on which it is full.

To take a message out of a SQLite file, its log must be written, and the log must go into the file: both
need room.  So a file of some size lies beside it.  When the disk is full, it is removed, the log is
written into the file, and messages can be claimed and settled; new ones are refused until there is so
much room that the reserve can be made again.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Final

__all__ = ["SUFFIX", "Reserve"]

#: Behind the path of the file.
SUFFIX: Final = "-reserve"
#: Where the system cannot reserve, so much is written at once.
CHUNK: Final = 1024 * 1024
#: The disk, or what the user may have of it, is full.
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Reserve:
    """The reserve of one file, shared by all processes.  Used in its thread only.

    Arguments:
        path: of the SQLite file.
        size: bytes; 0 keeps none.
    """

    def __init__(self, path: str, size: int) -> None:
        self._path = path + SUFFIX
        self._size = size

    def ensure(self) -> bool:
        """Return whether there is one, made now if there is room for it twice.

        Where none is wanted, or none can be made although there is room, the disk counts as not full.
        """
        return not self._size or os.path.exists(self._path) or self._make()

    def remove(self) -> bool:
        """Make room; return whether there was a reserve."""
        try:
            os.unlink(self._path)
        except OSError:
            return False
        return True

    def _make(self) -> bool:
        folder = os.path.dirname(self._path)
        try:
            found = os.statvfs(folder)
            if found.f_bavail * found.f_frsize < 2 * self._size:
                return False
            self._write(f"{self._path}-{os.getpid()}")
        except OSError as exc:
            if exc.errno in _FULL:
                return False
            self._size = 0  # a limit of the process, most likely: it would be the same each time
        return True

    def _write(self, path: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(descriptor, 0, self._size)
                else:
                    for start in range(0, self._size, CHUNK):
                        os.write(descriptor, bytes(min(CHUNK, self._size - start)))
            finally:
                os.close(descriptor)
            os.rename(path, self._path)
        except BaseException:
            with suppress(OSError):
                os.unlink(path)
            raise
