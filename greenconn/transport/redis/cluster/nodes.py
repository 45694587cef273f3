"""The nodes of a cluster: which of them serves which slots, and one socket to each that is used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from random import shuffle
from time import monotonic
from typing import Any, Final, NamedTuple

from redis.exceptions import ResponseError

from greenconn.credentials import SuppliedError
from greenconn.green.deadline import Deadline
from greenconn.green.single_flight import SingleFlight
from greenconn.green.supervisor import spawn
from greenconn.green.ticker import Ticker
from greenconn.transport.redis.errors import LinkLost, LoginRefused, NotRedis, ServerNotReady
from greenconn.transport.redis.pipeline import Pipeline, ignore
from greenconn.transport.redis.server import Address, Login, Welcome, check_eviction, open_pipeline
from greenconn.wire.resp import ErrorReply, pack

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
            reply = pipeline.call(_SLOTS, deadline, "asking for slots")
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
