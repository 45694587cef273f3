"""Every public name of kombu's modules, compared with ours; what differs on purpose is in one table."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

import pytest

import greenconn
import greenconn.exceptions as ours
from tests.compat.introspection import differences

kombu = pytest.importorskip("kombu")

MODULES: Final = [
    *("abstract", "clocks", "common", "compat", "compression", "connection", "entity"),
    *("exceptions", "log", "matcher", "message", "messaging", "mixins", "pidbox", "pools"),
    *("resource", "serialization", "simple"),
    *("transport", "transport.base", "transport.memory", "transport.pyamqp", "transport.virtual"),
    *("transport.native_delayed_delivery", "transport.virtual.base", "transport.virtual.exchange"),
    *("utils", "utils.collections", "utils.compat", "utils.debug", "utils.div", "utils.encoding"),
    *("utils.functional", "utils.imports", "utils.json", "utils.limits", "utils.objects"),
    *("utils.scheduling", "utils.text", "utils.time", "utils.url", "utils.uuid"),
]
#: Not in this version.
SKIPPED: Final = [
    *("asynchronous", "asynchronous.*"),
    *("utils.amq_manager", "utils.eventio"),
    "transport.librabbitmq",
    *("transport.SQS", "transport.mongodb", "transport.redis", "transport.qpid"),
    # Kombu's own, to be named by their class paths.
    *("transport.SLMQ", "transport.azure*", "transport.confluentkafka", "transport.consul"),
    *("transport.etcd", "transport.filesystem", "transport.gcpubsub", "transport.pgmq"),
    *("transport.pyro", "transport.sqlalchemy", "transport.zookeeper"),
]

A_DETAIL: Final = "kombu's own use of something, which programs do not ask for"
BY_POSITION: Final = "the argument is given by position"
AMQP_ORDER: Final = "channels of all transports take the arguments of AMQP's, in its order"
DRIVEN: Final = "a link has a reader or a poller of its own, so nobody drives channels"
OWN_BROKER: Final = (
    "the memory broker is a broker, not a virtual channel over queues: memory.reset()"
)
OF_THE_READER: Final = "channels, links and messages are made by the transport, not by programs"
IN_INSTANCES: Final = "instances have it, the class has not"
OF_HUBS: Final = "a group has pools for each hub, so it is a mapping, but no dict"

#: Module and name, with wildcards -> why it differs.
ON_PURPOSE: Final[Mapping[str, str]] = {
    "clocks.R_CLOCK": A_DETAIL,
    "compat.Consumer*.channel": IN_INSTANCES,
    "compression.brotli": A_DETAIL,
    "connection.*Connection.ensure_connection": "its arguments are spelled out",
    "connection.ChannelPool.close_after_fork": "every pool forgets in the child of a fork",
    "connection.ChannelPool.prepare": BY_POSITION,
    "connection.PooledConnection.__init__": "a pool makes one for each holder",
    "connection.ssl_available": "always true",
    "exceptions.BaseExceptionType": A_DETAIL,
    "log.naive_format_parts": A_DETAIL,
    "log.safeify_format": A_DETAIL,
    "log.DISABLE_TRACEBACKS": "the environment is not read at import",
    "message.IS_PYPY": A_DETAIL,
    "*Message.errors": IN_INSTANCES,
    "messaging.Consumer.channel": IN_INSTANCES,
    "pidbox.W_PIDBOX_IN_USE": "a text of ours",
    "pools.ProducerPool.prepare": BY_POSITION,
    "pools.disable_limit_protection": "the environment is not read at import",
    "pools.connections": OF_HUBS,
    "pools.producers": OF_HUBS,
    "pools.Connections": OF_HUBS,
    "pools.Producers": OF_HUBS,
    "pools.PoolGroup": OF_HUBS,
    "serialization.NOTSET": A_DETAIL,
    "serialization.parenthesize_alias": A_DETAIL,
    "serialization.*able_insecure_serializers": "the default is written where kombu has a marker",
    "transport.TRANSPORT_ALIASES": "paths of ours; see test_aliases",
    "transport.*Transport.close_channel": BY_POSITION,
    "transport.*Transport.drain_events": "timeout is all that there is",
    "utils.*cached_property.__init__": "a property computes something",
    "utils.encoding.default_encoding_file": "set by set_default_encoding_file",
    "utils.functional.ChannelPromise": A_DETAIL,
    "utils.functional.KEYWORD_MARK": A_DETAIL,
    "utils.json.*T": A_DETAIL,
    "utils.limits.TokenBucket.*": IN_INSTANCES,
    "utils.scheduling.CYCLE_ALIASES": "paths of ours",
    "utils.url.ssl_available": "always true",
    "mixins.W_CONN_*": A_DETAIL,
    # AMQP
    "transport.pyamqp.Channel.__init__": OF_THE_READER,
    "transport.pyamqp.Connection.__init__": OF_THE_READER,
    "transport.pyamqp.Message.__init__": OF_THE_READER,
    "transport.pyamqp.*Transport.get_manager": "its arguments are spelled out",
    "transport.pyamqp.*Transport.Connection": "a link, which is a kind of amqp.Connection",
    "transport.pyamqp.SSLTransport.__init__": "the client is named",
    "transport.pyamqp.Connection.library_properties": "the broker is told our name",
    "transport.pyamqp.Channel.basic_publish*": "kombu's name for the message, as in its channels",
    "transport.pyamqp.Channel.basic_qos": "kombu's name of a_global, which is taken too",
    "transport.pyamqp.Channel.prepare_message": "messages are packed at once, without amqp's class",
    # Virtual
    "transport.virtual*.BrokerState.*": IN_INSTANCES,
    "transport.virtual*.Channel.basic_*": AMQP_ORDER,
    "transport.virtual*.Channel.exchange_declare": AMQP_ORDER,
    "transport.virtual*.Channel.queue_*": AMQP_ORDER,
    "transport.virtual*.Channel.cycle": DRIVEN,
    "transport.virtual*.Channel.drain_events": DRIVEN,
    "transport.virtual*.Transport.channels": DRIVEN,
    "transport.virtual*.Transport.cycle": DRIVEN,
    "transport.virtual*.Transport.on_message_ready": DRIVEN,
    "transport.virtual*.exchange_types": "headers exchanges are there, too",
    "transport.virtual*.STANDARD_EXCHANGE_TYPES": "headers exchanges are there, too",
    "transport.virtual*.Transport.implements": "fan-out and headers work over plain queues, too",
    "transport.virtual.base.ARRAY_TYPE_H": A_DETAIL,
    "transport.virtual.base.*_FMT": A_DETAIL,
    "transport.virtual.base.W_NO_CONSUMERS": A_DETAIL,
    # Memory
    "transport.memory.Channel*": OWN_BROKER,
    "transport.memory.Transport.*": OWN_BROKER,
}


def found_in(module: str) -> dict[str, str]:
    """The differences of a module, by its path."""
    theirs = importlib.import_module(f"kombu.{module}")
    ours = importlib.import_module(f"greenconn.{module}")
    found = differences(theirs, ours)
    return {f"{module}.{name}": what for name, what in found.items()}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_differs_only_where_it_shall(module: str) -> None:
    unexpected = {
        name: what
        for name, what in found_in(module).items()
        if not any(fnmatchcase(name, pattern) for pattern in ON_PURPOSE)
    }
    assert unexpected == {}


def test_the_table_has_no_line_too_many() -> None:
    found = [name for module in MODULES for name in found_in(module)]
    idle = [
        pattern for pattern in ON_PURPOSE if not any(fnmatchcase(name, pattern) for name in found)
    ]
    assert idle == []


def test_no_module_of_kombu_is_forgotten() -> None:
    paths = pkgutil.walk_packages(kombu.__path__, "kombu.", onerror=lambda name: None)
    names = [each.name.removeprefix("kombu.") for each in paths]
    known = [*MODULES, *SKIPPED]
    assert [
        name for name in names if not any(fnmatchcase(name, pattern) for pattern in known)
    ] == []


def test_the_package_has_the_names_of_kombus() -> None:
    assert {name for name in kombu.__all__ if not hasattr(greenconn, name)} == set()
    assert issubclass(greenconn.BrokerConnection, greenconn.Connection)
    assert type(kombu.version_info)._fields == greenconn.version_info_t._fields
    assert greenconn.version_info is greenconn.VERSION


def test_errors_of_the_broker_are_the_same_classes() -> None:
    theirs: Any = importlib.import_module("kombu.exceptions")
    for name in ("ConnectionError", "ChannelError", "ResourceError", "TimeoutError"):
        assert getattr(ours, name) is getattr(theirs, name)
    amqp: Any = importlib.import_module("amqp.exceptions")
    for name in set(amqp.__all__) - {"AMQPDeprecationWarning"}:
        assert getattr(ours, name) is getattr(amqp, name)


def test_aliases() -> None:
    """Each of kombu's transports is ours, or the error says how to host kombu's own class."""
    aliases: Any = importlib.import_module("kombu.transport").TRANSPORT_ALIASES
    registry: Any = importlib.import_module("greenconn.transport.registry")
    assert set(aliases) <= {*registry.TRANSPORT_ALIASES, *registry.FOREIGN}
    for alias in set(aliases) - set(registry.TRANSPORT_ALIASES):
        path = aliases[alias].replace("SLMQ.Transport", "SLMQ:Transport")
        assert registry.FOREIGN[alias] == path
        with pytest.raises(KeyError, match="install kombu"):
            registry.resolve_transport(alias)
