"""What all programs must know of queues, exchanges and bindings, kept as jobs, since there is no other
place in a beanstalkd.

Each queue has a *note*, each exchange a *table*: a tube of its own (``$queue.mail``,
``$exchange.orders``) with one ready job in it, whose body is JSON.  Whoever wants to know peeks.

Making one
    Two programs may make the same one at the same time, and nothing in beanstalk is unique.  So a new
    one is put with a long delay, in which nobody can reserve it.  Then its maker looks for the first
    delayed one, which is the same for all who look, and after that whether one is ready or reserved
    already.  If neither is another's, it is his, and he kicks it into being; else he deletes his own
    and kicks the first.  Who is killed on the way leaves one that the next maker finds and kicks.

Changing a table
    Reserve it, write the next version, delete the one before.  The next version is more urgent than
    the one before, so everybody peeks at the newest; a writer that is killed between the two leaves
    an old version, which nobody sees and the next writer deletes.  ``touch`` goes before the write: if
    the reservation had ended by then (the process was stopped), what was written is deleted again.
    Of two tables of one version the first counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import gevent
from gevent.lock import BoundedSemaphore

from greenconn.green.deadline import Deadline
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.beanstalk.desk import Desk, number_of
from greenconn.transport.beanstalk.errors import TableTooBig
from greenconn.transport.refusal import Method, invalid_argument
from greenconn.wire.beanstalk import (
    LONGEST_TUBE,
    Reply,
    is_whole,
    line,
    put,
    queue_of,
    statistics,
    tube_of,
)

__all__ = ["EXCHANGES", "PEEK", "QUEUES", "Content", "Tables", "parsed"]

#: What the tubes of notes and tables begin with; no queue's tube does.
QUEUES: Final = b"$queue."
EXCHANGES: Final = b"$exchange."
#: Seconds in which a new one is not ready: for ever, as far as anybody is concerned.
HIDDEN: Final = 2**31
#: Seconds that a change may take, after which another program may begin one.
CHANGE_TIME: Final = 10
#: Priority of version 0; each version is more urgent than the one before.
FIRST: Final = 2**32 - 1
#: Seconds that a reader waits for a change to be done, before it takes what it has read before.
PATIENCE: Final = 1.0
#: Seconds between two attempts to change what another program changes.
PAUSE: Final = 0.01
#: Versions of one table that are looked through at once.
VERSIONS: Final = 3
#: Those whose content is remembered.
MOST_KNOWN: Final = 10_000

#: Sent twice where the body counts: see :func:`is_whole`.
PEEK: Final = line(b"peek-ready")
_PEEK_DELAYED: Final = line(b"peek-delayed")

Content = dict[str, Any]


class Tables:
    """The notes and tables of one server.

    Arguments:
        timeout: seconds to wait for another program's change.
    """

    def __init__(self, desk: Desk, timeout: float | None) -> None:
        self._desk = desk
        self._timeout = timeout
        #: Changes over one connection would reserve each other's tables.
        self._lock = BoundedSemaphore(1)
        #: Tube -> number and content of the job that was read last.
        self._read: dict[bytes, tuple[int, Content]] = {}

    def tube(self, kind: bytes, name: str) -> bytes:
        """The tube of a note or table.

        Raises:
            PreconditionFailed: the name is too long.
        """
        method = Method.QUEUE_DECLARE if kind == QUEUES else Method.EXCHANGE_DECLARE
        try:
            tube = kind + tube_of(name)
        except ValueError as exc:
            raise invalid_argument(str(exc), method) from exc
        if len(tube) > LONGEST_TUBE:
            raise invalid_argument(
                f"name {name!r} takes {len(tube) - len(kind)} bytes as a tube's, and may take "
                f"{LONGEST_TUBE - len(kind)}",
                method,
            )
        return tube

    # -- reading

    def read(self, tube: bytes) -> Content | None:
        """Return the content; None: there is none.  The same object until it changes.  May switch.

        Raises:
            TimeoutError: a change of it did not come to an end.
        """
        deadline, patience = Deadline(self._timeout), Deadline(PATIENCE)
        while True:
            peeked, again, counted = self._desk.ask_using(tube, [PEEK, PEEK, _stats(tube)])
            if is_whole(peeked, again):
                return self._content(tube, peeked)
            facts = self._desk.read_counts(counted)
            if _ready(facts) or b"FOUND" in (peeked.word, again.word):
                continue  # it was replaced meanwhile
            if not _reserved(facts):
                self._read.pop(tube, None)
                return None
            # It is about to be replaced, or its writer was stopped: then what was read last has to do.
            known = self._read.get(tube)
            if known is not None and patience.has_ended:
                return known[1]
            self._pause(tube, deadline)

    def names(self, kind: bytes) -> list[str]:
        """The names of all that there are.  May switch."""
        (listed,) = self._desk.ask([line(b"list-tubes")])
        return [queue_of(each[2:].removeprefix(kind)) for each in _lines(listed, kind)]

    def _content(self, tube: bytes, found: Reply) -> Content:
        known = self._read.get(tube)
        if known is not None and known[0] == found.number:
            return known[1]
        content = parsed(found.body)
        if len(self._read) >= MOST_KNOWN:
            self._read.clear()
        self._read[tube] = (found.number, content)
        return content

    def _pause(self, tube: bytes, deadline: Deadline) -> None:
        self._check(tube, deadline)
        gevent.sleep(PAUSE)

    def _check(self, tube: bytes, deadline: Deadline) -> None:
        if deadline.has_ended:
            raise TimeoutError(
                f"{self._desk.where}: {queue_of(tube)} was being changed for more than "
                f"{self._timeout:g} s"
            )

    # -- making and deleting

    def make(self, tube: bytes, content: Content) -> Content:
        """Make one, unless there is one already, and return the content of that.  May switch."""
        deadline = Deadline(self._timeout)
        while (found := self.read(tube)) is None:
            self._check(tube, deadline)
            self._make(tube, content)
        return found

    def _make(self, tube: bytes, content: Content) -> None:
        desk = self._desk
        body = self._body({**content, "version": 0}, tube)
        (made,) = desk.ask_using(tube, [put(FIRST, HIDDEN, CHANGE_TIME, body)])
        if made.word != b"INSERTED":
            raise desk.refused(made, f"making {queue_of(tube)}")
        # The order counts: what is not delayed any more is counted then.
        peeked, counted, told = desk.ask_using(
            tube, [_PEEK_DELAYED, _stats(tube), line(b"stats-job", made.number)]
        )
        if statistics(told.body).get(b"state") != b"delayed":
            return  # somebody has kicked ours into being already
        facts = desk.read_counts(counted)
        if _ready(facts) or _reserved(facts):
            commands = [line(b"delete", made.number)]
        else:
            commands = [line(b"kick-job", peeked.number)]
            if peeked.number != made.number:
                commands.append(line(b"delete", made.number))
        desk.ask(commands)

    def drop(self, tube: bytes) -> None:
        """Delete one, whatever becomes of changes under way.  May switch."""
        deadline = Deadline(self._timeout)
        with self._lock:
            while True:
                self._desk.kick(tube)  # what a maker has left
                held, _, others = self._reserve(tube)
                self._desk.ask([line(b"delete", each.number) for each in held])
                if not held and not others:
                    break
                if not held:
                    self._pause(tube, deadline)
        self._read.pop(tube, None)

    # -- changing

    def change(self, tube: bytes, function: Callable[[Content], Content | None]) -> None:
        """Change a table, which is made if there is none.  May switch.

        Arguments:
            function: takes the content and returns another; None: nothing is to change.  Perhaps
                called more than once.  Never switches.

        Raises:
            TableTooBig: the server takes no job as large as this would be.
            TimeoutError: another program's change did not come to an end.
        """
        deadline = Deadline(self._timeout)
        with self._lock:
            while not self._change(tube, function):
                self._pause(tube, deadline)

    def _change(self, tube: bytes, function: Callable[[Content], Content | None]) -> bool:
        """Try once to change a table; False: another program was at it."""
        if self.read(tube) is None:
            self.make(tube, {})
        held, contents, others = self._reserve(tube)
        if others or not held:
            # A newer one may be among those that others have.
            self._desk.ask([_release(*pair) for pair in zip(held, contents, strict=True)])
            return False
        newest, old = held[0], [line(b"delete", each.number) for each in held[1:]]
        release = _release(newest, contents[0])
        try:
            content = function(contents[0])
            if content is None:
                self._desk.ask([release, *old])
                return True
            version = _version(contents[0]) + 1
            content = {**content, "version": version}
            body = self._body(content, tube)
        except BaseException:
            self._desk.pipeline.post(release, _nothing)
            raise
        written = self._write(tube, body, version, newest, old)
        if written is None:
            return False
        self._read[tube] = (written, content)
        return True

    def _write(
        self, tube: bytes, body: bytes, version: int, newest: Reply, old: Sequence[bytes]
    ) -> int | None:
        """Write a version and return its number; None: our time was up, and nothing is written."""
        desk, number = self._desk, newest.number
        touched, written, *_ = desk.ask_using(
            tube,
            [
                line(b"touch", number),
                put(FIRST - version, 0, CHANGE_TIME, body),
                *old,
            ],
        )
        if written.word != b"INSERTED":
            desk.ask([line(b"release", number, FIRST - version + 1, 0)])
            raise desk.refused(written, f"changing {queue_of(tube)}")
        is_ours = touched.word == b"TOUCHED"
        desk.ask([line(b"delete", number if is_ours else written.number)])
        return written.number if is_ours else None

    def _reserve(self, tube: bytes) -> tuple[list[Reply], list[Content], int]:
        """Reserve all versions, the newest in front; and tell how many others have reserved."""
        (held,) = self._desk.take([(tube, VERSIONS)])
        counts = self._desk.counts(tube)
        pairs = [(each, parsed(each.body)) for each in held]
        pairs.sort(key=lambda pair: (-_version(pair[1]), pair[0].number))
        others = _reserved(counts) - len(held)
        return [each for each, _ in pairs], [content for _, content in pairs], others

    def _body(self, content: Content, tube: bytes) -> bytes:
        body = dumps(content).encode()
        limit = self._desk.longest_job
        if len(body) > limit:
            raise TableTooBig(
                f"{self._desk.where}: the table {queue_of(tube)} would have {len(body)} bytes, and the "
                f"server takes at most {limit} a job: start beanstalkd with a larger limit, as "
                f"-z {2 * len(body)}"
            )
        return body


def _stats(tube: bytes) -> bytes:
    return line(b"stats-tube", tube)


def _ready(facts: dict[bytes, bytes]) -> int:
    return number_of(facts, b"current-jobs-ready")


def _reserved(facts: dict[bytes, bytes]) -> int:
    return number_of(facts, b"current-jobs-reserved")


def _release(held: Reply, content: Content) -> bytes:
    return line(b"release", held.number, FIRST - _version(content), 0)


def _lines(listed: Reply, kind: bytes) -> list[bytes]:
    return [each for each in listed.body.split(b"\n") if each.startswith(b"- " + kind)]


def parsed(body: bytes) -> Content:
    """The content of a job; what somebody else has put there says nothing."""
    try:
        content = loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _version(content: Content) -> int:
    version = content.get("version")
    return version if isinstance(version, int) else 0


def _nothing(reply: object) -> None:
    """A reply that tells nothing."""
