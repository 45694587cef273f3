"""A messaging client for gevent programs, with kombu's API.

The names below are imported from their modules when they are first used, so ``import greenconn`` alone
loads neither gevent nor a transport.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from greenconn._version import VERSION, __version__, version_info_t

if TYPE_CHECKING:
    from greenconn import exceptions, rpc
    from greenconn.connection import BrokerConnection, Connection
    from greenconn.defaults import configure
    from greenconn.entity import Exchange, Queue, binding
    from greenconn.identity import uuid
    from greenconn.message import Message
    from greenconn.messaging import Consumer, Producer
    from greenconn.options import Retry
    from greenconn.pools import connections, producers
    from greenconn.publishing import publish, publish_many
    from greenconn.serialization import disable_insecure_serializers, enable_insecure_serializers
    from greenconn.url import parse_url
    from greenconn.worker import ConsumerGreenlet, spawn_consumer, stop_consumers

__all__ = [
    "VERSION",
    "BrokerConnection",
    "Connection",
    "Consumer",
    "ConsumerGreenlet",
    "Exchange",
    "Message",
    "Producer",
    "Queue",
    "Retry",
    "__version__",
    "binding",
    "configure",
    "connections",
    "disable_insecure_serializers",
    "enable_insecure_serializers",
    "exceptions",
    "parse_url",
    "producers",
    "publish",
    "publish_many",
    "rpc",
    "spawn_consumer",
    "stop_consumers",
    "uuid",
    "version_info_t",
]

#: Module -> the public names that it defines.
_HOMES: Final = {
    "connection": ("BrokerConnection", "Connection"),
    "defaults": ("configure",),
    "entity": ("Exchange", "Queue", "binding"),
    "identity": ("uuid",),
    "message": ("Message",),
    "messaging": ("Consumer", "Producer"),
    "options": ("Retry",),
    "pools": ("connections", "producers"),
    "publishing": ("publish", "publish_many"),
    "serialization": ("disable_insecure_serializers", "enable_insecure_serializers"),
    "url": ("parse_url",),
    "worker": ("ConsumerGreenlet", "spawn_consumer", "stop_consumers"),
}
_home_of: Final = {name: module for module, names in _HOMES.items() for name in names}
_MODULES: Final = frozenset({"exceptions", "rpc"})


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    home = _home_of.get(name)
    if home is not None:
        value = getattr(import_module(f"greenconn.{home}"), name)
    elif name in _MODULES:
        value = import_module(f"greenconn.{name}")
    else:
        raise AttributeError(f"module 'greenconn' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
