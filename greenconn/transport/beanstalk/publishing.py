"""Storing messages: in one write for many, and only in queues that exist.

beanstalkd makes a tube for any name, so the same write peeks at the queue's record; a job that was put
where no queue is, is deleted again.  A queue that was found is not asked for again for a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic, time
from typing import Any, Final

from greenconn.broker.port import Entry, NoQueue
from greenconn.exceptions import PreconditionFailed
from greenconn.jsoncodec import dumps
from greenconn.transport.beanstalk.connection import CommandConnection, number_of, whole_seconds
from greenconn.transport.beanstalk.errors import JobTooBig, too_big
from greenconn.transport.beanstalk.topology import PEEK, QUEUES, Content, Records, parsed
from greenconn.transport.refusal import Method, invalid_argument
from greenconn.wire.beanstalk import Reply, is_whole, line, put, tube_of

__all__ = ["EXPIRES_AT", "JobPublisher", "exists", "queue_tube", "urgency"]

#: In the envelope: when the message need not be delivered any more, in seconds of the wall clock.
EXPIRES_AT: Final = "expires_at"
#: Beanstalk's priority of a message of the lowest priority, 0.
LEAST_URGENT: Final = 2**16

#: Seconds for which a queue that was found is taken to be there.
FRESH: Final = 1.0
#: Queues that are remembered.
MOST_KNOWN: Final = 10_000


def urgency(priority: Any) -> int:
    """Return beanstalk's priority (0 is the most urgent) for one of AMQP (0 is the least)."""
    number = priority if isinstance(priority, int) else 0
    return LEAST_URGENT - min(max(number, 0), LEAST_URGENT)


def queue_tube(queue: str) -> bytes:
    """Return the tube of a queue.

    Raises:
        PreconditionFailed: there can be none of that name.
    """
    try:
        return tube_of(queue)
    except ValueError as exc:
        raise invalid_argument(str(exc), Method.QUEUE_DECLARE) from exc


def exists(record: Reply, counts: Mapping[bytes, bytes]) -> bool:
    """Return whether a queue exists: it has a record, or its tube has jobs or consumers."""
    return record.word == b"FOUND" or any(
        number_of(dict(counts), name)
        for name in (
            b"current-jobs-ready",
            b"current-jobs-reserved",
            b"current-jobs-delayed",
            b"current-jobs-buried",
            b"current-watching",
        )
    )


class JobPublisher:
    """The puts of one link.

    Arguments:
        time_to_run: seconds that a consumer may hold a message without a sign of life.
        is_orphan: called with a queue and its record; whether it was exclusive to a link that is gone,
            and was deleted.  May switch.
    """

    def __init__(
        self,
        server: CommandConnection,
        records: Records,
        time_to_run: int,
        is_orphan: Callable[[str, Content], bool],
    ) -> None:
        self._server = server
        self._records = records
        self._time_to_run = time_to_run
        self._is_orphan = is_orphan
        #: Queue -> until when it need not be asked for.
        self._found: dict[str, float] = {}

    def forget(self, queue: str) -> None:
        """Forget that a queue was found: it was deleted."""
        self._found.pop(queue, None)

    def put(self, entries: Sequence[Entry]) -> list[Exception | None]:
        """Store messages, in order; see :meth:`Store.put`.  May switch."""
        server = self._server
        server.pipeline.wait_writable()
        outcomes: list[Exception | None] = [None] * len(entries)
        commands: list[bytes] = []
        #: Queue -> where the replies about its record and its tube are.
        looks: dict[str, int] = {}
        #: Number of the entry -> where its reply is.
        puts: dict[int, int] = {}
        bodies: dict[tuple[int, float | None], bytes] = {}
        now = monotonic()
        for number, entry in enumerate(entries):
            try:
                tube = queue_tube(entry.queue)
                body = self._body(entry, bodies)
                if entry.queue not in looks and self._found.get(entry.queue, 0.0) <= now:
                    record = self._records.tube(QUEUES, entry.queue)
                    commands += [*server.using(record), PEEK, PEEK, line(b"stats-tube", tube)]
                    looks[entry.queue] = len(commands)
            except (PreconditionFailed, JobTooBig) as exc:
                outcomes[number] = exc
                continue
            commands += server.using(tube)
            commands.append(
                put(urgency(entry.priority), whole_seconds(entry.delay), self._time_to_run, body)
            )
            puts[number] = len(commands)
        replies = server.ask(commands)
        absent = {
            queue
            for queue, end in looks.items()
            if not exists(replies[end - 3], server.read_counts(replies[end - 1]))
        }
        for queue in looks.keys() - absent:
            peeked, again = replies[looks[queue] - 3 : looks[queue] - 1]
            if is_whole(peeked, again) and self._is_orphan(queue, parsed(peeked.body)):
                absent.add(queue)  # and what was put there is gone with it
        self._remember(looks.keys() - absent, now)
        useless = []
        for number, end in puts.items():
            reply = replies[end - 1]
            if reply.word != b"INSERTED":
                outcomes[number] = server.refused(reply, "storing a message")
                if reply.word == b"BURIED":
                    useless.append(reply.number)
            elif entries[number].queue in absent:
                outcomes[number] = NoQueue()
                useless.append(reply.number)
        server.ask([line(b"delete", each) for each in useless])
        return outcomes

    def _remember(self, queues: Iterable[str], now: float) -> None:
        if len(self._found) > MOST_KNOWN:
            self._found.clear()
        self._found.update(dict.fromkeys(queues, now + FRESH))

    def _body(self, entry: Entry, bodies: dict[tuple[int, float | None], bytes]) -> bytes:
        """Return a message as it is stored; copies of one are made once.

        Raises:
            JobTooBig: the server would not take it.
        """
        key = (id(entry.envelope), entry.lifetime)
        body = bodies.get(key)
        if body is None:
            envelope = entry.envelope
            if entry.lifetime is not None:
                envelope = {**envelope, EXPIRES_AT: time() + entry.lifetime}
            body = bodies[key] = dumps(envelope).encode()
        limit = self._server.longest_job
        if len(body) > limit:
            raise JobTooBig(too_big(len(body), limit, self._server.where))
        return body
