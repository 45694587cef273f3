"""A messaging client for gevent programs, with kombu's API.

The names below are imported when they are first used, so that ``import greenconn`` costs next to
nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from greenconn._version import VERSION, __version__, version_info, version_info_t

if TYPE_CHECKING:
    from greenconn import compression as compression
    from greenconn import exceptions as exceptions
    from greenconn import pools as pools
    from greenconn import serialization as serialization
    from greenconn import testing as testing
    from greenconn.common import Broadcast, eventloop
    from greenconn.connection import BrokerConnection, Connection
    from greenconn.defaults import configure
    from greenconn.entity import Exchange, Queue, SuperStream, binding
    from greenconn.exceptions import (
        AlreadyQueued,
        BatchPublishError,
        ConnectionBlocked,
        DecodeError,
        EncodeError,
        OperationalError,
        PublishNacked,
        PublishRefused,
        PublishTimeout,
        RemoteError,
        ReplyTimeout,
        Unroutable,
    )
    from greenconn.identity import uuid
    from greenconn.listeners import Listener, add_listener, remove_listener
    from greenconn.message import Message
    from greenconn.messaging import Consumer, Producer
    from greenconn.options import Limit, Rate, Retry
    from greenconn.pools import connections, producers
    from greenconn.publishing import publish, publish_many
    from greenconn.serialization import disable_insecure_serializers, enable_insecure_serializers
    from greenconn.service import health, rpc
    from greenconn.service.app import App
    from greenconn.service.offsets import FileOffsets, QueueOffsets
    from greenconn.url import parse_url
    from greenconn.worker import (
        ConsumerGreenlet,
        DeadLetter,
        Discard,
        RetryLater,
        dead_letters,
        in_order,
        spawn_consumer,
        stop_consumers,
    )

__all__ = [
    "VERSION",
    "AlreadyQueued",
    "App",
    "BatchPublishError",
    "Broadcast",
    "BrokerConnection",
    "Connection",
    "ConnectionBlocked",
    "Consumer",
    "ConsumerGreenlet",
    "DeadLetter",
    "DecodeError",
    "Discard",
    "EncodeError",
    "Exchange",
    "FileOffsets",
    "Limit",
    "Listener",
    "Message",
    "OperationalError",
    "Producer",
    "PublishNacked",
    "PublishRefused",
    "PublishTimeout",
    "Queue",
    "QueueOffsets",
    "Rate",
    "RemoteError",
    "ReplyTimeout",
    "Retry",
    "RetryLater",
    "SuperStream",
    "Unroutable",
    "__version__",
    "add_listener",
    "binding",
    "configure",
    "connections",
    "dead_letters",
    "disable_insecure_serializers",
    "enable_insecure_serializers",
    "eventloop",
    "health",
    "in_order",
    "parse_url",
    "producers",
    "publish",
    "publish_many",
    "remove_listener",
    "rpc",
    "spawn_consumer",
    "stop_consumers",
    "uuid",
    "version_info",
    "version_info_t",
]

#: Module -> the public names that it defines.
_NAMES = {
    "common": ("Broadcast", "eventloop"),
    "connection": ("BrokerConnection", "Connection"),
    "defaults": ("configure",),
    "entity": ("Exchange", "Queue", "SuperStream", "binding"),
    "identity": ("uuid",),
    "listeners": ("Listener", "add_listener", "remove_listener"),
    "message": ("Message",),
    "messaging": ("Consumer", "Producer"),
    "exceptions": (
        "AlreadyQueued",
        "BatchPublishError",
        "ConnectionBlocked",
        "DecodeError",
        "EncodeError",
        "OperationalError",
        "PublishNacked",
        "PublishRefused",
        "PublishTimeout",
        "RemoteError",
        "ReplyTimeout",
        "Unroutable",
    ),
    "options": ("Limit", "Rate", "Retry"),
    "pools": ("connections", "producers"),
    "publishing": ("publish", "publish_many"),
    "serialization": ("disable_insecure_serializers", "enable_insecure_serializers"),
    "service.app": ("App",),
    "service.offsets": ("FileOffsets", "QueueOffsets"),
    "url": ("parse_url",),
    "worker": (
        *("ConsumerGreenlet", "DeadLetter", "Discard", "RetryLater"),
        *("dead_letters", "in_order", "spawn_consumer", "stop_consumers"),
    ),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


#: Public modules that are loaded when they are first named, without an import of their own.
_SUBMODULES = {
    **{name: name for name in ("compression", "exceptions", "pools", "serialization", "testing")},
    **{name: f"service.{name}" for name in ("health", "rpc")},
}

if not TYPE_CHECKING:  # or a type checker would let any name pass

    def __getattr__(name: str) -> Any:
        if name in _SUBMODULES:
            value: Any = import_module(f"greenconn.{_SUBMODULES[name]}")
        elif name in _MODULES:
            value = getattr(import_module(f"greenconn.{_MODULES[name]}"), name)
        else:
            raise AttributeError(f"module 'greenconn' has no attribute {name!r}")
        globals()[name] = value  # or greenconn.rpc would be imported again for each call
        return value

    def __dir__() -> list[str]:
        return sorted({*__all__, *_SUBMODULES, *(name for name in globals() if name[:2] == "__")})
