"""The broker that a command talks to, until Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from types import FrameType
from typing import Any

import click
import gevent
from gevent import get_hub
from greenlet import getcurrent, greenlet

from greenconn.cli.errors import masked
from greenconn.connection import Connection


def connection_to(url: str, timeout: float | None = None) -> Connection:
    """Return a connection for a command; it is not open yet.

    Arguments:
        timeout: seconds to connect, where the URL does not say it.

    Raises:
        click.BadParameter: the URL is wrong.
    """
    if not is_verbose():
        # The greenlet that waits for it reports the error, in one line.
        gevent.get_hub().exception_stream = None
    try:
        if timeout is None:
            return Connection(url)
        return Connection(url, connect_timeout=timeout)
    except (ValueError, KeyError, TypeError, ImportError) as exc:
        text = exc.args[0] if isinstance(exc, KeyError) and exc.args else exc
        raise click.BadParameter(masked(str(text)), param_hint="URL") from exc


def is_verbose() -> bool:
    """Return whether the user wants to see everything."""
    context = click.get_current_context(silent=True)
    return bool(context is not None and context.find_root().params.get("verbose"))


def report_losses(connection: Connection) -> None:
    """Tell the user when *connection* is lost, and when it is back."""
    where = connection.as_uri()
    session = connection.session
    session.on_connection_lost.append(
        lambda exc: click.echo(f"greenconn: connection lost, reconnecting: {exc}", err=True)
    )
    session.on_recovered.append(
        lambda: click.echo(f"greenconn: connected to {where} again", err=True)
    )


def product_of(connection: Connection) -> str:
    """Return the name and the version of the broker, as far as it tells them."""
    properties = getattr(connection.connection, "server_properties", None) or {}
    product = properties.get("product") or connection.transport.driver_type
    return f"{product} {properties.get('version', '')}".strip()


def round_trip(connection: Connection) -> float:
    """Ask the broker something, and return the seconds until it replied.  May switch."""
    # Where qos is no request to the broker, the link has a question that goes all the way.
    ping = getattr(connection.connection, "ping", None)
    channel = connection.default_channel
    began = perf_counter()
    if ping is None:
        channel.basic_qos(0, 1, False)
    else:
        ping()
    return perf_counter() - began


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, SIGINT raises KeyboardInterrupt in the calling greenlet; in the main thread only."""
    caller, loop = getcurrent(), get_hub().loop

    def interrupt(number: int, frame: FrameType | None) -> None:
        if getcurrent() is caller:
            raise KeyboardInterrupt
        # In the hub, or in a greenlet whose work it would spoil.
        loop.run_callback_threadsafe(_throw, caller)

    try:
        before: Any = signal.signal(signal.SIGINT, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _throw(caller: greenlet) -> None:
    caller.throw(KeyboardInterrupt)
