"""A transport whose brokers do what a test tells them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import gevent

from greenconn.exceptions import (
    ChannelError,
    ConnectionError,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import NEVER, Deadline
from greenconn.transport import base

#: What a broker does with an attempt: raise, call (which may wait, or raise), or accept.
Act = BaseException | Callable[[], Any] | None


class Script:
    """What the brokers do, and what was done with them."""

    def __init__(self) -> None:
        self.acts: dict[str, deque[Act]] = {}
        #: Hosts without acts left: None accepts.
        self.otherwise: dict[str, Act] = {}
        self.attempts: list[str] = []
        #: Of each attempt.
        self.deadlines: list[Deadline] = []
        self.links: list[Link] = []
        self.channels: list[Channel] = []
        #: Called when a channel is opened; may wait or raise.
        self.on_channel: Callable[[], Any] | None = None
        #: Called when a link is closed; may wait or raise.
        self.on_close: Callable[[], Any] | None = None

    def plan(self, host: str, *acts: Act) -> None:
        """Do *acts* at the next attempts at *host*, one each."""
        self.acts.setdefault(host, deque()).extend(acts)

    def meet(self, host: str) -> None:
        """Do what is planned for an attempt at *host*."""
        self.attempts.append(host)
        acts = self.acts.get(host)
        act = acts.popleft() if acts else self.otherwise.get(host)
        if isinstance(act, BaseException):
            raise act
        if act is not None:
            act()

    def be_silent(self) -> None:
        """Do nothing until the deadline of the attempt has ended: an act."""
        gevent.sleep(self.deadlines[-1].left() or 0.0)
        raise TimeoutError("no reply")

    @property
    def link(self) -> Link:
        """The latest link."""
        return self.links[-1]

    @property
    def open_links(self) -> list[Link]:
        """Those that nobody has closed or lost."""
        return [link for link in self.links if link.is_open]


class Link(base.Link):
    """A link to a scripted broker."""

    def __init__(self, client: Any, script: Script, host: str) -> None:
        super().__init__(client)
        self.script = script
        self.host = host
        self.is_collected = False

    def lose(self, exc: BaseException | None = None) -> None:
        """Be lost, as if the broker had gone."""
        self.end(exc or RecoverableConnectionError(f"{self.host} is gone"))

    def close(self) -> None:
        if self.is_open and self.script.on_close is not None:
            self.script.on_close()
        super().close()

    def collect(self) -> None:
        self.is_collected = True
        super().collect()


class Channel(base.StdChannel):
    """A channel that can be used, broken and closed."""

    def __init__(self, link: Link) -> None:
        self.connection = link
        self.prefetch: int | None = None
        self.error: BaseException | None = None
        self.is_closed = False

    @property
    def is_open(self) -> bool:
        return not self.is_closed and self.error is None and self.connection.is_open

    def use(self) -> str:
        """Do something that needs an open channel."""
        self.connection.check_open()
        if self.error is not None or self.is_closed:
            raise RecoverableChannelError(f"channel was closed ({self.error})")
        return self.connection.host

    def take_over(self, old: Channel) -> None:
        self.prefetch = old.prefetch

    def close(self) -> None:
        self.is_closed = True


class Transport(base.Transport[Any]):
    """The scripted transport; ``script`` is set for each test."""

    script: ClassVar[Script]
    default_port = 7
    driver_type = "scripted"
    connection_errors = (ConnectionError, OSError)
    channel_errors = (ChannelError,)
    implements = base.default_transport_capabilities.extend(heartbeats=True)

    @property
    def recoverable_connection_errors(self) -> tuple[type[BaseException], ...]:
        return (RecoverableConnectionError, OSError)

    @property
    def recoverable_channel_errors(self) -> tuple[type[BaseException], ...]:
        return (RecoverableChannelError,)

    @property
    def default_connection_params(self) -> dict[str, Any]:
        return {"hostname": "localhost", "port": self.default_port, "userid": "guest"}

    def establish_connection(self, deadline: Deadline | None = None) -> Link:
        host = self.client.hostname
        self.script.deadlines.append(deadline or NEVER)
        self.script.meet(host)
        link = Link(self.client, self.script, host)
        self.script.links.append(link)
        return link

    def create_channel(self, connection: Link) -> Channel:
        connection.check_open()
        if self.script.on_channel is not None:
            self.script.on_channel()
        connection.check_open()
        channel = Channel(connection)
        self.script.channels.append(channel)
        return channel

    def heartbeat_check(self, connection: Link, rate: float = 2) -> None:
        connection.check_open()

    def get_heartbeat_interval(self, connection: Link) -> float:
        return 17.0


class PlainLink:
    """A link of kombu's contract: any object, which does not tell whether it is open."""


class PlainTransport(Transport):
    """A transport of kombu's contract that opens such links."""

    def establish_connection(self) -> Any:  # type: ignore[override]
        return PlainLink()

    def close_connection(self, connection: Any) -> None:
        assert type(connection) is PlainLink
