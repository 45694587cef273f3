"""Checks of a Redis or Valkey: memory, persistence, copies, clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import time
from typing import Any, Final

from redis.exceptions import RedisError

from greenconn.cli.doctor.finding import Finding, failed, note, ok, warning
from greenconn.cli.errors import error_text
from greenconn.connection import Connection

__all__ = ["check_redis"]

#: Part of ``maxmemory`` from which on it is close.
CLOSE: Final = 0.8
#: Seconds by which the clocks may differ.
SKEW: Final = 2.0


def check_redis(connection: Connection) -> Iterator[Finding]:
    """Check what decides whether messages are kept.  May switch."""
    client = getattr(connection.default_channel, "client", None)
    if client is None:
        return
    try:
        info = client.info()
        began = time()
        seconds, microseconds = client.time()
        now = (began + time()) / 2
    except (RedisError, OSError) as exc:
        yield note("server", f"not checked: {error_text(exc)[0]}", "let the user run INFO and TIME")
        return
    name, version = (
        ("Valkey", "valkey_version") if "valkey_version" in info else ("Redis", "redis_version")
    )
    yield ok("server", f"{name} {info.get(version, '?')}")
    yield from _check_memory(info)
    yield from _check_persistence(info)
    yield from _check_role(info)
    yield _check_clock(float(seconds) + float(microseconds) / 1e6 - now)


def _check_memory(info: Mapping[str, Any]) -> Iterator[Finding]:
    most, used = int(info.get("maxmemory") or 0), int(info.get("used_memory") or 0)
    policy = str(info.get("maxmemory_policy") or "noeviction")
    if policy != "noeviction":
        yield warning(
            "eviction",
            f"maxmemory-policy is {policy}: full memory deletes queues with their messages",
            "set maxmemory-policy to noeviction",
        )
    else:
        yield ok("eviction", "off: no message is deleted for want of memory")
    if not most:
        yield note("memory", f"{used:,} bytes used, no limit", "set maxmemory below the machine's")
    elif used > CLOSE * most:
        text = f"{used:,} of {most:,} bytes used"
        yield warning("memory", text, "consume, or raise maxmemory: a full server takes nothing")
    else:
        yield ok("memory", f"{used:,} of {most:,} bytes used")


def _check_persistence(info: Mapping[str, Any]) -> Iterator[Finding]:
    for field, what in (("aof_last_write_status", "AOF"), ("rdb_last_bgsave_status", "snapshot")):
        if str(info.get(field, "ok")) != "ok":
            yield failed(
                "persistence", f"the last {what} failed", "look at the server's log and disk"
            )
    if str(info.get("aof_enabled", "0")) == "1":
        yield ok("persistence", "append-only file: what it has survives its restart")
    else:
        yield note(
            "persistence",
            "no append-only file: a crash loses what came since the last snapshot",
            "set appendonly to yes where messages matter",
        )


def _check_role(info: Mapping[str, Any]) -> Iterator[Finding]:
    if info.get("role") == "slave":
        yield failed("role", "it is a replica, which takes no messages", "name the master")
    else:
        yield ok("role", f"master with {int(info.get('connected_slaves') or 0)} replicas")


def _check_clock(skew: float) -> Finding:
    text = f"{abs(skew):.3f} s {'before' if skew > 0 else 'behind'} ours"
    if abs(skew) > SKEW:
        return warning("clock", text, "set both clocks by NTP: leases and delays go by them")
    return ok("clock", text)
