"""A broker in a plain folder: each queue is a folder, each message is a file.

Run it as ``python folder_broker.py [URL]``; the URL is ``files:///path``, by default a new
temporary folder.

It is a *store*: what ``greenconn.broker`` needs of a broker to do all the rest.  A message is claimed by
a rename, which only one process can do, and stays in the folder until it is settled; a claim that is not
renewed ends with its lease.  So any number of processes may share the folder, and one that is killed
loses nothing.  See "A store of your own" in docs/transports.rst.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import gevent
from gevent.event import Event
from gevent.queue import Queue

import greenconn
from greenconn.broker.link import StoreTransport
from greenconn.broker.port import Claimed, Entry, NoQueue, Settlement, SettleRequest, Store
from greenconn.broker.queues import Declaration
from greenconn.green.deadline import Deadline
from greenconn.jsoncodec import dumps, loads
from greenconn.transport import TRANSPORT_ALIASES

#: Called when there may be something to claim.
Wake = Callable[[str | None], None]
#: Seconds between two looks into empty queues.
POLL = 0.02
NANOSECONDS = 10**9


class File(NamedTuple):
    """The name of a message's file, which says all that a claim has to know; files sort by it.

    Attributes:
        order: 255 - priority, so that higher ones come first.
        stored: nanoseconds since 1970.
        identity: of the message, in all folders.
        due: nanoseconds since 1970, before which it cannot be claimed.
        deliveries: how often it was delivered.
    """

    order: int
    stored: int
    identity: str
    due: int = 0
    deliveries: int = 0

    @classmethod
    def of(cls, name: str) -> File:
        """Read a name."""
        order, stored, identity, due, deliveries = name.split(".")
        return cls(int(order), int(stored), identity, int(due), int(deliveries))

    def __str__(self) -> str:
        return f"{self.order:03}.{self.stored:020}.{self.identity}.{self.due}.{self.deliveries}"


class FolderStore(Store):
    """One link to a folder.  Its calls are short, and block the hub while the disk works.

    Arguments:
        root: the folder.
        lease: seconds without a sign of life after which what a process holds is anybody's.
    """

    #: A claim may wait that long, and looks into its queues meanwhile.
    claim_wait = 1.0

    def __init__(self, client: Any, wake: Wake, root: Path, lease: float) -> None:
        super().__init__(client, wake)
        self.lease = lease
        self._queues = root / "queues"
        self._links = root / "links"
        self._numbers = count()
        self._is_interrupted = Event()

    # -- life

    def open(self, deadline: Deadline) -> None:
        """Make the folders, and say that this link lives."""
        self._queues.mkdir(parents=True, exist_ok=True)
        self._links.mkdir(exist_ok=True)
        (self._links / self.owner).touch()

    def close(self) -> None:
        """Say that this link is over: its exclusive queues go."""
        (self._links / self.owner).unlink(missing_ok=True)

    def drop(self) -> None:
        """Nothing is open."""

    # -- queues

    def _folder(self, queue: str) -> Path:
        return self._queues / sha256(queue.encode("utf-8", "surrogatepass")).hexdigest()

    def make_queue(self, name: str, declaration: Declaration) -> Declaration:
        """Make a queue: the first one to link its declaration to the final name wins."""
        folder = self._folder(name)
        for each in ("new", "ready", "claimed"):
            (folder / each).mkdir(parents=True, exist_ok=True)
        mine = folder / "new" / self._identity()
        mine.write_text(declaration.text())
        with suppress(FileExistsError):
            os.link(mine, folder / "declaration")
        mine.unlink()
        return self._declaration(folder) or declaration

    def find_queue(self, name: str) -> Declaration | None:
        """Return how a queue was declared; that of a link that is gone goes now."""
        folder = self._folder(name)
        found = self._declaration(folder)
        owner = None if found is None else found.owner
        if owner in (None, self.owner) or _age(self._links / str(owner)) <= (self.lease or 0):
            return found
        self.drop_queue(name)
        return None

    def _declaration(self, folder: Path) -> Declaration | None:
        with suppress(FileNotFoundError):
            return Declaration.read((folder / "declaration").read_bytes())
        return None

    def drop_queue(self, name: str) -> int:
        """Delete a queue, its declaration first, so that it is not found."""
        folder = self._folder(name)
        (folder / "declaration").unlink(missing_ok=True)
        deleted = self.purge(name)
        shutil.rmtree(folder, ignore_errors=True)
        return deleted

    def purge(self, name: str) -> int:
        """Delete what waits."""
        deleted = 0
        for each in _names(self._folder(name) / "ready"):
            with suppress(FileNotFoundError):
                (self._folder(name) / "ready" / each).unlink()
                deleted += 1
        return deleted

    def size(self, name: str) -> int:
        """Count what waits."""
        return len(_names(self._folder(name) / "ready"))

    # -- messages

    def put(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        """Write each message beside its queue, then move it in, so that no reader sees half of it."""
        outcomes: list[Exception | None] = []
        for entry in entries:
            folder, now = self._folder(entry.queue), time.time_ns()
            due = now + int(entry.delay * NANOSECONDS) if entry.delay else 0
            file = File(255 - entry.priority, now, self._identity(), due)
            end = None if entry.lifetime is None else time.time() + entry.lifetime
            try:
                new = folder / "new" / file.identity
                new.write_text(dumps([end, entry.envelope]))
                new.rename(folder / "ready" / str(file))
                outcomes.append(None)
            except FileNotFoundError:
                outcomes.append(NoQueue(entry.queue))
            except OSError as exc:  # the disk is full, say
                outcomes.append(exc)
        return outcomes

    def claim(self, wanted: Mapping[str, int], wait: float) -> Sequence[Claimed]:
        """Take what waits, and look again for a while where nothing does.  May switch."""
        deadline = Deadline(wait)
        while True:
            found = [each for queue, number in wanted.items() for each in self._take(queue, number)]
            if found or deadline.has_ended:
                return found
            if self._is_interrupted.wait(min(POLL, deadline.left() or 0)):
                self._is_interrupted.clear()
                return found

    def interrupt(self) -> None:
        """End a claim that waits."""
        self._is_interrupted.set()

    def _take(self, queue: str, number: int) -> Iterator[Claimed]:
        """Claim up to *number* messages by moving their files away."""
        folder, now = self._folder(queue), time.time_ns()
        for name in sorted(_names(folder / "ready")):
            file, ready, claimed = File.of(name), folder / "ready" / name, folder / "claimed" / name
            if file.due > now:
                continue
            try:
                os.utime(ready)  # the lease begins
                ready.rename(claimed)
                end, envelope = loads(claimed.read_text())
            except FileNotFoundError:
                continue  # another process was quicker
            dead = "expired" if end is not None and end <= now / NANOSECONDS else None
            yield Claimed(queue, envelope, claimed, file.deliveries, dead=dead)
            number -= dead is None
            if number <= 0:
                return

    def settle(self, requests: Sequence[SettleRequest]) -> int:
        """Delete files, or move them back to where they were in their queues."""
        passed_over = 0
        for request in requests:
            claimed: Path = request.handle
            if request.entries:  # copies of a dead letter come first
                request = self.unless_refused(request, self.put(request.entries))
            try:
                if request.settlement is Settlement.REQUEUE:
                    self._requeue(claimed, request.delay, is_unseen=request.is_unseen)
                else:
                    claimed.unlink()
            except FileNotFoundError:  # its lease has ended, or its queue was deleted
                passed_over += request.settlement is Settlement.ACK
        return passed_over

    def _requeue(self, claimed: Path, delay: float, *, is_unseen: bool = False) -> None:
        file = File.of(claimed.name)
        due = time.time_ns() + int(delay * NANOSECONDS) if delay else 0
        file = file._replace(due=due, deliveries=file.deliveries + (not is_unseen))
        claimed.rename(claimed.parent.parent / "ready" / str(file))

    def renew(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Renew leases, this link's own too, and requeue what dead processes held."""
        (self._links / self.owner).touch()
        lost = []
        for claimed in handles:
            try:
                os.utime(claimed)
            except FileNotFoundError:
                lost.append(claimed)
        for folder in self._queues.iterdir():
            for name in _names(folder / "claimed"):
                claimed = folder / "claimed" / name
                if (self.lease or 0) < _age(claimed) < float("inf"):
                    with suppress(FileNotFoundError):
                        self._requeue(claimed, 0)
        return lost

    def _identity(self) -> str:
        return f"{self.owner}-{next(self._numbers)}".replace(".", "-").replace("/", "-")


def _names(folder: Path) -> list[str]:
    """Return the names in a folder; none if there is no such folder."""
    with suppress(FileNotFoundError):
        return os.listdir(folder)
    return []


def _age(file: Path) -> float:
    """Return the seconds since a file was touched; infinity if it does not exist."""
    with suppress(FileNotFoundError):
        return time.time() - file.stat().st_mtime
    return float("inf")


class Transport(StoreTransport):
    """``files:///path``."""

    driver_type = driver_name = "files"

    def make_store(self, wake: Wake) -> FolderStore:
        """Return the store of one link."""
        root = Path("/") / (self.client.virtual_host or "")
        return FolderStore(self.client, wake, root, self.options.lease)


def main(url: str) -> None:
    """Send some letters through a folder."""
    TRANSPORT_ALIASES["files"] = f"{__name__}:Transport"
    greenconn.configure(url)
    read: Queue[int] = Queue()
    reader = greenconn.spawn_consumer(
        "letters", lambda body, message: read.put(body["number"]), concurrency=5
    )
    reader.wait_ready(30)
    writers = [gevent.spawn(greenconn.publish, "letters", {"number": n}) for n in range(100)]
    gevent.joinall(writers, raise_error=True)
    numbers = {read.get(timeout=60) for _ in range(100)}
    reader.stop()
    print(f"{len(numbers)} letters went through {url}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else f"files://{tempfile.mkdtemp()}")
