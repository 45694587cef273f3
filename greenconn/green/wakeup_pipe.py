"""Wake-ups between processes of one machine through a named pipe, without polling.

A named pipe has the permissions of a file, needs no port, has no limit on its path, and fails at once
when its reader has gone; Linux and macOS both have it.  The words written to it are hints: they are lost
when the reader is stuck for so long that the pipe is full.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from gevent import get_hub

from greenconn.green.hub import weakly

#: Bytes that one look takes.
CHUNK: Final = 65536
#: Bytes that are written in one piece on every system (POSIX).
ATOMIC: Final = 512


class WakeupPipe:
    """A named pipe that this process reads.

    Arguments:
        path: of the pipe; it is made, and must not be there.
        on_words: called in the hub with the words of a read; never switches.  If it is a method, its
            object is not kept alive.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: str, on_words: Callable[[list[bytes]], object]) -> None:
        self.path = path
        self._on_words = weakly(on_words)
        self._rest = b""
        os.mkfifo(path, 0o600)
        try:
            self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                # While there is a writer, there is no end of file.
                self._writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except BaseException:
                os.close(self._reader)
                raise
        except BaseException:
            os.unlink(path)
            raise
        # As a socket does, it keeps a program alive that waits for nothing else.
        self._watcher: Any = get_hub().loop.io(self._reader, 1)
        self._watcher.start(self._read)

    def close(self) -> None:
        """Remove it.  Never switches.  A second call does nothing."""
        if self._watcher is not None:
            self.forget()
            with suppress(OSError):
                os.unlink(self.path)

    def forget(self) -> None:
        """Drop it without closing the parent's pipe.  Never switches."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            # First: a watcher of a closed descriptor would end the process.
            watcher.close()
            os.close(self._reader)
            os.close(self._writer)

    def _read(self) -> None:
        # In the hub.
        try:
            chunk = os.read(self._reader, CHUNK)
        except BlockingIOError:
            return
        *words, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > ATOMIC:
            self._rest = b""  # not written by this library
        self._on_words(words)


def wake_process(path: str, words: list[bytes]) -> bool:
    """Write *words* to the pipe of another process; False if no process reads it.  Never switches."""
    try:
        writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        return exc.errno not in (errno.ENXIO, errno.ENOENT)
    try:
        if not stat.S_ISFIFO(os.fstat(writer).st_mode):
            return False  # what is not a pipe is not written to
        piece = b""
        for word in words:
            if len(piece) + len(word) + 1 > ATOMIC:
                os.write(writer, piece)
                piece = b""
            piece += word + b"\n"
        os.write(writer, piece)
    except BlockingIOError:
        pass  # it is full of words that say as much
    except BrokenPipeError:
        return False
    finally:
        os.close(writer)
    return True
