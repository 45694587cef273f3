"""Every public name of kombu's modules, compared with ours; what differs on purpose is in one table."""

from __future__ import annotations

import importlib
import pkgutil
from fnmatch import fnmatchcase
from typing import Any, Final

import pytest

import greenconn
import greenconn.exceptions as ours
from tests.compat.introspection import differences
from tests.compat.on_purpose import ON_PURPOSE

kombu = pytest.importorskip("kombu")

MODULES: Final = [
    *("abstract", "clocks", "common", "compat", "compression", "connection", "entity"),
    *("exceptions", "log", "matcher", "message", "messaging", "mixins", "pidbox", "pools"),
    *("resource", "serialization", "simple"),
    *("transport", "transport.base", "transport.memory", "transport.pyamqp", "transport.virtual"),
    *("transport.native_delayed_delivery", "transport.virtual.base", "transport.virtual.exchange"),
    *("utils", "utils.amq_manager", "utils.collections", "utils.compat", "utils.debug"),
    *("utils.div", "utils.encoding"),
    *("utils.functional", "utils.imports", "utils.json", "utils.limits", "utils.objects"),
    *("utils.scheduling", "utils.text", "utils.time", "utils.url", "utils.uuid"),
]
#: Not in this version, or built otherwise: of transports only the names that programs use are kept.
SKIPPED: Final = [
    *("asynchronous", "asynchronous.*"),
    "utils.eventio",
    "transport.librabbitmq",
    *("transport.SQS", "transport.SQS.*", "transport.mongodb", "transport.redis", "transport.qpid"),
    # Kombu's own, to be named by their class paths.
    *("transport.SLMQ", "transport.azure*", "transport.confluentkafka", "transport.consul"),
    *("transport.etcd", "transport.filesystem", "transport.gcpubsub", "transport.pgmq"),
    *("transport.pyro", "transport.sqlalchemy*", "transport.zookeeper"),
]


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
    """Each of kombu's transports is ours, or kombu's own class is hosted."""
    aliases: Any = importlib.import_module("kombu.transport").TRANSPORT_ALIASES
    registry: Any = importlib.import_module("greenconn.transport")
    assert set(aliases) <= {*registry.TRANSPORT_ALIASES, *registry.FOREIGN}
    for alias in set(aliases) - set(registry.TRANSPORT_ALIASES):
        path = aliases[alias].replace("SLMQ.Transport", "SLMQ:Transport")
        assert registry.FOREIGN[alias] == path
        try:
            cls = registry.resolve_transport(alias)
        except ImportError as exc:  # what it is built on is not installed here
            if "kombu's own" not in str(exc):
                raise
        else:
            assert f"{cls.hosted_cls.__module__}:Transport" == path
