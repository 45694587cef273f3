"""A transport around a transport class of kombu's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar, Final

from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.transport import base
from greenconn.transport.hooks.store import HookStore
from greenconn.transport.hooks.transport import HookedTransport
from greenconn.transport.hosted.channel import HostedChannel
from greenconn.transport.hosted.link import HostedLink

#: Seconds between two looks where the transport does not say.
POLLING_INTERVAL: Final = 1.0

_made: dict[type, type[HostedTransport]] = {}


def hosted(cls: Any) -> Any:
    """Return what runs *cls* if it is one of kombu's virtual transports, else *cls* itself.

    Raises:
        TypeError: *cls* is one of kombu's that is not virtual, and needs kombu's event loop.
    """
    kombu: Any = sys.modules.get("kombu.transport.base")
    if kombu is None or kombu is base or not isinstance(cls, type):
        return cls
    if not issubclass(cls, kombu.Transport):
        return cls
    virtual: Any = sys.modules.get("kombu.transport.virtual.base")
    if virtual is None or not issubclass(cls, virtual.Transport):
        raise TypeError(
            f"transport {cls.__module__}:{cls.__qualname__} is kombu's own, and only kombu's "
            f"virtual transports can be hosted"
        )
    if cls not in _made:
        _made[cls] = _make(cls)
    return _made[cls]


class HostedTransport(HookedTransport):
    """Runs a virtual transport of kombu's, one of its transports for each link.

    Arguments:
        client: the ``Connection``; the transport within reads its host, login and options.
    """

    #: kombu's class.
    hosted_cls: ClassVar[Any]
    Channel = HostedChannel

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        #: Only asked for what it can tell; each link has another.
        self.hosted = self.hosted_cls(client=client)

    def driver_version(self) -> str:
        """Return the version of the library below."""
        return str(self.hosted.driver_version())

    @property
    def default_connection_params(self) -> dict[str, Any]:
        return dict(self.hosted.default_connection_params)

    def make_store(self, wake: Callable[[str | None], None]) -> HookStore:
        """Return the store of one link."""
        interval = self.hosted.polling_interval
        return HookStore(self.client, wake, POLLING_INTERVAL if interval is None else interval)

    def establish_connection(self, deadline: Deadline | None = None) -> HostedLink:
        """Open a link; how long that may take is the transport's to know."""
        link = HostedLink(self, self.hosted_cls(client=self.client))
        link.open(deadline or Deadline())
        return link

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Mask a URL that the transport parses itself."""
        return str(self.hosted.as_uri(uri, include_password, mask))


def _make(cls: Any) -> type[HostedTransport]:
    """Derive the class that runs *cls*, with what kombu asks of classes."""
    attributes = {
        "__doc__": cls.__doc__,
        "hosted_cls": cls,
        "can_parse_url": cls.can_parse_url,
        "default_port": cls.default_port,
        "driver_type": cls.driver_type,
        "driver_name": cls.driver_name,
        "polling_interval": cls.polling_interval,
        "implements": base.Implements(cls.implements),
        "connection_errors": (*base.Transport.connection_errors, *cls.connection_errors),
        "recoverable_connection_errors": (RecoverableConnectionError, *cls.connection_errors),
        "channel_errors": (*base.Transport.channel_errors, *cls.channel_errors),
    }
    return type(f"Hosted{cls.__name__}", (HostedTransport,), attributes)
