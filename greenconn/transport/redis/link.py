"""One life of a connection to a Redis: one socket for commands, shared by all channels.

The socket is a :class:`~greenconn.transport.redis.pipeline.Pipeline`.  Beside it the link has what
its channels share: the feeds of the queues that are consumed, what it holds (an *owner* with a
lease), and what it knows of the queues.  Two more sockets are opened when they are needed: one for
fan-out, one for bodies above 1 MiB.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from redis.exceptions import NoScriptError

from greenconn.broker.answers import Answers
from greenconn.broker.channel import BrokerLink, StoreChannel
from greenconn.broker.handover import Handover
from greenconn.broker.leases import Leases
from greenconn.broker.port import Entry
from greenconn.broker.routing import Routing
from greenconn.broker.topology import DirectTopology, Topology
from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.green.limit import Limit
from greenconn.green.supervisor import spawn
from greenconn.transport.redis.client import Clients
from greenconn.transport.redis.directory import RedisDirectory
from greenconn.transport.redis.errors import LinkLost, NotRedis
from greenconn.transport.redis.eviction import ask_for_policy
from greenconn.transport.redis.expiry import Expiry
from greenconn.transport.redis.fanout import BroadcastRouter, Fanout, router_of, topic_name
from greenconn.transport.redis.feed import Feed
from greenconn.transport.redis.holding import RedisHolding
from greenconn.transport.redis.keys import Keys
from greenconn.transport.redis.large import LargeBodies
from greenconn.transport.redis.login import open_pipeline
from greenconn.transport.redis.message import Delivery
from greenconn.transport.redis.owners import owner_of
from greenconn.transport.redis.permissions import Permissions
from greenconn.transport.redis.pipeline import ENDLESS, Pipeline
from greenconn.transport.redis.publishing import RedisPublisher, WindowPublisher
from greenconn.transport.redis.replies import check_reply
from greenconn.transport.redis.routes import routes_of
from greenconn.transport.redis.scripts import Script, Scripts
from greenconn.transport.redis.secret import Secret
from greenconn.transport.redis.subscriptions import RedisSubscriptions
from greenconn.transport.redis.sweeper import Sweeper
from greenconn.transport.redis.topology import RedisTopology
from greenconn.transport.redis.waking import Waking
from greenconn.transport.virtual.exchange import Router
from greenconn.transport.virtual.link import AfterFork
from greenconn.transport.virtual.owners import note_lost
from greenconn.transport.virtual.publishing import Envelope
from greenconn.wire.resp import Argument, ErrorReply, pack

if TYPE_CHECKING:
    from greenconn.transport.redis.sentinel import SwitchWatch
    from greenconn.transport.redis.transport import Transport

__all__ = ["RedisLink"]

logger = logging.getLogger("greenconn.transport.redis")

T = TypeVar("T")

#: Seconds that ``close`` waits for the server.
CLOSE_TIMEOUT: Final = 2.0
_PING: Final = pack("PING")
_TRACK: Final = pack("CLIENT", "TRACKING", "ON")


class RedisLink(BrokerLink):
    """A connection from its opening to its end.

    Arguments:
        transport: has address, login, options and the exchanges.

    Attributes:
        owner: under which this life holds messages; nobody else has the same.  Known once it is open.
        pipeline: the socket for commands.
        records: the exchanges and bindings in the server.
        is_tracking: the server pushes when an idle queue gets a message.
        protocol: the version of Redis' protocol, 3 or 2.
    """

    answers: Answers
    subscriptions: RedisSubscriptions

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport.client)
        self.transport = transport
        self.state = transport.state
        self.options = transport.options
        self.where = transport.address.where
        self.keys: Keys = transport.keys
        self.owner = ""
        self.prefix = ""
        self.scripts = Scripts()
        self.directory: RedisDirectory = RedisDirectory(self)
        self.records = RedisTopology(self)
        self.topology: Topology = DirectTopology(self.records)
        self.routing: Routing = Routing(self)
        self.is_parents = False  #: this process is a child of the one that opened it
        self.holding = RedisHolding(self)
        self.answers = Answers(self)
        self.subscriptions = RedisSubscriptions(self)
        #: Without ``ack_emulation``: nobody holds what was delivered.
        self.forgets = not self.options.ack_emulation
        self.waking = Waking(self)
        self.fanout = Fanout(self)
        self._large = LargeBodies(self)
        self.clients = Clients(self)
        self._master: SwitchWatch | None = None
        self.secret = Secret(self)
        self.leases = Leases(self)
        self.permissions = Permissions(self)
        self.sweeper = Sweeper(self)
        self.expiry = Expiry(self)
        self.feeds: dict[str, Feed] = {}
        self.is_tracking = False
        self.protocol = 3
        self.pipeline: Pipeline
        self._last_number = 0
        #: Numbers of the fields that gets under way may fill.
        self.gets: set[int] = set()

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<Redis connection {self.where} ({state}, {len(self.channels)} channels)>"

    def open(self, deadline: Deadline) -> None:
        """Connect and log in.  May switch.  Whatever goes wrong, nothing stays open.

        Raises:
            Exception: see :func:`~greenconn.transport.redis.login.open_pipeline`.
        """
        transport = self.transport
        self.pipeline, welcome = open_pipeline(
            transport.address, transport.login, deadline, self._on_push, self._on_pipeline_lost
        )
        self.owner = owner_of(welcome.client_id)
        self.prefix = f"gc.{self.owner}."
        self.protocol = welcome.protocol
        try:
            if welcome.protocol == 3:
                # Nothing is registered by this alone; reads are, from now on.
                self.pipeline.post(_TRACK, self._on_tracking)
            ask_for_policy(self)
            self.pipeline.call(_PING, deadline)
            self.watch(self.pipeline)
            self._master = transport.watch_master(self)
            self.secret.watch()
            self._after_fork = AfterFork(self)
        except BaseException:
            self.pipeline.close()
            raise

    def _on_tracking(self, reply: Any) -> None:
        self.is_tracking = reply == b"OK"

    # Commands

    def call(self, command: bytes, deadline: Deadline = ENDLESS, what: str = "") -> Any:
        """Send a command and return its reply; see :meth:`Pipeline.call`.  May switch."""
        self.answers.before_call()
        reply = self.pipeline.call(command, deadline, what)
        self._check_reply(command, reply)
        return reply

    def call_all(
        self, commands: Sequence[bytes], deadline: Deadline = ENDLESS, what: str = ""
    ) -> list[Any]:
        """Send commands and return their replies; see :meth:`Pipeline.call_all`.  May switch."""
        self.answers.before_call()
        replies = self.pipeline.call_all(commands, deadline, what)
        for command, reply in zip(commands, replies, strict=True):
            self._check_reply(command, reply)
        return replies

    def _check_reply(self, command: bytes, reply: Any) -> None:
        try:
            check_reply(command, reply, self.where)
        except NotRedis as exc:
            lost = LinkLost(f"{self.where}: connection lost: {exc}")
            self.pipeline.end(lost)
            raise lost from exc

    def ping(self) -> None:
        """Ask the server something.  May switch."""
        self.call(_PING)

    def check_open(self) -> None:
        """Raise unless open.

        Raises:
            LinkLost: with the reason as ``__cause__``.
        """
        if self.lost is not None:
            raise LinkLost(f"connection is closed ({self.lost})") from self.lost

    def large(self) -> Pipeline:
        """The socket for large bodies.  May switch."""
        return self._large.pipeline()

    def other_pipelines(self) -> list[Pipeline]:
        """The open sockets beside that for commands."""
        found = (self.fanout.pipeline, self._large.current)
        return [each for each in found if each is not None and each.lost is None]

    def run(self, script: Script, keys: tuple[bytes, ...], *args: Argument, what: str) -> Any:
        """Run a script and return its reply.  May switch.

        Raises:
            Exception: as :meth:`call`.
        """
        try:
            return self.call(self.scripts.call(script, keys, *args), what=what)
        except NoScriptError:
            # Somebody has flushed the scripts: say it with its text.
            self.scripts.forget()
            return self.call(self.scripts.call(script, keys, *args), what=what)

    def post_script(
        self,
        script: Script,
        keys: tuple[bytes, ...],
        *args: Argument,
        done: Callable[[Any], object],
    ) -> None:
        """Post a script; *done* gets its reply, in the reader.  Never switches."""

        def replied(reply: Any) -> None:
            if isinstance(reply, ErrorReply) and reply.code == "NOSCRIPT":
                self.scripts.forget()  # somebody has flushed them
                self.post_script(script, keys, *args, done=done)
            else:
                done(reply)

        self.pipeline.post(self.scripts.call(script, keys, *args), replied)

    def watch(self, pipeline: Pipeline) -> None:
        """Watch from now on whether the server answers on *pipeline*."""
        options = self.options
        timeout = options.socket_timeout or options.reply_timeout
        pipeline.watch(timeout, options.health_check_interval)

    # Exchanges

    def ask(self, what: str, function: Callable[..., T], *args: Any) -> T:
        """Return ``function(*args)``, which asks the server.  May switch."""
        return function(*args)

    def is_broadcast(self, exchange: str) -> bool:
        """Return whether messages to an exchange are published to a channel.  Never switches."""
        known = self.state.exchanges.get(exchange)
        return known is not None and isinstance(known.router, BroadcastRouter)

    def router_of(self, exchange: str, type: str) -> Callable[[], Router] | None:
        """Return what makes the router of an exchange; None: the usual one of its type."""
        return router_of(self.options, exchange, type)

    # Consuming

    def feed(self, queue: str) -> Feed:
        """What gives the messages of *queue* to the consumers of this link."""
        feed = self.feeds.get(queue)
        if feed is None:
            feed = self.feeds[queue] = Feed(self, queue)
        return feed

    def take_numbers(self, count: int) -> int:
        """Reserve numbers for fields; the first of them."""
        first = self._last_number + 1
        self._last_number += count
        return first

    def held(self) -> Iterable[Delivery]:
        """All that its channels hold."""
        for channel in list(self.channels.values()):
            if isinstance(channel, StoreChannel):
                yield from list(channel.deliveries.unanswered.values())

    @property
    def handover(self) -> Handover:
        """What takes answers that come when this life is over."""
        return self.transport.handover

    def note_late(self, count: int) -> None:
        """Note that so many messages were answered too late.  Never switches."""
        self.leases.note_late(count)

    def keep_alive(self) -> None:
        """See that others know this owner as living from now on.  Never switches."""
        if not self.leases.is_renewing:
            self.leases.start()
            self.leases.renew()
            self.sweeper.start()

    def routes(self, exchange: str, routing_key: str, headers: Mapping[str, Any]) -> list[str]:
        """Return the queues, and what stands for channels, that a dead letter goes to.  May switch.

        Raises:
            NotFound: there is no such exchange.
        """
        if not exchange:
            return self.routing.routes(exchange, routing_key, headers)
        routes = routes_of(self, exchange, routing_key, headers)
        return [*routes.queues, *(topic_name(*topic) for topic in routes.topics)]

    def entries(self, envelope: Envelope, queues: Sequence[str]) -> list[Entry]:
        """Return a message on its way into *queues*."""
        return [Entry(queue, envelope) for queue in queues]

    def failed(self, exc: BaseException, what: str) -> None:
        """Log that a call to the server failed.  Never switches."""
        if self.lost is None:
            spawn("log", logger.error, "%s: %s failed: %s", self.where, what, exc)

    def publisher(self, channel: StoreChannel[Any]) -> RedisPublisher:
        """Return what *channel* publishes with."""
        size = self.options.publish_window
        return WindowPublisher(channel, self, size) if size else RedisPublisher(channel, self)

    def flush_answers(self) -> None:
        """Return when all answers have been given to the socket.  May switch.

        Where the connection is gone it does nothing.

        Raises:
            TimeoutError: the server took too little within its ``reply_timeout``.
        """
        if self.lost is None:
            try:
                self.answers.wait_routed(Deadline(self.options.reply_timeout))
            except RecoverableConnectionError:
                return
            self.answers.flush()
            self.pipeline.drain()

    def flush(self, deadline: Deadline) -> None:
        """Return when all is written, and publishes of a window are answered.  May switch.

        Raises:
            TimeoutError: the server took or answered too little before the deadline.
            Exception: what became of a publish.
        """
        self.home.check(self)
        self.check_open()
        for channel in list(self.channels.values()):
            channel.flush(deadline.left())
        self.answers.wait_routed(deadline)
        self.answers.flush()
        for pipeline in (self.pipeline, *self.other_pipelines()):
            pipeline.drain(deadline)
        unasked = self.transport.unasked
        if unasked.awaited:  # of channels that were closed; answers keep their order
            self.pipeline.call(_PING, deadline)
        failures = unasked.failures.take()
        if failures:
            raise failures.error(self.pipeline)
        self.check_open()

    # Ending

    def close(self) -> None:
        """Close it: what was not answered goes back first, at once.  May switch."""
        if self.lost is not None:
            return
        self.home.check(self)
        self.transport.unasked.hold()
        try:
            with Limit(Deadline(CLOSE_TIMEOUT), "closing"):
                for channel in list(self.channels.values()):
                    channel.close()
                self.directory.close()
                self.answers.repeat()
                self.answers.wait_routed()
                self.answers.flush()
                if self.leases.is_renewing:
                    self.leases.stop()
                    self.pipeline.post(pack("ZREM", self.keys.owners, self.owner))
                self.pipeline.call(_PING)
        except (OSError, RecoverableConnectionError):
            pass  # it is over all the same; the lease gives back what is held
        finally:
            super().close()
            self.transport.unasked.tell()

    def end(self, exc: BaseException, *, closed: bool = False) -> None:
        """End this life.  Never switches."""
        if self.lost is not None:
            return
        self.handover.take(self)
        self.transport.former.add(self)
        note_lost(self.owner)
        super().end(exc, closed=closed)
        self._stop()
        self.answers.stop(LinkLost(f"connection is closed ({exc})"))
        if hasattr(self, "pipeline"):
            self.answers.flush()
            self.pipeline.close()

    def forget(self, exc: BaseException) -> None:
        """In the child of a fork: it is the parent's."""
        super().forget(exc)
        self.is_parents = True
        self.answers.stop(exc)
        self.pipeline.forget()
        self.fanout.forget()
        self._large.forget()
        if self._master is not None:
            self._master.forget()
        self._stop()
        self.feeds.clear()

    def _stop(self) -> None:
        """End what goes by a clock."""
        self.sweeper.stop()
        self.expiry.stop()
        self.leases.stop()
        self.waking.stop()
        self.directory.stop()
        self.fanout.stop()
        self._large.stop()
        self.clients.stop()
        self.secret.stop()
        if self._master is not None:
            self._master.stop()
        for feed in list(self.feeds.values()):
            feed.stop()

    # In the reader: nothing here may switch or run user code.

    def _on_push(self, push: list[Any]) -> None:
        if push[0] == b"invalidate":
            self.waking.invalidated(push[1])

    def _on_pipeline_lost(self, exc: LinkLost) -> None:
        self.end(exc)
