"""A transport of one's own: queues are folders, messages are files.

Run it as ``python own_transport.py [URL]``; the URL is ``folder:///path``, by default a new
temporary folder.

A virtual transport says how to put a message into a queue and how to get one; exchanges,
acknowledgements, prefetch, consumers and everything above come from ``greenconn.transport.virtual``.
The same class works with kombu when it imports ``kombu.transport.virtual``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from queue import Empty
from typing import Any
from uuid import uuid4

import gevent
from gevent.event import Event

import greenconn
from greenconn.transport import TRANSPORT_ALIASES, virtual


class Channel(virtual.Channel):
    """Keeps each queue in a folder.  A file is renamed when it is taken: only one can do that."""

    def _folder(self, queue: str) -> Path:
        root = Path("/") / (self.connection.client.virtual_host or "")
        return root / queue.replace("/", "%2F")

    def _files(self, queue: str) -> list[Path]:
        folder = self._folder(queue)
        return sorted(folder.glob("*.json")) if folder.is_dir() else []

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        self._folder(queue).mkdir(parents=True, exist_ok=True)

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return self._folder(queue).is_dir()

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        name = self._folder(queue) / f"{time.time_ns():020}-{uuid4()}"
        name.with_suffix(".new").write_text(json.dumps(message))
        name.with_suffix(".new").rename(name.with_suffix(".json"))  # seen only when it is whole

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        for file in self._files(queue):
            taken = file.with_suffix(f".taken-by-{os.getpid()}")
            try:
                file.rename(taken)
            except FileNotFoundError:
                continue  # another process was quicker
            message = json.loads(taken.read_text())
            taken.unlink()
            return message
        raise Empty

    def _size(self, queue: str) -> int:
        return len(self._files(queue))

    def _purge(self, queue: str) -> int:
        files = self._files(queue)
        for file in files:
            file.unlink(missing_ok=True)
        return len(files)

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self._purge(queue)
        if self._folder(queue).is_dir():
            self._folder(queue).rmdir()


class Transport(virtual.Transport):
    """``folder:///path``."""

    Channel = Channel
    driver_type = "folder"
    driver_name = "folder"
    #: Seconds between two looks at empty queues.
    polling_interval = 0.1


TRANSPORT_ALIASES["folder"] = f"{__name__}:Transport"


def main(url: str) -> None:
    """Send some letters through a folder."""
    greenconn.configure(url)
    read = []
    all_read = Event()

    def read_letter(body: Any, message: Any) -> None:
        read.append(body["number"])
        if len(read) == 100:
            all_read.set()

    reader = greenconn.spawn_consumer("letters", read_letter, concurrency=5)
    writers = [gevent.spawn(greenconn.publish, "letters", {"number": n}) for n in range(100)]
    gevent.joinall(writers, raise_error=True)
    if not all_read.wait(60):
        raise SystemExit(f"only {len(read)} of 100 letters came")
    reader.stop()
    print(f"{len(set(read))} letters went through {url}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else f"folder://{tempfile.mkdtemp()}")
