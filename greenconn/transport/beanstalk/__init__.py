"""Beanstalk, ``beanstalk://host:11300/``: a tube for each queue, a job for each message.

Two connections: one for commands with an immediate reply, and one that waits for jobs, opened by the
first consumer (:mod:`~greenconn.transport.beanstalk.claiming`).  Only the connection that reserved a
job may settle it, and the job is ready again at once when that connection is lost.

Declarations
    A tube exists only while it has jobs or watchers.  So the declaration of a queue is a job, too, in
    a tube of its own (``$queue.mail``), which is only peeked at and never changes.  Two programs may
    declare a queue at the same time: the first job counts, and the second is deleted.  A publish
    peeks in the same write; a job that was put where no queue is, is deleted again.  A queue that was
    found is not looked up again for a second.

Consumers of other links
    A link with consumers of a queue watches an empty tube (``$consumers.mail``).  The server counts the
    watchers, and stops counting a link that is gone.  Exclusive consumers watch another one beside it,
    and links with exclusive queues one of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from time import monotonic, time
from typing import Any, ClassVar, Final, TypeVar

from gevent.lock import BoundedSemaphore

from greenconn._version import __version__
from greenconn.broker.channel import StoreChannel
from greenconn.broker.envelope import envelope_json, read_envelope
from greenconn.broker.errors import Method, invalid_argument
from greenconn.broker.link import StoreLink, StoreOptions, StoreTransport
from greenconn.broker.port import Claimed, Entry, NoQueue, Settlement, SettleRequest, Store
from greenconn.broker.queues import Declaration
from greenconn.checks import check_type
from greenconn.exceptions import PreconditionFailed
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.green.stream import connect_tcp
from greenconn.transport.beanstalk.claiming import CLAIM, Claims, Reservations, ReserveConnection
from greenconn.transport.beanstalk.connection import (
    CommandConnection,
    DeclarationRefused,
    Job,
    JobTooBig,
    LinkLost,
    Pipeline,
    ReservedJob,
    ServerRefuses,
    ignore_reply,
    number_of,
    whole_seconds,
)
from greenconn.wire.beanstalk import (
    LONGEST_TUBE,
    Reply,
    is_whole,
    line,
    put,
    queue_of,
    tube_of,
)
from greenconn.wire.tls import tls_session

__all__ = ["Channel", "Transport"]

P = TypeVar("P", bound=Pipeline)

DEFAULT_PORT: Final = 11300
#: In the envelope: when the message need not be delivered any more, in seconds of the wall clock.
EXPIRES_AT: Final = "expires_at"
#: Beanstalk's priority of a message of the lowest priority, 0.
LEAST_URGENT: Final = 2**16
#: Seconds for which a queue that was found is taken to be there.
FRESH: Final = 1.0
#: Queues that are remembered.
MOST_KNOWN: Final = 10_000

#: Prefixes of the tubes for declarations, consumers, exclusive consumers and links; no queue's tube
#: has one.
QUEUES: Final = b"$queue."
CONSUMERS: Final = b"$consumers."
EXCLUSIVE: Final = b"$exclusive."
OWNER: Final = b"$owner."

#: Sent twice, as the body counts: see :func:`is_whole`.
_PEEK: Final = line(b"peek-ready")


class BeanstalkOptions(StoreOptions):
    """The options of a connection to beanstalkd; *lease* is what beanstalk calls the time to run."""

    bury_rejected: bool = True
    """Whether a message that is rejected, and has no dead-letter exchange, is buried in its tube,
    from where ``channel.kick`` recovers it.  With False it is deleted, as with RabbitMQ."""

    def __post_init__(self) -> None:
        StoreOptions.__post_init__(self)
        check_type(self, bool, "bury_rejected")


class Channel(StoreChannel[StoreLink]):
    """A channel over beanstalk."""

    #: The server counts in seconds.
    has_whole_delays: Final = True

    def kick(self, queue: str = "", limit: int = 1000) -> int:
        """Let rejected messages, which lie buried in their queue, be delivered again.  May switch.

        Where none is buried, delayed messages become ready now (beanstalk's ``kick``).

        Arguments:
            limit: of messages.

        Returns:
            how many there were.
        """
        link = self.connection
        link.catch_up()
        store = link.store
        assert isinstance(store, BeanstalkStore)
        return link.ask("kicking messages", store.kick, self.entities.queue_name(queue), limit)


class Transport(StoreTransport):
    """``beanstalk://``: a tube for each queue, kombu's envelope in each job.

    ``transport_options`` are those of
    :class:`~greenconn.transport.beanstalk.BeanstalkOptions`.
    """

    Channel: ClassVar[type[StoreChannel[StoreLink]]] = Channel
    Options: ClassVar[type[StoreOptions]] = BeanstalkOptions
    driver_type = "beanstalk"
    driver_name = "greenconn"
    default_port = DEFAULT_PORT
    #: Seconds between two attempts to connect, at most: a beanstalkd is back soon.
    longest_pause: ClassVar[float] = 1.0

    def make_store(self, wake: Callable[[str | None], None]) -> BeanstalkStore:
        return BeanstalkStore(self.client, wake, self.options)

    def driver_version(self) -> str:
        return __version__


class BeanstalkStore(Store):
    """The connections of one link.

    Arguments:
        options: of the transport.
    """

    outlives_link = False
    claim_wait = 25.0
    claim_limit: ClassVar[int] = CLAIM

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
        #: A second beyond the lease, in which the server waits with giving anything else.
        self._time_to_run = whole_seconds(options.lease) + 1
        #: Tubes that are watched to be counted.
        self._watched: set[bytes] = set()
        #: Queue -> until when it need not be looked up.
        self._found: dict[str, float] = {}

    # -- life

    def open(self, deadline: Deadline) -> None:
        """Connect.  May switch."""
        server = self._server = self._connect(CommandConnection, deadline)
        server.greet(deadline.renewed())
        server.watch(self._options.reply_timeout)
        self._claims = Claims(self, server)

    def _connect(self, kind: Callable[..., P], deadline: Deadline) -> P:
        client = self.client
        host = client.hostname or "localhost"
        host = "127.0.0.1" if host == "localhost" else host
        sock = connect_tcp(host, int(client.port or DEFAULT_PORT), deadline)
        tls = tls_session(client.ssl, host) if client.ssl else None
        pipeline = kind(sock, self._where, self.lost, tls)
        self._pipelines.append(pipeline)
        if self._is_over:
            pipeline.close()
        pipeline.stream.handshake(deadline)
        return pipeline

    def reserve_connection(self) -> ReserveConnection:
        """Return the connection that waits, opened when it is first needed.  May switch."""
        with self._opening:
            if self._waiting is None:
                deadline = Deadline(self.client.connect_timeout)
                kind = partial(
                    ReserveConnection,
                    server=self._server,
                    owner=self.owner,
                    reservations=self._reservations,
                )
                waiting = self._connect(kind, deadline)
                waiting.open(deadline.renewed())
                waiting.watch(self._options.reply_timeout)
                self._waiting = waiting
            return self._waiting

    def close(self) -> None:
        """Close it.  May switch."""
        self._reservations.stop()
        if self._waiting is not None:
            self._waiting.leave()
            # Behind what was posted without waiting for it.
            self._server.ask([line(b"stats-job", 0)])
        self.drop()

    def drop(self) -> None:
        self._is_over = True
        self._reservations.stop()
        for pipeline in self._pipelines:
            pipeline.close()

    # -- queues

    def make_queue(self, name: str, declaration: Declaration) -> Declaration:
        server, tube = self._server, _declaration_tube(name)
        body = declaration.text().encode()
        if len(body) > server.longest_job:
            text = f"the declaration of queue {name!r} must have at most {server.longest_job} bytes"
            raise invalid_argument(f"{text}, got {len(body)}", Method.QUEUE_DECLARE)
        if declaration.owner is not None:
            self._show(declaration.owner)
        number: int | None = None
        while (found := self._declared(tube)) is None:
            (made,) = server.ask_using(tube, [put(0, 0, 0, body)])
            if made.word != b"INSERTED":
                error = server.refused(made, f"declaring queue {name!r}")
                raise DeclarationRefused(str(error)) if isinstance(error, ServerRefuses) else error
            number = made.number
        if number not in (None, found.number):
            server.ask([line(b"delete", number)])  # another client was faster
        return Declaration.read(found.body)

    def find_queue(self, name: str) -> Declaration | None:
        """Return a queue that is declared, or whose tube has jobs or waiting clients.

        That of a link that is gone goes now.
        """
        tube, declared_in = queue_tube(name), _declaration_tube(name)
        while (found := self._declared(declared_in)) is not None:
            if not self._is_orphan(name, found):
                return Declaration.read(found.body)
        return Declaration(durable=True) if _is_used(self._server.counts(tube)) else None

    def _declared(self, tube: bytes) -> Reply | None:
        """Return the job of a declaration; None: there is none.  May switch."""
        while True:
            peeked, again = self._server.ask_using(tube, [_PEEK, _PEEK])
            if is_whole(peeked, again):
                return peeked
            for reply in (peeked, again):
                if reply.word not in (b"FOUND", b"NOT_FOUND"):
                    raise self._server.refused(reply, "looking up a queue")
            if again.word == b"NOT_FOUND":
                return None

    def _is_orphan(self, name: str, declared: Reply) -> bool:
        """Delete a queue if it is exclusive to a link that is gone; return whether it was."""
        owner = Declaration.read(declared.body).owner
        if owner is None or owner == self.owner or self._is_alive(owner):
            return False
        (deleted,) = self._server.ask([line(b"delete", declared.number)])
        if deleted.word == b"DELETED":  # otherwise another client was faster
            self._delete_jobs(name)
        return True

    def drop_queue(self, name: str) -> int:
        tube = _declaration_tube(name)
        while (found := self._declared(tube)) is not None:
            self._server.ask([line(b"delete", found.number)])
        return self._delete_jobs(name)

    def _delete_jobs(self, name: str) -> int:
        """Delete all jobs of a queue, and return how many were ready.  May switch."""
        tube = queue_tube(name)
        self._found.pop(name, None)
        count = self._server.empty(tube)
        while self._server.kick(tube):  # buried ones first, then the delayed
            self._server.empty(tube)
        return count

    # -- consumers and exclusive queues

    def set_consumers(self, name: str, consumers: int, *, exclusive: bool = False) -> bool:
        """See :meth:`Store.set_consumers`.  May switch.

        Two that want to be alone at the same moment may both be refused, but never both succeed.
        """
        shared, alone = CONSUMERS + queue_tube(name), EXCLUSIVE + queue_tube(name)
        if not consumers:
            # The reply that nothing consumes here any more can be relied on: no claim takes anything.
            self.interrupt()
            self._claims.wait_over()
            if self._waiting is not None:
                # Not before: the claim watches it once more, and a tube counts as a queue meanwhile.
                self._waiting.ignore(queue_tube(name))
            self._ignore(shared, alone)
            return True
        if not exclusive and shared in self._watched:
            return True
        tubes = [shared, alone] if exclusive else [shared]
        # First be seen, then look: of two who come at the same time one sees the other at least.
        self._watched.update(tubes)
        commands = [line(b"watch", tube) for tube in tubes]
        stats = [line(b"stats-tube", shared), line(b"stats-tube", alone)]
        replies = self._server.ask([*commands, *stats])
        others, lonely = (
            number_of(self._server.read_counts(reply), b"current-watching")
            for reply in replies[-2:]
        )
        own = int(alone in self._watched)
        may = lonely <= own and not (exclusive and others > 1)
        if not may:
            self._ignore(*tubes)
        return may

    def other_consumers(self, name: str) -> int:
        tube = CONSUMERS + queue_tube(name)
        watching = number_of(self._server.counts(tube), b"current-watching")
        return max(watching - int(tube in self._watched), 0)

    def _show(self, owner: str) -> None:
        """Show that the owner of exclusive queues is alive.  May switch."""
        tube = OWNER + tube_of(owner)
        if tube not in self._watched:
            self._watched.add(tube)
            self._server.ask([line(b"watch", tube)])

    def _is_alive(self, owner: str) -> bool:
        """Return whether the link of an exclusive queue is connected.  May switch."""
        counts = self._server.counts(OWNER + tube_of(owner))
        return number_of(counts, b"current-watching") > 0

    def _ignore(self, *tubes: bytes) -> None:
        for tube in tubes:
            if tube in self._watched:
                self._watched.discard(tube)
                self._server.post(line(b"ignore", tube), ignore_reply)

    # -- counting and deleting messages

    def purge(self, name: str) -> int:
        return self._server.empty(queue_tube(name))

    def size(self, name: str) -> int:
        return number_of(self._server.counts(queue_tube(name)), b"current-jobs-ready")

    def kick(self, name: str, limit: int) -> int:
        """Let buried messages be delivered again, or delayed ones now; return how many.  May switch."""
        return self._server.kick(queue_tube(name), limit)

    # -- messages

    def put(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        server = self._server
        server.wait_writable()
        outcomes: list[Exception | None] = [None] * len(entries)
        commands: list[bytes] = []
        #: Queue -> where the replies about its declaration and its tube end.
        looks: dict[str, int] = {}
        #: Number of the entry -> where its reply ends.
        puts: dict[int, int] = {}
        bodies: dict[tuple[int, float | None, int], bytes] = {}
        now = monotonic()
        for number, entry in enumerate(entries):
            try:
                tube = queue_tube(entry.queue)
                delay = whole_seconds(entry.delay)
                body = self._body(entry, delay, bodies)
                if entry.queue not in looks and self._found.get(entry.queue, 0.0) <= now:
                    commands += server.using(_declaration_tube(entry.queue))
                    commands += [_PEEK, _PEEK, line(b"stats-tube", tube)]
                    looks[entry.queue] = len(commands)
            except (PreconditionFailed, JobTooBig) as exc:
                outcomes[number] = exc
                continue
            commands += server.using(tube)
            commands.append(put(urgency(entry.priority), delay, self._time_to_run, body))
            puts[number] = len(commands)
        replies = server.ask(commands)
        absent = set()
        for queue, end in looks.items():
            peeked, again, counted = replies[end - 3 : end]
            counts = server.read_counts(counted)
            if peeked.word != b"FOUND" and not _is_used(counts):
                absent.add(queue)
            elif is_whole(peeked, again) and self._is_orphan(queue, peeked):
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
        server.ask([line(b"delete", number) for number in useless])
        return outcomes

    def _remember(self, queues: Iterable[str], now: float) -> None:
        if len(self._found) > MOST_KNOWN:
            self._found.clear()
        self._found.update(dict.fromkeys(queues, now + FRESH))

    def _body(
        self, entry: Entry, delay: int, bodies: dict[tuple[int, float | None, int], bytes]
    ) -> bytes:
        """Return a message as it is stored; copies of one are made once.

        The time for which it lives begins when it is due.

        Raises:
            JobTooBig: the server would not take it.
        """
        key = (id(entry.envelope), entry.lifetime, delay)
        body = bodies.get(key)
        if body is None:
            envelope = entry.envelope
            if entry.lifetime is not None:
                envelope = {**envelope, EXPIRES_AT: time() + delay + entry.lifetime}
            body = bodies[key] = envelope_json(envelope).encode()
        limit = self._server.longest_job
        if len(body) > limit:
            raise JobTooBig(
                f"{self._where}: a message must have at most {limit} bytes with its envelope, got "
                f"{len(body)}: send less, or start beanstalkd with a larger limit, as "
                f"-z {max(len(body), 2 * limit)}"
            )
        return body

    def claim(self, wanted: Mapping[str, int], wait: float) -> Sequence[Claimed]:
        tubes = {queue_tube(queue): min(count, CLAIM) for queue, count in wanted.items()}
        return [self._claimed(taken) for taken in self._claims.claim(tubes, wait)]

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
        requests = [
            self._with_copies(request) if request.entries else request for request in requests
        ]
        self._reservations.discard(request.handle for request in requests)
        commands = [(request.handle, self._command(request)) for request in requests]
        for reply in self._post_all(commands):
            if reply.word not in _SETTLED:
                raise self._server.refused(reply, "settling a message")

    def _with_copies(self, request: SettleRequest) -> SettleRequest:
        """Store the copies of a request; without them the message stays."""
        outcomes = self.put(request.entries)
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
        replies = self._post_all([(job, line(b"touch", job.number)) for job in handles])
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


def _declaration_tube(queue: str) -> bytes:
    """Return the tube of a queue's declaration.

    Raises:
        PreconditionFailed: the name is too long.
    """
    tube, longest = queue_tube(queue), LONGEST_TUBE - len(QUEUES)
    if len(tube) > longest:
        raise invalid_argument(
            f"name {queue!r} takes {len(tube)} bytes as a tube's name, and must take at most {longest}",
            Method.QUEUE_DECLARE,
        )
    return QUEUES + tube


def _is_used(counts: dict[bytes, bytes]) -> bool:
    """Return whether a tube has jobs or consumers: programs of other libraries declare nothing."""
    return any(number_of(counts, name) for name in _USES)


_USES: Final = (
    b"current-jobs-ready",
    b"current-jobs-reserved",
    b"current-jobs-delayed",
    b"current-jobs-buried",
    b"current-watching",
)
