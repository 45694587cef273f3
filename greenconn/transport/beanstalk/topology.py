"""Queues, exchanges and bindings: records that all programs share, kept as jobs.

beanstalkd has no other place for them.  Each queue and each exchange has a tube for its record
(``$queue.mail``, ``$exchange.orders``) with one ready job in it, whose body is JSON.  Readers peek.

Creating a record
    Two programs may create the same one at the same time, and nothing in beanstalk is unique.  So a
    new one is put with a long delay, in which it cannot be reserved.  Then its program peeks at the
    first delayed job, which is the same for all who look, and after that looks whether one is ready or
    reserved already.  If neither belongs to another program, it kicks its own job; else it deletes its
    own and kicks the first.  A program that is killed in between leaves a job that the next one finds
    and kicks.

Changing a record
    Reserve it, put the next version, delete the one before.  The next version is more urgent than the
    one before, so everybody peeks at the newest; a writer that is killed between the two leaves an old
    version, which no reader sees and the next writer deletes.  ``touch`` goes before the put: if the
    reservation had ended by then (the process was stopped), the new version is deleted again.  Of two
    records of one version the first counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import gevent
from gevent.lock import BoundedSemaphore

from greenconn.broker.topology_port import ExchangeRecord, Row, TopologyStore
from greenconn.green.deadline import Deadline
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.beanstalk.connection import CommandConnection, ignore_reply, number_of
from greenconn.transport.beanstalk.errors import RecordRefused, RecordTooBig, ServerRefuses
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

__all__ = ["EXCHANGES", "PEEK", "QUEUES", "BeanstalkTopology", "Content", "Records", "parsed"]


#: Prefixes of the tubes of records; no queue's tube has one.
QUEUES: Final = b"$queue."
EXCHANGES: Final = b"$exchange."
#: Seconds for which a new one is delayed: practically for ever.
HIDDEN: Final = 2**31
#: Seconds that a change may take, after which another program may begin one.
CHANGE_TIME: Final = 10
#: Priority of version 0; each version is more urgent than the one before.
FIRST: Final = 2**32 - 1
#: Seconds that a reader waits for the end of a change before it uses what it has read before.
CHANGE_WAIT: Final = 1.0
#: Seconds between two attempts to change what another program changes.
PAUSE: Final = 0.01
#: Versions of one record that are reserved at once.
VERSIONS: Final = 3
#: Records whose content is cached.
MOST_KNOWN: Final = 10_000

#: Sent twice where the body counts: see :func:`is_whole`.
PEEK: Final = line(b"peek-ready")
_PEEK_DELAYED: Final = line(b"peek-delayed")

Content = dict[str, Any]


class Records:
    """The records of one server.

    Arguments:
        timeout: seconds to wait for the end of another program's change.
    """

    def __init__(self, server: CommandConnection, timeout: float | None) -> None:
        self._server = server
        self._timeout = timeout
        #: Changes over one connection would reserve each other's records.
        self._lock = BoundedSemaphore(1)
        #: Tube -> number and content of the job that was read last.
        self._read: dict[bytes, tuple[int, Content]] = {}

    def tube(self, kind: bytes, name: str) -> bytes:
        """Return the tube of a record.

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
                f"name {name!r} takes {len(tube) - len(kind)} bytes as a tube's name, and must "
                f"take at most {LONGEST_TUBE - len(kind)}",
                method,
            )
        return tube

    # -- reading

    def read(self, tube: bytes) -> Content | None:
        """Return the content of a record; None: there is none.  May switch.

        The same object until it changes.

        Raises:
            TimeoutError: a change of it did not come to an end.
        """
        deadline, change_wait = Deadline(self._timeout), Deadline(CHANGE_WAIT)
        while True:
            peeked, again, counted = self._server.ask_using(tube, [PEEK, PEEK, _stats(tube)])
            if is_whole(peeked, again):
                return self._content(tube, peeked)
            record = self._server.read_counts(counted)
            if _ready(record) or b"FOUND" in (peeked.word, again.word):
                continue  # it was replaced meanwhile
            if not _reserved(record):
                self._read.pop(tube, None)
                return None
            # It is about to be replaced, or its writer was stopped: then what was read last has to do.
            known = self._read.get(tube)
            if known is not None and change_wait.has_ended:
                return known[1]
            self._pause(tube, deadline)

    def names(self, kind: bytes) -> list[str]:
        """Return the names of all queues or exchanges with a record.  May switch."""
        (listed,) = self._server.ask([line(b"list-tubes")])
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
                f"{self._server.where}: {queue_of(tube)} could not be changed within "
                f"{self._timeout:g} s, as other clients change it, too"
            )

    # -- making and deleting

    def make(self, tube: bytes, content: Content) -> Content:
        """Create a record unless there is one already; return the content of that.  May switch.

        Raises:
            RecordRefused: the server is in drain mode, or out of memory.
        """
        deadline = Deadline(self._timeout)
        while (found := self.read(tube)) is None:
            self._check(tube, deadline)
            self._make(tube, content)
        return found

    def _make(self, tube: bytes, content: Content) -> None:
        server = self._server
        body = self._body({**content, "version": 0}, tube)
        (made,) = server.ask_using(tube, [put(FIRST, HIDDEN, CHANGE_TIME, body)])
        if made.word != b"INSERTED":
            raise self._refused(made, f"making {queue_of(tube)}")
        # The order counts: what is not delayed any more is counted then.
        peeked, counted, stats = server.ask_using(
            tube, [_PEEK_DELAYED, _stats(tube), line(b"stats-job", made.number)]
        )
        if statistics(stats.body).get(b"state") != b"delayed":
            return  # another program has kicked ours already
        record = server.read_counts(counted)
        if _ready(record) or _reserved(record):
            commands = [line(b"delete", made.number)]
        else:
            commands = [line(b"kick-job", peeked.number)]
            if peeked.number != made.number:
                commands.append(line(b"delete", made.number))
        server.ask(commands)

    def drop(self, tube: bytes) -> None:
        """Delete a record, also while another program changes it.  May switch."""
        deadline = Deadline(self._timeout)
        with self._lock:
            while True:
                self._server.kick(tube)  # left by a program that was killed while it created one
                held, _, others = self._reserve(tube)
                self._server.ask([line(b"delete", each.number) for each in held])
                if not held and not others:
                    break
                if not held:
                    self._pause(tube, deadline)
        self._read.pop(tube, None)

    # -- changing

    def change(self, tube: bytes, function: Callable[[Content], Content | None]) -> None:
        """Change a record, which is created if there is none.  May switch.

        Arguments:
            function: take the content and return the new one; None: nothing is to change.  It may be
                called more than once.  Never switches.

        Raises:
            RecordRefused: the server is in drain mode, or out of memory.
            RecordTooBig: the server takes no job as large as this would be.
            TimeoutError: another program's change did not come to an end.
        """
        deadline = Deadline(self._timeout)
        with self._lock:
            while not self._change(tube, function):
                self._pause(tube, deadline)

    def _change(self, tube: bytes, function: Callable[[Content], Content | None]) -> bool:
        """Try once to change a record; return False while another program changes it."""
        if self.read(tube) is None:
            self.make(tube, {})
        held, contents, others = self._reserve(tube)
        if others or not held:
            # A newer one may be among those that others have.
            self._server.ask([_release(*pair) for pair in zip(held, contents, strict=True)])
            return False
        newest, old = held[0], [line(b"delete", each.number) for each in held[1:]]
        release = _release(newest, contents[0])
        try:
            content = function(contents[0])
            if content is None:
                self._server.ask([release, *old])
                return True
            version = _version(contents[0]) + 1
            content = {**content, "version": version}
            body = self._body(content, tube)
        except BaseException:
            self._server.pipeline.post(release, ignore_reply)
            raise
        written = self._write(tube, body, version, newest, old)
        if written is None:
            return False
        self._read[tube] = (written, content)
        return True

    def _write(
        self, tube: bytes, body: bytes, version: int, newest: Reply, old: Sequence[bytes]
    ) -> int | None:
        """Put a version and return its job; None: the reservation had ended, and nothing is written."""
        server, number = self._server, newest.number
        touched, written, *_ = server.ask_using(
            tube,
            [
                line(b"touch", number),
                put(FIRST - version, 0, CHANGE_TIME, body),
                *old,
            ],
        )
        if written.word != b"INSERTED":
            server.ask([line(b"release", number, FIRST - version + 1, 0)])
            raise self._refused(written, f"changing {queue_of(tube)}")
        is_ours = touched.word == b"TOUCHED"
        server.ask([line(b"delete", number if is_ours else written.number)])
        return written.number if is_ours else None

    def _refused(self, reply: Reply, what: str) -> Exception:
        error = self._server.refused(reply, what)
        return RecordRefused(str(error)) if isinstance(error, ServerRefuses) else error

    def _reserve(self, tube: bytes) -> tuple[list[Reply], list[Content], int]:
        """Reserve all versions, the newest first, and count those that others have reserved."""
        (held,) = self._server.take([(tube, VERSIONS)])
        counts = self._server.counts(tube)
        pairs = [(each, parsed(each.body)) for each in held]
        pairs.sort(key=lambda pair: (-_version(pair[1]), pair[0].number))
        others = _reserved(counts) - len(held)
        return [each for each, _ in pairs], [content for _, content in pairs], others

    def _body(self, content: Content, tube: bytes) -> bytes:
        body = dumps(content).encode()
        limit = self._server.longest_job
        if len(body) > limit:
            raise RecordTooBig(
                f"{self._server.where}: record {queue_of(tube)} must have at most {limit} bytes, "
                f"got {len(body)}: start beanstalkd with a larger limit, as "
                f"-z {2 * len(body)}"
            )
        return body


def _stats(tube: bytes) -> bytes:
    return line(b"stats-tube", tube)


def _ready(record: dict[bytes, bytes]) -> int:
    return number_of(record, b"current-jobs-ready")


def _reserved(record: dict[bytes, bytes]) -> int:
    return number_of(record, b"current-jobs-reserved")


def _release(held: Reply, content: Content) -> bytes:
    return line(b"release", held.number, FIRST - _version(content), 0)


def _lines(listed: Reply, kind: bytes) -> list[bytes]:
    return [each for each in listed.body.split(b"\n") if each.startswith(b"- " + kind)]


def parsed(body: bytes) -> Content:
    """Return the content of a job; empty where another program has put anything else."""
    try:
        content = loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _version(content: Content) -> int:
    version = content.get("version")
    return version if isinstance(version, int) else 0


class BeanstalkTopology(TopologyStore):
    """One record for each exchange: what it is, and the rows of its bindings."""

    def __init__(self, records: Records) -> None:
        self._records = records
        #: Exchange -> the content of its record, and the rows in it.
        self._rows: dict[str, tuple[Content, Sequence[Row]]] = {}

    def _tube(self, exchange: str) -> bytes:
        return self._records.tube(EXCHANGES, exchange)

    def get(self, exchange: str) -> ExchangeRecord | None:
        return self._records.read(self._tube(exchange))

    def put(self, exchange: str, record: ExchangeRecord) -> None:
        def declare(content: Content) -> Content | None:
            # A queue that was bound to before its declaration has no arguments.
            return None if "type" in content else {"rows": [], **content, **record}

        tube = self._tube(exchange)
        if declare(self._records.make(tube, {**record, "rows": []})) is not None:
            self._records.change(tube, declare)

    def delete(self, exchange: str) -> None:
        self._rows.pop(exchange, None)
        self._records.drop(self._tube(exchange))

    def rows(self, exchange: str) -> Sequence[Row] | None:
        content = self._records.read(self._tube(exchange))
        if content is None:
            self._rows.pop(exchange, None)
            return None
        known = self._rows.get(exchange)
        if known is None or known[0] is not content:
            rows = tuple(filter(None, map(_row, _rows(content))))
            known = self._rows[exchange] = (content, rows)
        return known[1]

    def add(self, exchange: str, row: Row) -> None:
        text = _text(row)

        def add(content: Content) -> Content | None:
            rows = _rows(content)
            return None if text in rows else {**content, "rows": [*rows, text]}

        self._records.change(self._tube(exchange), add)

    def remove(self, exchange: str, row: Row) -> bool:
        text = _text(row)
        return self._remove(exchange, lambda each: bool(each == text))

    def remove_to(self, destination: str, *, is_exchange: bool) -> Collection[str]:
        def leads_there(text: Any) -> bool:
            row = _row(text)
            return row is not None and (row.queue, row.to_exchange) == (destination, is_exchange)

        names = self._records.names(EXCHANGES)
        return [each for each in names if self._remove(each, leads_there)]

    def _remove(self, exchange: str, condition: Callable[[Any], bool]) -> bool:
        """Remove rows from a record; return whether it had such."""
        tube = self._tube(exchange)
        content = self._records.read(tube)
        if content is None or not any(map(condition, _rows(content))):
            return False
        self._records.change(tube, _without(condition))
        return True


def _without(condition: Callable[[Any], bool]) -> Callable[[Content], Content | None]:
    def remove(content: Content) -> Content | None:
        rows = _rows(content)
        kept = [each for each in rows if not condition(each)]
        return None if len(kept) == len(rows) else {**content, "rows": kept}

    return remove


def _rows(content: Content) -> list[Any]:
    rows = content.get("rows")
    return rows if isinstance(rows, list) else []


def _text(row: Row) -> list[Any]:
    """Return a row as JSON keeps it."""
    arguments = dict(row.arguments) if row.arguments else None
    return [row.routing_key, row.pattern, row.queue, arguments, row.to_exchange]


def _row(text: Any) -> Row | None:
    """Return the row that JSON kept; None: it is none."""
    if not isinstance(text, list) or len(text) != 5:
        return None
    return Row(*text)
