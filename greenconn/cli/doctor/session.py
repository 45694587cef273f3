"""Checks of a connection: login, what the broker is, and whether a message passes through it."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import Final
from uuid import uuid4

from greenconn.cli.broker import product_of, round_trip
from greenconn.cli.doctor.finding import Finding, failed, note, ok, warning
from greenconn.cli.errors import error_text
from greenconn.connection import Connection
from greenconn.exceptions import AccessRefused

__all__ = ["check_message", "check_session"]

#: Round trips that are measured.
TRIPS: Final = 5
#: Seconds of a round trip from which on it is worth a word.
SLOW: Final = 0.1


def check_session(connection: Connection) -> Iterator[Finding]:
    """Open *connection*, and check what was agreed upon.  May switch.  It stays open if it can be."""
    began = perf_counter()
    try:
        connection.connect()
    except Exception as exc:
        yield failed("login", error_text(exc)[0])
        return
    link = connection.connection
    opened = (perf_counter() - began) * 1e3
    yield ok("login", f"{product_of(connection)}, open in {opened:.1f} ms")
    if (heartbeat := getattr(link, "heartbeat", None)) is not None:
        yield _check_heartbeat(heartbeat)
    times = [round_trip(connection) for _ in range(TRIPS)]
    text = f"{median(times) * 1e3:.2f} ms median, {max(times) * 1e3:.2f} ms at worst"
    if max(times) > SLOW:
        yield note("round trip", text, "the way is long, or the broker has too much to do")
    else:
        yield ok("round trip", text)


def _check_heartbeat(seconds: float) -> Finding:
    if not seconds:
        return warning(
            "heartbeat",
            "off: a broker that dies silently is not noticed until TCP gives up",
            "leave out heartbeat=0 in the URL, or the setting in the broker",
        )
    return ok("heartbeat", f"every {seconds:g} s")


def check_message(connection: Connection, timeout: float) -> Iterator[Finding]:
    """Check that a message passes through a queue of its own, which is deleted.  May switch."""
    name = f"greenconn-doctor-{uuid4().hex}"
    began = perf_counter()
    step = "declare"
    try:
        with connection.channel() as channel:
            channel.queue_declare(name, durable=False, exclusive=True, auto_delete=True)
            step = "publish to"
            prepared = channel.prepare_message(b"doctor")
            channel.basic_publish(prepared, exchange="", routing_key=name, timeout=timeout)
            step = "read"
            got = channel.basic_get(name, no_ack=True)
            step = "delete"
            channel.queue_delete(name)
    except AccessRefused as exc:
        yield warning(
            "message",
            f"this user may not {step} a queue of its own: {error_text(exc)[0]}",
            "nothing is wrong if others declare its queues; else set its permissions",
        )
        return
    except Exception as exc:
        yield failed("message", f"cannot {step} a queue: {error_text(exc)[0]}")
        return
    if got is None:
        yield failed("message", "one that was published did not come back")
        return
    passed = (perf_counter() - began) * 1e3
    yield ok("message", f"passed through a queue of its own in {passed:.1f} ms")
