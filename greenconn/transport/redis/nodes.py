"""The nodes of a cluster: which of them serves which slots, and one socket to each that is used.

The way to one slot
-------------------
All keys of a partition are in one slot, so its commands go to one node at a time, over the socket that
all partitions there share::

    IDLE     no command was sent yet
    SEEKING  the node is being looked for, or asked to wait; commands are kept
    READY    commands leave at once
    CLOSED   the link is over

Callbacks get their replies in the order of the commands, as on a single server.  A reply that says
where the slot is now, or that it is not served at this moment, is no answer: nothing was carried out.
When all replies that were due have come, the node is looked for, and these commands are sent again, in
their order, before those that came meanwhile:

- ``MOVED``: the slot is at another node.
- ``ASK``: the slot is being moved, and this key is at the other node already: that is asked, once.
- ``TRYAGAIN``: the slot is being moved, and only some of the keys are there: later.
- The same, found out by a script that had begun: later, if it may be carried out twice.
- ``CLUSTERDOWN`` and others: the cluster is asked for its slots until it serves this one.

When the socket is lost, commands that may be carried out twice are sent again.  The others (pushes,
claims) get :class:`~greenconn.transport.redis.errors.NodeLost`, since their outcome is unknown.
Commands that wait for longer than ``reply_timeout`` get it, too.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from random import shuffle
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gevent import Greenlet, get_hub
from redis.exceptions import ResponseError

from greenconn.broker.publishing import Completion
from greenconn.credentials import SuppliedError
from greenconn.exceptions import error_text
from greenconn.green.deadline import Deadline, is_thrown
from greenconn.green.retry import Backoff, RetryPolicy, attempts, sleep
from greenconn.green.slot import Condition, SingleFlight
from greenconn.green.supervisor import State, Ticker, moved, spawn
from greenconn.transport.redis.errors import (
    LinkLost,
    LoginRefused,
    NodeLost,
    NotRedis,
    ServerNotReady,
    as_error,
)
from greenconn.transport.redis.pipeline import ENDLESS, CommandPipeline, Pipeline, ignore
from greenconn.transport.redis.scripts import CLAIM, CLAIM_ACTIVE, EXPIRE, PUSH
from greenconn.transport.redis.server import Address, Login, Welcome, check_eviction, open_pipeline
from greenconn.wire.resp import ErrorReply, pack

if TYPE_CHECKING:
    from greenconn.transport.redis.publishing import ReplicaConfirms

logger = logging.getLogger("greenconn.transport.redis")

#: Seconds of silence after which others are asked whether a node still serves its slots.
SILENCE: Final = 1.0
_SLOTS: Final = pack("CLUSTER", "SLOTS")
_TRACK: Final = pack("CLIENT", "TRACKING", "ON")
#: Errors after which another node is asked.
_PASSING: Final = (OSError, LinkLost, ResponseError)


class ClusterUnreachable(ServerNotReady):
    """No node of a cluster can be reached."""


class Place(NamedTuple):
    """The address under which a cluster knows one of its nodes."""

    host: str
    port: int


def place_named(reply: ErrorReply, asked: Pipeline | None) -> Place:
    """Return the node that a ``MOVED`` or ``ASK`` names.

    Arguments:
        asked: the socket over which it came; a node without a name is at the same address.
    """
    host, _, port = str(reply).split(" ")[2].rpartition(":")
    if not host and asked is not None:
        host = asked.stream.peer_address()[1][0]
    return Place(host, int(port))


class SlotRange(NamedTuple):
    """Slots that follow each other, and the node that serves them."""

    first: int
    last: int
    place: Place


class Node:
    """A node that was used, and the socket to it.

    Attributes:
        pipeline: the socket that was opened last; None: there was none.
    """

    def __init__(self, place: Place, lost: Callable[[Pipeline], None]) -> None:
        self.place = place
        self._lost = lost
        self.pipeline: Pipeline | None = None

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent to it."""
        return self.pipeline is not None and self.pipeline.lost is None

    def on_lost(self, exc: LinkLost) -> None:
        """Note that the socket is lost.  In the reader or in the hub; never switches."""
        pipeline, self.pipeline = self.pipeline, None
        if pipeline is not None:
            self._lost(pipeline)


class Nodes:
    """The nodes of one cluster, as one link uses them.

    Arguments:
        seeds: where the cluster is asked for its nodes first.
        login: of all nodes.
        connect_timeout: seconds for one connection; None waits.
        watch: begins to watch whether a server answers.
        on_push: takes the pushes of all nodes, in the reader.
        on_lost: called when the socket to a node is lost.  Never switches.
    """

    def __init__(
        self,
        seeds: Sequence[Address],
        login: Login,
        connect_timeout: float | None,
        watch: Callable[[Pipeline], None],
        on_push: Callable[[list[Any]], None],
        on_lost: Callable[[Pipeline], None],
    ) -> None:
        self._seeds = seeds
        self._login = login
        self.connect_timeout = connect_timeout
        self._watch = watch
        self._on_push = on_push
        self._on_lost = on_lost
        self._flight = SingleFlight("redis-node")
        self._nodes: dict[Place, Node] = {}
        #: Sockets beside those for commands, and the nodes that they lead to.
        self._further: dict[Pipeline, Place] = {}
        self._ranges: list[SlotRange] = []
        #: Slots that a node has said to be elsewhere since.
        self._moved: dict[int, Place] = {}
        self._is_closed = False
        self._ticker: Ticker | None = None

    # -- where slots are

    def place_of(self, slot: int) -> Place | None:
        """Return the node that serves a slot; None: none is known.  Never switches."""
        moved = self._moved.get(slot)
        if moved is not None:
            return moved
        for each in self._ranges:
            if each.first <= slot <= each.last:
                return each.place
        return None

    def note_moved(self, slot: int, place: Place) -> None:
        """Note that a node has said where a slot is now.  Never switches."""
        self._moved[slot] = place

    def places(self) -> list[Place]:
        """Return the nodes that serve slots, as far as they are known.  Never switches."""
        return list(dict.fromkeys((*(each.place for each in self._ranges), *self._moved.values())))

    def refresh(self, deadline: Deadline | None = None) -> None:
        """Ask a node which of them serves which slots.  May switch.

        Arguments:
            deadline: of the attempt to connect of which this is a part: the first seed may take all of
                it, since the next attempt begins with another.  None: no node takes more than its share
                of ``connect_timeout``, before those that were silent get all of it.

        Raises:
            ClusterUnreachable: none answers; says why.  The error of the only seed is raised as it is.
            LoginRefused: they do not take the user name or the password.
            TimeoutError: the deadline has ended.
        """
        self._flight.run("slots", partial(self._refresh, deadline), deadline)

    def _refresh(self, deadline: Deadline | None) -> None:
        errors: list[Exception] = []
        open_ones = [each.pipeline for each in self._nodes.values() if each.pipeline is not None]
        open_ones.sort(key=lambda each: each.stream.received_at, reverse=True)
        asks: list[Callable[[Deadline], None]] = [
            partial(self._ask_over, each) for each in open_ones
        ]
        asks += [partial(self._ask, each) for each in self._addresses()]
        silent: list[Callable[[Deadline], None]] = []
        together = Deadline(self.connect_timeout)
        for tried, ask in enumerate(asks):
            share = deadline or together.share(len(asks) - tried)
            if _is_answered(ask, share, errors):
                return
            if share.has_ended:
                if deadline is not None:
                    break
                silent.append(ask)
        if len(asks) > 1:
            for ask in silent:
                if _is_answered(ask, Deadline(self.connect_timeout), errors):
                    return
        if len(errors) == 1 and not self._ranges:
            raise errors[0]  # of the only seed: as that of a single server
        raise _unreachable(errors)

    def _addresses(self) -> list[Address]:
        """Return all addresses at which there may be a node, the seeds in front."""
        known = self.places()
        shuffle(known)
        seeds = (Place(each.host, each.port) for each in self._seeds)
        return [self._address(each) for each in dict.fromkeys((*seeds, *known))]

    def _ask(self, address: Address, deadline: Deadline) -> None:
        """Ask over a socket of its own, also a node that serves no slots.  May switch."""
        login = self._any_login()
        pipeline, _ = open_pipeline(address, login, deadline, ignore, ignore)
        try:
            reply = pipeline.call(_SLOTS, deadline.renewed(), "asking for slots")
            self._take_slots(reply, address.host, address.where)
        finally:
            pipeline.close()

    def _ask_over(self, pipeline: Pipeline, deadline: Deadline) -> None:
        """Ask over an open socket.  May switch."""
        reply = pipeline.call(_SLOTS, deadline, "asking for slots")
        self._take_slots(reply, pipeline.stream.peer_address()[1][0], pipeline.where)

    def _any_login(self) -> Login:
        """Return the login for a node that may be a replica."""
        login = self._login
        return Login(
            credentials=login.credentials, client_name=login.client_name, must_be_master=False
        )

    def _take_slots(self, reply: Any, host: str, where: str) -> None:
        try:
            ranges = [
                SlotRange(int(first), int(last), Place((named or b"").decode() or host, int(port)))
                for first, last, (named, port, *_), *_ in reply
                if named != b"?"
            ]
        except (TypeError, ValueError, LookupError, AttributeError) as exc:
            raise NotRedis(f"{where}: unexpected reply to CLUSTER SLOTS: {reply!r:.60}") from exc
        self._ranges = ranges
        self._moved.clear()
        serving = {each.place for each in ranges}
        for node in list(self._nodes.values()):
            if node.pipeline is not None and node.place not in serving:
                # Another one has taken its slots.  It may be silent, so it cannot say so itself.
                node.pipeline.end(LinkLost(f"{node.pipeline.where} serves no slots any more"))
        for pipeline, place in list(self._further.items()):
            if place not in serving:
                pipeline.end(LinkLost(f"{pipeline.where} serves no slots any more"))

    # -- sockets

    def _address(self, place: Place) -> Address:
        seed = self._seeds[0]
        return Address(
            host=place.host,
            port=place.port,
            ssl=seed.ssl,
            where=f"{seed.where} (node {place.host}:{place.port})",
            settings=seed.settings,
        )

    def open(self, place: Place) -> Pipeline:
        """Return the socket to a node, opened now if it is not.  May switch.

        Raises:
            Exception: see :func:`~greenconn.transport.redis.server.open_pipeline`.
        """
        node = self._nodes.get(place)
        if node is None:
            node = self._nodes[place] = Node(place, self._on_lost)
        pipeline = node.pipeline
        if pipeline is None or pipeline.lost is not None:
            pipeline = self._flight.run(place, partial(self._open, node))
        return pipeline

    def _open(self, node: Node) -> Pipeline:
        deadline = Deadline(self.connect_timeout)
        address = self._address(node.place)
        pipeline, welcome = open_pipeline(
            address, self._login, deadline, self._on_push, node.on_lost
        )
        if self._is_closed:
            pipeline.close()
            raise LinkLost(f"{address.where}: the connection was closed")
        if welcome.protocol == 3:
            # Nothing is registered by this alone; reads are, from now on.
            pipeline.post(_TRACK)
        check_eviction(pipeline)
        self._watch(pipeline)
        node.pipeline = pipeline
        if self._ticker is None:
            self._ticker = Ticker(SILENCE, self._tick, "redis-nodes")
            self._ticker.start()
        return pipeline

    def open_further(
        self,
        place: Place,
        on_push: Callable[[list[Any]], None],
        on_lost: Callable[[LinkLost], None],
    ) -> tuple[Pipeline, Welcome]:
        """Open a socket to a node beside that for commands.  May switch.

        It is watched as that is, and ended when the node serves no slots any more.

        Raises:
            Exception: see :func:`~greenconn.transport.redis.server.open_pipeline`.
        """
        address = self._address(place)
        deadline = Deadline(self.connect_timeout)
        pipeline, welcome = open_pipeline(address, self._login, deadline, on_push, on_lost)
        if self._is_closed:
            pipeline.close()
            raise LinkLost(f"{address.where}: the connection was closed")
        self._watch(pipeline)
        self._further = {each: at for each, at in self._further.items() if each.lost is None}
        self._further[pipeline] = place
        return pipeline, welcome

    def _tick(self, lag: float) -> None:
        # In the hub.
        now = monotonic()
        late = any(each.overdue(now) > SILENCE for each in self.pipelines())
        if late and not lag and not self._flight.is_running("slots"):
            spawn("redis-slots", self._look_again)

    def _look_again(self) -> None:
        """Ask whether the slots of a silent node are elsewhere now.  May switch."""
        try:
            self.refresh()
        except (ClusterUnreachable, LoginRefused, SuppliedError) as exc:
            logger.debug("cannot ask for slots: %s", exc)  # its commands are late, soon

    def open_any(
        self,
        deadline: Deadline,
        on_push: Callable[[list[Any]], None],
        on_lost: Callable[[LinkLost], None],
    ) -> tuple[Pipeline, Welcome]:
        """Open a further socket to any node.  May switch.

        Arguments:
            deadline: of all nodes together, within ``connect_timeout``; each gets its share.

        Raises:
            ClusterUnreachable: none can be reached.
        """
        errors: list[Exception] = []
        addresses = self._addresses()[::-1]
        together = deadline.within(self.connect_timeout)
        for tried, address in enumerate(addresses):
            try:
                share = together.share(len(addresses) - tried)
                return open_pipeline(address, self._any_login(), share, on_push, on_lost)
            except (LoginRefused, SuppliedError):
                raise  # at any other node, too
            except _PASSING as exc:
                errors.append(exc)
        raise _unreachable(errors)

    def pipelines(self) -> Collection[Pipeline]:
        """Return the open sockets.  Never switches."""
        found = (*(each.pipeline for each in self._nodes.values()), *self._further)
        return [each for each in found if each is not None and each.lost is None]

    def close(self) -> None:
        """Close all sockets.  Never switches."""
        self._stop()
        for pipeline in self.pipelines():
            pipeline.close()

    def forget(self) -> None:
        """Leave them to the parent process, in the child of a fork."""
        self._stop()
        for node in self._nodes.values():
            if node.pipeline is not None:
                node.pipeline.forget()
        for pipeline in self._further:
            pipeline.forget()

    def _stop(self) -> None:
        self._is_closed = True
        if self._ticker is not None:
            self._ticker.stop()


def _is_answered(
    ask: Callable[[Deadline], None], deadline: Deadline, errors: list[Exception]
) -> bool:
    """Return whether a node answers; else its error is one of *errors*.  May switch."""
    try:
        ask(deadline)
    except _PASSING as exc:
        errors.append(exc)
        return False
    return True


def _unreachable(errors: Sequence[Exception]) -> ClusterUnreachable:
    return ClusterUnreachable(f"no node of the cluster answers ({'; '.join(map(str, errors))})")


class AnyNode:
    """Opens further sockets to some node of a cluster.

    Arguments:
        nodes: of the cluster.
    """

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    @property
    def connect_timeout(self) -> float | None:
        """Seconds for one connection; None waits."""
        return self._nodes.connect_timeout

    def open(
        self,
        deadline: Deadline,
        on_push: Callable[[list[Any]], None],
        on_lost: Callable[[LinkLost], None],
    ) -> tuple[Pipeline, Welcome]:
        """Open a socket.  May switch."""
        return self._nodes.open_any(deadline, on_push, on_lost)


#: While the node of a slot is away.
SEEKING: Final = RetryPolicy(first=0.02, longest=0.5)
#: While keys of the slot are on their way to another node.
WAITING: Final = RetryPolicy(first=0.005, longest=0.2)
_ASKING: Final = pack("ASKING")
#: First words of replies after which the cluster is asked where the slot is.
NOT_SERVED: Final = frozenset({"CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "BUSY"})
#: What a script says that comes upon a key that is at the other node, or that it has just emptied.
_NOT_HERE: Final = "attempted to access a non local key"
_INFO: Final = pack("CLUSTER", "INFO")
_IS_OK: Final = b"cluster_state:ok"
#: Commands, and scripts, that must not be carried out twice.
_ONCE: Final = frozenset({b"LPUSH", b"RPUSH", b"PUBLISH", b"SPUBLISH"})
_SCRIPTS_ONCE: Final = frozenset(
    name for script in (CLAIM, CLAIM_ACTIVE, EXPIRE, PUSH) for name in (script.text, script.digest)
)


class SlotState(State):
    """See the module's theory."""

    IDLE = "idle"
    SEEKING = "seeking"
    READY = "ready"
    CLOSED = "closed"


_IDLE, _SEEKING, _READY, _CLOSED = SlotState

SLOT_MOVES: Final[Mapping[SlotState, frozenset[SlotState]]] = {
    SlotState.IDLE: frozenset({SlotState.SEEKING, SlotState.CLOSED}),
    SlotState.SEEKING: frozenset({SlotState.READY, SlotState.CLOSED}),
    SlotState.READY: frozenset({SlotState.SEEKING, SlotState.CLOSED}),
    SlotState.CLOSED: frozenset(),
}


def may_repeat(command: bytes) -> bool:
    """Return whether a command (packed) may be carried out twice."""
    _, _, name, *behind = command.split(b"\r\n", 5)
    if name in (b"EVAL", b"EVALSHA"):
        return behind[1] not in _SCRIPTS_ONCE
    return name not in _ONCE


class Sent:
    """A command, and what it is waiting for.

    Attributes:
        asks: the node that has the keys already, while the slot is being moved; None: no such.
        callback: gets the reply.
        done: gets the outcome of a message, when replicas have it; None: *callback* is enough.
        is_answered: *reply* is there.
        is_repeated: a socket was lost before the answer, so that it may have been carried out before.
        node: the socket over which it was sent last.
    """

    __slots__ = (
        "asks",
        "callback",
        "command",
        "done",
        "is_answered",
        "is_repeated",
        "node",
        "reply",
    )

    def __init__(
        self,
        command: bytes,
        callback: Callable[[Any], Any] | None,
        done: Completion | None = None,
    ) -> None:
        self.command = command
        self.callback = callback
        self.done = done
        self.node: Pipeline | None = None
        self.asks: Place | None = None
        self.is_answered = self.is_repeated = False
        self.reply: Any = None


class SlotWriter:
    """The sending side of one slot."""

    def __init__(self, pipeline: SlotPipeline) -> None:
        self._pipeline = pipeline

    @property
    def must_wait(self) -> bool:
        """Whether the node is not known now, or takes no more."""
        return self._pipeline.must_wait

    def before_flush(self, callback: Callable[[], None]) -> None:
        """Call *callback* in the hub when all that can run now has run.  Never switches."""
        get_hub().loop.run_callback(callback)


class SlotPipeline(CommandPipeline):
    """The way of commands to one slot.

    Arguments:
        nodes: of the cluster.
        slot: its number.
        where: the URL, password masked, for messages.
        reply_timeout: seconds that a command waits for its slot to be served; None: no limit.
        end: ends the link.  Never switches.
        confirms: of the replicas that must have what is stored; None: there need be none.
        on_moved: called when the slot is at another node than before, or the socket is another one;
            with whether commands may have been lost with it.  Never switches.

    Attributes:
        is_repeated: the command whose callback runs may have been carried out before.
        lost: why the link is over; None while it is not.
        writer: the sending side.
    """

    def __init__(
        self,
        nodes: Nodes,
        slot: int,
        where: str,
        reply_timeout: float | None,
        end: Callable[[BaseException], None],
        on_moved: Callable[[bool], None],
        confirms: ReplicaConfirms | None = None,
    ) -> None:
        self._nodes = nodes
        self.slot = slot
        self.where = where
        self._reply_timeout = reply_timeout
        self._end = end
        self._on_moved = on_moved
        self._confirms = confirms
        self.is_repeated = False
        self.lost: BaseException | None = None
        self.writer = SlotWriter(self)
        self.state: SlotState = _IDLE
        #: The socket that was used last.
        self.node: Pipeline | None = None
        #: Commands whose callbacks have not been called, in order.
        self._waiting: deque[Sent] = deque()
        #: What interrupted a command; see :class:`PipelineLife`.
        self._interruption: BaseException | None = None
        #: Those of them that are to be sent: again, and for the first time.
        self._again: list[Sent] = []
        self._kept: deque[Sent] = deque()
        #: Replies that are due.
        self._due = 0
        #: Why the node is looked for.
        self._is_lost = self._is_unserved = self._must_pause = False
        self._moved_to: Place | None = None
        self._reason = ""
        self._pauses: Backoff | None = None
        #: When the trouble began; None: there is none.
        self._since: float | None = None
        self._is_ready = Condition()
        self._greenlet: Greenlet[..., Any] | None = None

    def __repr__(self) -> str:
        return f"<Slot {self.slot}: {self.state.value}, {len(self._waiting)} replies due>"

    def _move(self, state: SlotState) -> None:
        self.state = moved(self.state, state, SLOT_MOVES, "a slot")

    @property
    def must_wait(self) -> bool:
        """Whether :meth:`wait_writable` is to be called before a command."""
        return self.state is not _READY or self.node is None or self.node.writer.must_wait

    # -- commands

    def post(self, command: bytes, callback: Callable[[Any], Any] | None = None) -> None:
        """Send one command, or keep it until the node is known.  Never switches."""
        self._end_interrupted()
        if self.lost is not None:
            if callback is not None:
                callback(self.lost)
            return
        self._begin(Sent(command, callback))

    def post_stored(self, command: bytes, done: Completion) -> None:
        """Send a command that stores a message; *done* gets the outcome.  Never switches.

        Where replicas must have the message, it waits for them.
        """
        if self._confirms is None or self.lost is not None:
            self.post(command, done.offer)
        else:
            self._begin(Sent(command, None, done))

    def _begin(self, sent: Sent) -> None:
        try:
            self._waiting.append(sent)
            if self.state is _READY and self.node is not None and self.node.lost is None:
                self._send(sent)
                return
            self._kept.append(sent)
            if self.state is _READY:  # the loss of its node is about to be noticed
                self._is_lost = True
            if self.state in (_IDLE, _READY):
                self._seek()
        except BaseException as exc:
            self._interruption = exc
            self.interrupted(exc)
            raise

    def _end_interrupted(self) -> None:
        """End the link if a command was interrupted."""
        if (exc := self._interruption) is not None:
            self._end(
                LinkLost(f"{self.where}: a command was interrupted by {error_text(exc, repr)}")
            )
            self._interruption = None

    def _send(self, sent: Sent) -> None:
        assert self.node is not None
        self._due += 1
        sent.node = self.node
        self.node.post(sent.command, partial(self._replied, sent))

    def wait_writable(self, deadline: Deadline) -> None:
        """Wait until the node is known and takes more, or let others run.  May switch.

        Raises:
            TimeoutError: it was not before the deadline, or within ``reply_timeout``; says why.
            LinkLost: the link is lost.
        """
        deadline = deadline.within(self._reply_timeout)
        while self.state is not _READY:
            self._check()
            if self.state is _IDLE:
                self._seek()
            try:
                self._is_ready.wait(deadline)
            except TimeoutError as exc:
                if is_thrown(exc):
                    raise
                raise TimeoutError(self._unserved_text()) from None
        assert self.node is not None
        if self.node.writer.must_wait:
            self.node.wait_writable(deadline)

    def drain(self, deadline: Deadline = ENDLESS) -> None:
        """Wait until the socket has taken what was sent.  May switch.

        Raises:
            TimeoutError: it was not before the deadline.
        """
        if self._waiting:
            if self.state is not _READY:
                self.wait_writable(deadline)
            if self.node is not None:
                self.node.drain(deadline)

    def _check(self) -> None:
        if self.lost is not None:
            raise self.error(self.lost)

    def error(self, reply: BaseException, what: str = "") -> BaseException:
        """Return the exception to raise for a reply that is one."""
        if isinstance(reply, ErrorReply):
            return as_error(reply, self.where, what)
        if isinstance(reply, LinkLost):  # one for each waiter: a traceback belongs to one greenlet
            own = type(reply)(*reply.args)
            own.__cause__ = reply.__cause__
            return own
        return reply

    # -- replies, in the reader: nothing here may switch or run user code

    def _replied(self, sent: Sent, reply: Any) -> None:
        self._end_interrupted()
        self._due -= 1
        if self.lost is None and isinstance(reply, Exception) and self._is_no_answer(sent, reply):
            self._again.append(sent)
            if self.state is _READY:
                self._move(_SEEKING)
        else:
            if isinstance(reply, LinkLost) and self.lost is None:
                reply = NodeLost(str(reply))
                if self.state is _READY:
                    self._move(_SEEKING)
            elif self._since is not None and self.state is _READY:
                self._since = self._pauses = None
            self._answer(sent, reply)
        if self.state is _SEEKING and not self._due and self._greenlet is None:
            self._all_replied()

    def _answer(self, sent: Sent, reply: Any) -> None:
        sent.reply = reply
        sent.is_answered = True
        waiting = self._waiting
        while waiting and waiting[0].is_answered:
            first = waiting.popleft()
            if first.callback is not None:
                self.is_repeated = first.is_repeated
                first.callback(first.reply)
            elif first.done is not None:
                self._stored(first)

    def _stored(self, sent: Sent) -> None:
        """Wait for the replicas of a message, unless it was not stored.  Never switches."""
        assert sent.done is not None
        is_stored = isinstance(sent.reply, int) and sent.reply > 0
        if is_stored and self._confirms is not None and sent.node is not None:
            self._confirms.add(sent.node, sent.done)
        else:
            sent.done.offer(sent.reply)

    def _is_no_answer(self, sent: Sent, reply: Exception) -> bool:
        """Return whether the command is to be sent again, and note why."""
        if isinstance(reply, LinkLost):
            self._is_lost = True
            self._reason = str(reply)
            is_unwatched = sent.callback is None and sent.done is None
            sent.is_repeated = is_unwatched or may_repeat(sent.command)
            return sent.is_repeated
        if not isinstance(reply, ErrorReply):
            return False
        code = reply.code
        sent.asks = None
        if code == "MOVED":
            self._moved_to = place_named(reply, sent.node)
        elif code == "ASK":
            sent.asks = place_named(reply, sent.node)
        elif code == "TRYAGAIN":
            self._must_pause = True
        elif code == "ERR" and _NOT_HERE in str(reply) and may_repeat(sent.command):
            self._must_pause = sent.is_repeated = True
        elif code in NOT_SERVED:
            self._is_unserved = self._must_pause = True
        else:
            return False
        self._reason = str(reply)
        return True

    # -- looking for the node

    def dropped(self, node: Pipeline) -> None:
        """Note that the socket to a node is lost.  Never switches."""
        if self.node is not node or self.lost is not None:
            return
        self._is_lost = True
        if self.state is _READY:
            self._seek()

    def _seek(self) -> None:
        self._move(_SEEKING)
        if not self._due and self._greenlet is None:
            self._greenlet = spawn("redis-slot", self._run)

    def _all_replied(self) -> None:
        """Go on, as no reply is due any more."""
        if self._again or self._is_lost:
            self._greenlet = spawn("redis-slot", self._run)
        else:
            assert self.node is not None  # what was asked for elsewhere is answered
            self._use(self.node)

    def _run(self) -> None:
        if self._since is None:
            self._since = monotonic()
        try:
            for attempt in attempts(SEEKING, is_retryable=_may_pass):
                with attempt:
                    self._settle(self._find())
                    return
                if self.state is not _SEEKING:
                    return
                self._is_unserved = True
                self._reason = str(attempt.error)
                self._give_up_late()
        except (LoginRefused, ClusterUnreachable) as exc:
            self._greenlet = None
            self._end(exc)

    def _settle(self, node: Pipeline | None) -> None:
        """Go on with what was found.  Never switches."""
        if node is not None and node.lost is not None:
            raise NodeLost(str(node.lost))  # it was lost before this greenlet ran
        self._greenlet = None
        if self.state is not _SEEKING:
            return
        if node is not None:
            self._use(node)
        elif not self._due:
            self._all_replied()

    def _find(self) -> Pipeline | None:
        """Return the socket to the node that serves the slot.  May switch.

        Returns:
            None: commands were sent to the node that the slot is being moved to.
        """
        if self._must_pause:
            self._must_pause = False
            self._give_up_late()
            if self._pauses is None:
                self._pauses = Backoff(WAITING)
            sleep(next(self._pauses))
        nodes = self._nodes
        if self._moved_to is not None:
            nodes.note_moved(self.slot, self._moved_to)
            self._moved_to = None
        elif self._is_lost or self._is_unserved or nodes.place_of(self.slot) is None:
            nodes.refresh()
        elif self._again and all(each.asks is not None for each in self._again):
            self._ask()
            return None
        place = nodes.place_of(self.slot)
        if place is None:
            raise NodeLost(self._reason or "no node has it")
        node = nodes.open(place)
        if self._is_unserved and _IS_OK not in node.call(_INFO, Deadline(nodes.connect_timeout)):
            raise NodeLost(self._reason)
        return node

    def _ask(self) -> None:
        """Send commands to the node that the slot is being moved to.  May switch."""
        place = self._again[0].asks
        assert place is not None
        node = self._nodes.open(place)
        asked, self._again = self._again, []
        for each in asked:
            each.asks = None
            each.node = node
            self._due += 1
            node.post(_ASKING)
            node.post(each.command, partial(self._replied, each))

    def _use(self, node: Pipeline) -> None:
        """Send all that waits to *node*.  Never switches."""
        was_lost, self._is_lost = self._is_lost, False
        self._is_unserved = False
        is_moved = self.node is not None and (was_lost or node is not self.node)
        self.node = node
        self._move(_READY)
        unsent, self._again = [*self._again, *self._kept], []
        self._kept = deque()
        for at, sent in enumerate(unsent):
            if self.state is not _READY or node.lost is not None:  # lost again
                self._kept.extendleft(reversed(unsent[at:]))
                break
            self._send(sent)
        self._is_ready.wake_all()
        if is_moved:
            self._on_moved(was_lost)

    def _give_up_late(self) -> None:
        """Give up on commands that have waited too long.  Never switches."""
        timeout, now = self._reply_timeout, monotonic()
        if timeout and self._since is not None and now - self._since > timeout:
            self._since = now
            unsent, self._again = [*self._again, *self._kept], []
            self._kept = deque()
            error = NodeLost(self._unserved_text())
            for sent in unsent:
                self._answer(sent, error)

    def _unserved_text(self) -> str:
        reason = f": {self._reason}" if self._reason else ""
        return (
            f"{self.where}: no node serves slot {self.slot} now{reason} (CLUSTER INFO says which "
            f"slots have no master; bring their nodes back, or set cluster-require-full-coverage "
            f"to no for the others)"
        )

    # -- ending

    def interrupted(self, exc: BaseException) -> None:
        """End the link, as an exception came between two steps that belong together.

        Where the stack is full, what comes next ends it.
        """
        self._interruption = exc
        if not isinstance(exc, RecursionError):
            self._end_interrupted()

    def end(self, exc: BaseException) -> None:
        """End the link, since it is of no use any more.  Never switches."""
        self._end(exc)

    def close(self) -> None:
        """Close it; who still waits gets an error.  Never switches."""
        self._finish(LinkLost(f"{self.where}: the connection was closed"))
        waiting, self._waiting = self._waiting, deque()
        for sent in waiting:
            if not sent.is_answered:
                sent.reply = self.lost
            if sent.callback is not None:
                sent.callback(sent.reply)
            elif sent.done is not None:
                self._stored(sent)

    def forget(self) -> None:
        """Forget it in the child of a fork: the parent owns it."""
        self._finish(LinkLost(f"{self.where}: the connection was opened before a fork"))
        self._waiting.clear()
        self._is_ready.forget()

    def _finish(self, exc: BaseException) -> None:
        if self.lost is None:
            self.lost = exc
            self._move(_CLOSED)
            greenlet, self._greenlet = self._greenlet, None
            if greenlet is not None:
                greenlet.kill(block=False)
            self._again.clear()
            self._kept.clear()
            self._is_ready.wake_all(exc)


def _may_pass(exc: Exception) -> bool:
    """Return whether looking for the node may succeed later."""
    return not isinstance(exc, (LoginRefused, ClusterUnreachable))
