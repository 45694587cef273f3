"""The libraries that are measured; each module has a class ``Works`` with a method for each work."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from benchmarks.works import WORKS


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One library, as its users run it."""

    title: str
    #: What has its ``Works``.
    module: str
    works: str = "Works"
    #: What has to be installed.
    distribution: str | None = None
    patched: bool = False  #: whether its users monkey-patch
    #: Works that it cannot do, and why; no text: none is needed.
    cannot: dict[str, str] = field(default_factory=dict)
    #: Works in which it sleeps, 10 ms at a time, and by what their number of messages is divided.
    sleeps: dict[str, int] = field(default_factory=dict)

    @property
    def version(self) -> str | None:
        """What is installed; None: nothing."""
        if self.distribution is None:
            return ""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return None


_NO_WORKERS = "calls one handler at a time"
_NO_POOL = "has no pool"
_ONE_CALLER = "one caller at a time"
_NO_TYPES = "decodes to no types"
#: Works that are measured with kombu's API only.
_KOMBU = dict.fromkeys(("publish_headers", "consume_headers"), "")


def _all_but(*works: str) -> dict[str, str]:
    return dict.fromkeys((work for work in WORKS if work not in works), "")


#: Works that are measured with Python's clients only.
_PYTHON = _all_but("publish", "consume")

RIVALS = {
    "greenconn": Rival(
        title="greenconn",
        module="benchmarks.rivals.greenconn_works",
        distribution="greenconn",
    ),
    "kombu": Rival(
        title="kombu + gevent",
        module="benchmarks.rivals.kombu_works",
        distribution="kombu",
        patched=True,
        cannot={"spawned": _NO_WORKERS, "typed": _NO_TYPES},
    ),
    "pika": Rival(
        title="pika",
        module="benchmarks.rivals.pika_works",
        distribution="pika",
        cannot={
            **_KOMBU,
            "confirmed_shared": _ONE_CALLER,
            "publish_pool": _NO_POOL,
            "acquire": _NO_POOL,
            "spawned": _NO_WORKERS,
            "rpc_shared": _ONE_CALLER,
            "typed": _NO_TYPES,
        },
    ),
    "amqpstorm": Rival(
        title="amqpstorm",
        module="benchmarks.rivals.amqpstorm_works",
        distribution="AMQPStorm",
        cannot={
            **_KOMBU,
            "publish_pool": _NO_POOL,
            "acquire": _NO_POOL,
            "spawned": _NO_WORKERS,
            "rpc_shared": _ONE_CALLER,
            "typed": _NO_TYPES,
        },
        sleeps={"confirmed": 20, "confirmed_shared": 40, "consumers": 10, "rpc": 40, "connect": 10},
    ),
    "aio-pika": Rival(
        title="aio-pika",
        module="benchmarks.rivals.aio_pika_works",
        distribution="aio-pika",
        cannot={
            **_KOMBU,
            "spawned": "its handlers always run at once: see prefetch 100",
            "typed": _NO_TYPES,
        },
    ),
    "raw": Rival(
        title="raw loop",
        module="benchmarks.rivals.raw_works",
        cannot={**_KOMBU, "acquire": _NO_POOL, "spawned": "has no handlers", "typed": _NO_TYPES},
    ),
    "rabbitmq-c": Rival(
        title="rabbitmq-c (C)",
        module="benchmarks.rivals.native_works",
        works="CWorks",
        cannot=_PYTHON,
    ),
    "amqp091-go": Rival(
        title="amqp091-go (Go)",
        module="benchmarks.rivals.native_works",
        works="GoWorks",
        cannot=_PYTHON,
    ),
}
