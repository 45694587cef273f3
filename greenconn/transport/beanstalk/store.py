"""Beanstalk as a store: a tube for each queue, a job for each message.

Two connections: one for commands with an immediate reply, and one that waits for jobs, opened by the
first consumer (:mod:`~greenconn.transport.beanstalk.claiming`).  Only the connection that reserved a
job may settle it, and the job is ready again at once when that connection is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from time import time
from typing import Any, ClassVar, Final

from gevent.lock import BoundedSemaphore

from greenconn.broker.port import Claimed, Entry, Settlement, SettleRequest, Store
from greenconn.broker.topology import DirectTopology, Topology
from greenconn.green.connect import connect_tcp
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.jsoncodec import loads
from greenconn.transport.beanstalk.claiming import Claims, Reservations, ReserveConnection
from greenconn.transport.beanstalk.connection import (
    CommandConnection,
    Job,
    Pipeline,
    ReservedJob,
    number_of,
    whole_seconds,
)
from greenconn.transport.beanstalk.errors import LinkLost
from greenconn.transport.beanstalk.options import BeanstalkOptions
from greenconn.transport.beanstalk.presence import Presence
from greenconn.transport.beanstalk.publishing import EXPIRES_AT, JobPublisher, exists, queue_tube
from greenconn.transport.beanstalk.topology import QUEUES, BeanstalkTopology, Content, Records
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.envelope import read_envelope
from greenconn.wire.beanstalk import Reply, line, queue_of
from greenconn.wire.tls import tls_session

__all__ = ["BeanstalkStore"]

#: Messages that one claim takes.
CLAIM: Final = 100
DEFAULT_PORT: Final = 11300


class BeanstalkStore(Store):
    """The connections of one link.

    Arguments:
        options: of the transport.
    """

    outlives_link = False
    claim_wait = 25.0
    claim_limit: ClassVar[int] = CLAIM
    topology: Topology

    def __init__(
        self, client: Any, wake: Callable[[str | None], None], options: BeanstalkOptions
    ) -> None:
        super().__init__(client, wake)
        self.lease = options.lease
        self._options = options
        self._where: str = client.as_uri()
        self._reservations = Reservations(options.lease)
        self._pipelines: list[Pipeline] = []
        self._opening = BoundedSemaphore(1)
        self._waiting: ReserveConnection | None = None
        self._is_over = False

    # -- life

    def open(self, deadline: Deadline) -> None:
        """Connect.  May switch."""
        pipeline = self._connect(deadline)
        server = self._server = CommandConnection(pipeline)
        server.greet(deadline)
        pipeline.watch(self._options.reply_timeout)
        # A second beyond the lease, in which the server waits with giving anything else.
        time_to_run = whole_seconds(self._options.lease) + 1
        self._records = Records(server, self._options.reply_timeout)
        self.topology = DirectTopology(BeanstalkTopology(self._records))
        self._presence = Presence(server)
        self._publisher = JobPublisher(server, self._records, time_to_run, self._is_orphan)
        self._claims = Claims(server, self._wait_line, CLAIM)

    def _connect(self, deadline: Deadline) -> Pipeline:
        client = self.client
        host = client.hostname or "localhost"
        host = "127.0.0.1" if host == "localhost" else host
        sock = connect_tcp(host, int(client.port or DEFAULT_PORT), deadline)
        tls = tls_session(client.ssl, host) if client.ssl else None
        pipeline = Pipeline(sock, self._where, self._on_lost, tls)
        self._pipelines.append(pipeline)
        if self._is_over:
            pipeline.close()
        pipeline.stream.handshake(deadline)
        return pipeline

    def _wait_line(self) -> ReserveConnection:
        """Return the connection that waits, opened when it is first needed.  May switch."""
        with self._opening:
            if self._waiting is None:
                deadline = Deadline(self.client.connect_timeout)
                pipeline = self._connect(deadline)
                pipeline.parser.longest_body = self._server.pipeline.parser.longest_body
                waiting = ReserveConnection(
                    pipeline, self._server, self.owner, self._reservations.touch
                )
                waiting.open(deadline)
                pipeline.watch(self._options.reply_timeout)
                self._waiting = waiting
            return self._waiting

    def close(self) -> None:
        """Close it.  May switch."""
        self._reservations.stop()
        if self._waiting is not None:
            self._waiting.close()
            # Behind what was posted without waiting for it.
            self._server.ask([line(b"stats-job", 0)])
        self.drop()

    def drop(self) -> None:
        self._is_over = True
        self._reservations.stop()
        for pipeline in self._pipelines:
            pipeline.close()

    def _on_lost(self, exc: LinkLost) -> None:
        """End this life, as a connection was lost, and its reserved jobs with it."""
        self.lost(exc)

    # -- queues

    def make_queue(self, name: str, declaration: Declaration) -> Declaration:
        queue_tube(name)
        if declaration.owner is not None:
            self._presence.live(declaration.owner)
        content = {**_fields(declaration), "queue": name}
        return _declaration(self._records.make(self._records.tube(QUEUES, name), content))

    def find_queue(self, name: str) -> Declaration | None:
        """Return a queue that has a record, or whose tube has jobs or waiting clients.

        That of a link that is gone goes now.
        """
        tube, record = queue_tube(name), self._records.tube(QUEUES, name)
        content = self._records.read(record)
        if content is not None and not self._is_orphan(name, content):
            return _declaration(content)
        counts = self._server.counts(tube)
        return Declaration(durable=True) if exists(_NO_RECORD, counts) else None

    def _is_orphan(self, name: str, content: Content) -> bool:
        """Delete a queue if it is exclusive to a link that is gone; return whether it was."""
        owner = content.get("owner")
        if not isinstance(owner, str) or owner == self.owner or self._presence.is_alive(owner):
            return False
        current = self._records.read(self._records.tube(QUEUES, name))
        if (
            current is not None and current.get("owner") == owner
        ):  # otherwise another client was faster
            self.drop_queue(name)
        return True

    def drop_queue(self, name: str) -> int:
        tube = queue_tube(name)
        self._publisher.forget(name)
        self.topology.forget_queue(name)
        self._records.drop(self._records.tube(QUEUES, name))
        count = self._server.empty(tube)
        while self._server.kick(tube):  # buried ones first, then the delayed
            self._server.empty(tube)
        return count

    def set_consumers(self, name: str, consumers: int, *, exclusive: bool = False) -> bool:
        if not consumers:
            # The reply that nothing consumes here any more can be relied on: no claim takes anything.
            if self._waiting is not None:
                self._waiting.ignore(queue_tube(name))
            self.interrupt()
            self._claims.wait_over()
        return self._presence.set_consumers(name, consumers, exclusive=exclusive)

    def other_consumers(self, name: str) -> int:
        return self._presence.other_consumers(name)

    def purge(self, name: str) -> int:
        return self._server.empty(queue_tube(name))

    def size(self, name: str) -> int:
        return number_of(self._server.counts(queue_tube(name)), b"current-jobs-ready")

    def kick(self, name: str, limit: int) -> int:
        """Let buried messages be delivered again, or delayed ones now; return how many.  May switch."""
        return self._server.kick(queue_tube(name), limit)

    # -- messages

    def put(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        return self._publisher.put(entries)

    def claim(self, wanted: Mapping[str, int], wait: float) -> Sequence[Claimed]:
        tubes = {queue_tube(queue): min(count, CLAIM) for queue, count in wanted.items()}
        return [self._claimed(each) for each in self._claims.claim(tubes, wait)]

    def _claimed(self, taken: ReservedJob) -> Claimed:
        job = taken.job
        self._reservations.add(job)
        queue, before = queue_of(taken.tube), max(taken.reserves - 1, 0)
        envelope = _envelope(taken.body)
        if envelope is None:
            return Claimed(queue, None, job, before, taken.body)
        end = envelope.pop(EXPIRES_AT, None)
        job.is_dead = isinstance(end, (int, float)) and end <= time()
        return Claimed(queue, envelope, job, before, taken.body, "expired" if job.is_dead else None)

    def interrupt(self) -> None:
        self._claims.interrupt()
        if self._waiting is not None:
            self._waiting.wake()

    def settle(self, requests: Sequence[SettleRequest]) -> None:
        requests = [self._with_copies(each) if each.entries else each for each in requests]
        self._reservations.discard(request.handle for request in requests)
        for reply in self._post_all([(each.handle, self._command(each)) for each in requests]):
            if reply.word not in _SETTLED:
                raise self._server.refused(reply, "settling a message")

    def _with_copies(self, request: SettleRequest) -> SettleRequest:
        """Store the copies of a request; without them the message stays."""
        outcomes = self._publisher.put(request.entries)
        for error in outcomes:
            if isinstance(error, LinkLost):
                raise error
        return self.unless_refused(request, outcomes)

    def _command(self, request: SettleRequest) -> bytes:
        job: Job = request.handle
        if request.settlement is Settlement.REQUEUE:
            return line(b"release", job.number, job.priority, whole_seconds(request.delay))
        buries = self._options.bury_rejected and not job.is_dead
        if request.settlement is Settlement.REJECT and buries:
            return line(b"bury", job.number, job.priority)
        return line(b"delete", job.number)

    def renew(self, handles: Sequence[Any]) -> Sequence[Any]:
        replies = self._post_all([(each, line(b"touch", each.number)) for each in handles])
        lost = [
            job for job, reply in zip(handles, replies, strict=True) if reply.word == b"NOT_FOUND"
        ]
        self._reservations.discard(lost)
        return lost

    def _post_all(self, orders: Iterable[tuple[Job, bytes]]) -> list[Reply]:
        """Send a command for each job over the connection that holds it.  May switch.

        Raises:
            LinkLost: the connection went before the last reply.
        """
        waiters = []
        for job, command in orders:
            slot: Slot[Reply | BaseException] = Slot()
            waiters.append(slot)
            job.post(command, slot.offer)
        replies = []
        for slot in waiters:
            reply = slot.wait(Deadline())
            if isinstance(reply, BaseException):
                raise reply
            replies.append(reply)
        return replies


_NO_RECORD: Final = Reply(b"NOT_FOUND")
#: The replies for a settled job; it is not found when its lease had ended.
_SETTLED: Final = frozenset({b"DELETED", b"RELEASED", b"BURIED", b"NOT_FOUND"})


def _envelope(body: bytes) -> dict[str, Any] | None:
    """Read a message; None: it is not of kombu's form."""
    try:
        envelope = read_envelope(body)
    except ValueError:
        return None
    is_one = isinstance(envelope, dict) and "body" in envelope and "properties" in envelope
    return envelope if is_one else None


def _fields(declaration: Declaration) -> Content:
    fields = loads(declaration.text())
    assert isinstance(fields, dict)
    return fields


def _declaration(content: Content) -> Declaration:
    arguments = content.get("arguments")
    return Declaration(
        durable=bool(content.get("durable")),
        auto_delete=bool(content.get("auto_delete")),
        owner=content.get("owner"),
        arguments=arguments if isinstance(arguments, dict) else {},
    )
