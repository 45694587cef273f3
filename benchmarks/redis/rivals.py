"""The libraries that are measured on Redis; each module has a class ``Works``."""

from __future__ import annotations

from benchmarks.rivals import Rival

_NO_WINDOW = "knows no window"
_NO_EXCHANGES = "has no exchanges"
_NO_WORKERS = "calls one handler at a time"
_NO_IDLE = "has no consumers"

#: What is not a driver's work.
_CANNOT = {
    "publish_exchange": _NO_EXCHANGES,
    "publish_window": _NO_WINDOW,
    "consumers": _NO_WORKERS,
    "idle": _NO_IDLE,
}

RIVALS = {
    "greenconn": Rival(
        title="greenconn",
        module="benchmarks.redis.greenconn_works",
        distribution="greenconn",
    ),
    "kombu": Rival(
        title="kombu + gevent",
        module="benchmarks.redis.kombu_works",
        distribution="kombu",
        patched=True,
        cannot={"publish_window": _NO_WINDOW, "consumers": _NO_WORKERS},
    ),
    "redis-py": Rival(
        title="redis-py by hand",
        module="benchmarks.redis.redis_py_works",
        distribution="redis",
        patched=True,
        cannot=_CANNOT,
    ),
    "raw": Rival(
        title="raw pipelined",
        module="benchmarks.redis.raw_works",
        cannot=_CANNOT,
    ),
}
