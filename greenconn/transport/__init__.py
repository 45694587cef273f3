"""The transports by name: an alias, or the path of a class (kombu's path).

Programs can extend ``TRANSPORT_ALIASES``: alias -> ``"module:Class"``, or a function that returns such a
path, or the class.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from greenconn.importing import symbol_by_name

__all__ = ["TRANSPORT_ALIASES", "get_transport_cls", "resolve_transport", "supports_librabbitmq"]


_AMQP: Final = "greenconn.transport.amqp:Transport"
_AMQPS: Final = "greenconn.transport.amqp:SSLTransport"
_REDIS: Final = "greenconn.transport.redis:Transport"
_REDIS_CLUSTER: Final = "greenconn.transport.redis:ClusterTransport"
_REDIS_SENTINEL: Final = "greenconn.transport.redis:SentinelTransport"

#: Alias -> path of the class.
TRANSPORT_ALIASES: dict[str, str | Callable[[], str | type[Any]]] = {
    "amqp": _AMQP,
    "amqps": _AMQPS,
    "amqplib": _AMQP,
    "librabbitmq": _AMQP,
    "pika": _AMQP,
    "pyamqp": _AMQP,
    "pyamqplib": _AMQP,
    "qpid": _AMQP,
    "syncpika": _AMQP,
    "memory": "greenconn.transport.memory:Transport",
    "in-memory": "greenconn.transport.memory:Transport",
    "redis": _REDIS,
    "rediss": _REDIS,
    "pyredis": _REDIS,
    "redis+cluster": _REDIS_CLUSTER,
    "rediss+cluster": _REDIS_CLUSTER,
    "redis+sentinel": _REDIS_SENTINEL,
    "rediss+sentinel": _REDIS_SENTINEL,
    "sentinel": _REDIS_SENTINEL,
    "valkey": _REDIS,
    "valkeys": _REDIS,
    "valkey+cluster": _REDIS_CLUSTER,
    "valkeys+cluster": _REDIS_CLUSTER,
    "valkey+sentinel": _REDIS_SENTINEL,
    "valkeys+sentinel": _REDIS_SENTINEL,
    "SQS": "greenconn.transport.SQS:Transport",
    "sqs": "greenconn.transport.SQS:Transport",
    "mongodb": "greenconn.transport.mongodb:Transport",
    "couchdb": "greenconn.transport.couchdb:Transport",
    "pycouchdb": "greenconn.transport.couchdb:Transport",
    "beanstalk": "greenconn.transport.beanstalk:Transport",
    "sqlite": "greenconn.transport.sqlite:Transport",
    "postgresql": "greenconn.transport.postgresql:Transport",
    "postgres": "greenconn.transport.postgresql:Transport",
    "postgresql+psycopg": "greenconn.transport.postgresql:Transport",
}

#: Transports that only kombu has -> the path of its class, which runs here where kombu is installed.
FOREIGN: Final[Mapping[str, str]] = {
    "confluentkafka": "kombu.transport.confluentkafka:Transport",
    "kafka": "kombu.transport.confluentkafka:Transport",
    "zookeeper": "kombu.transport.zookeeper:Transport",
    "sqlalchemy": "kombu.transport.sqlalchemy:Transport",
    "sqla": "kombu.transport.sqlalchemy:Transport",
    "SLMQ": "kombu.transport.SLMQ:Transport",
    "slmq": "kombu.transport.SLMQ:Transport",
    "filesystem": "kombu.transport.filesystem:Transport",
    "consul": "kombu.transport.consul:Transport",
    "etcd": "kombu.transport.etcd:Transport",
    "azurestoragequeues": "kombu.transport.azurestoragequeues:Transport",
    "azureservicebus": "kombu.transport.azureservicebus:Transport",
    "pyro": "kombu.transport.pyro:Transport",
    "gcpubsub": "kombu.transport.gcpubsub:Transport",
    "pgmq": "kombu.transport.pgmq:Transport",
}

#: Names of servers -> the alias of the protocol that they speak.
MEANT: Final[Mapping[str, str]] = {
    "mongo": "mongodb",
    "pg": "postgresql",
    "psql": "postgresql",
    "rabbit": "amqp",
    "rabbitmq": "amqp",
    "rabbitmqs": "amqps",
    "rmq": "amqp",
    "sqlite3": "sqlite",
}

#: Class paths that begin so mean ours of the same name, when we have one.
_PREFIXES: Final = ("kombu.transport.", "carrot.backends.")

#: Their modules that have another name here -> our module.
_RENAMED: Final[Mapping[str, str]] = {
    "amqplib": "greenconn.transport.amqp",
    "librabbitmq": "greenconn.transport.amqp",
    "pika": "greenconn.transport.amqp",
    "pika2": "greenconn.transport.amqp",
    "pikachu": "greenconn.transport.amqp",
    "pyamqp": "greenconn.transport.amqp",
    "pyamqplib": "greenconn.transport.amqp",
    "pycouchdb": "greenconn.transport.couchdb",
    "pypika": "greenconn.transport.amqp",
    "pyredis": "greenconn.transport.redis",
    "qpid": "greenconn.transport.amqp",
    "queue": "greenconn.transport.memory",
}

#: What carrot and old kombu called the class.
_OLD_CLASSES: Final = frozenset(
    {"Backend", "AsyncoreBackend", "SyncBackend", "AsyncoreTransport", "SyncTransport"}
)

_classes: dict[str, Any] = {}


def is_name(scheme: str) -> bool:
    """Return whether a scheme with a ``+`` is the name of a transport as a whole."""
    return scheme.lower() in TRANSPORT_ALIASES or scheme.lower() in MEANT


def supports_librabbitmq() -> bool | None:
    """None: librabbitmq is never used; its alias means the AMQP transport (kombu's name)."""
    return None


def resolve_transport(transport: str | type[Any] | None | None = None) -> Any:
    """Return the transport class that *transport* means.

    Arguments:
        transport: an alias, ``module:Class`` or ``module.Class``, or the class itself; None means
            the default, ``amqp``.

    Raises:
        KeyError: there is no such alias; names the nearest one, or says that kombu must be installed.
        ImportError: the transport is not in this version, or its module cannot be imported.
        AttributeError: the module has no such class.
    """
    if transport is None or transport == "":
        transport = "amqp"
    if not isinstance(transport, str):
        return _hosted(transport)
    target = TRANSPORT_ALIASES.get(transport)
    if target is None:
        foreign = FOREIGN.get(transport)
        if foreign is not None and _exists("kombu"):
            return _hosted(_imported(transport, foreign))
        if "." not in transport and ":" not in transport:
            raise _unknown(transport)
        return _hosted(symbol_by_name(_ours(transport)))
    path = target() if callable(target) else target
    if not isinstance(path, str):
        return _hosted(path)
    try:
        return _hosted(symbol_by_name(_ours(path)))
    except ModuleNotFoundError as exc:
        if not _is_absent(path):
            raise
        raise ImportError(
            f"transport {transport!r} ({path}) is not in this version of greenconn; "
            f"it has {', '.join(_present())}"
        ) from exc


def get_transport_cls(transport: str | type[Any] | None | None = None) -> Any:
    """Return the transport class that *transport* means, as :func:`resolve_transport`; remembered."""
    if transport is not None and not isinstance(transport, str):
        return _hosted(transport)
    target = TRANSPORT_ALIASES.get(transport or "amqp", transport)
    if not isinstance(target, str):
        return resolve_transport(transport)
    found = _classes.get(target)
    if found is None:
        found = _classes[target] = resolve_transport(transport)
    return found


def _hosted(cls: Any) -> Any:
    """Return the transport that runs a class which may be kombu's own."""
    if "kombu.transport.virtual" not in sys.modules:
        return cls
    from greenconn.transport.hooks.hosted import hosted  # who has not kombu does not need it

    return hosted(cls)


def _ours(path: str) -> str:
    """Return the path of our class where *path* is one of kombu's or carrot's and we have it."""
    for prefix in _PREFIXES:
        if path.startswith(prefix):
            module, _, name = path[len(prefix) :].rpartition(":" if ":" in path else ".")
            ours = _RENAMED.get(module, f"greenconn.transport.{module}")
            if module and _exists(ours):
                return f"{ours}:{'Transport' if name in _OLD_CLASSES else name}"
    return path


def _imported(alias: str, path: str) -> Any:
    """Import a class of kombu's own."""
    try:
        return symbol_by_name(path)
    except (ImportError, NameError) as exc:
        # Some of kombu's modules stumble over their own names where their library is missing.
        raise ImportError(
            f"transport {alias!r} is kombu's own ({path}), and its module cannot be imported: {exc}; "
            "install the library that it is built on"
        ) from exc


def _exists(module: str) -> bool:
    if sys.modules.get(module) is not None:
        return True  # kombu's package has no spec once it is imported
    from importlib.util import find_spec  # for who names a transport that may not exist

    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _is_absent(path: str) -> bool:
    """Return whether *path* is one of ours that is not built yet."""
    module = path.rpartition(":")[0]
    return module.startswith("greenconn.transport.") and not _exists(module)


def _present() -> list[str]:
    """Return the aliases that can be used."""
    return [
        alias
        for alias, path in sorted(TRANSPORT_ALIASES.items())
        if callable(path) or not _is_absent(path)
    ]


def _unknown(alias: str) -> KeyError:
    foreign = FOREIGN.get(alias)
    if foreign is not None:
        return KeyError(
            f"transport {alias!r} is kombu's own ({foreign}), and kombu is not installed: "
            "pip install kombu"
        )
    import difflib  # for this message only

    meant = MEANT.get(alias.lower())
    nearest = [meant] if meant else difflib.get_close_matches(alias.lower(), TRANSPORT_ALIASES, n=1)
    hint = (
        f"  Did you mean {nearest[0]}://?" if nearest else f"  There are {', '.join(_present())}."
    )
    return KeyError(f"No such transport: {alias}.{hint}")
