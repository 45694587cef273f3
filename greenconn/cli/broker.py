"""The broker that a command talks to, until Ctrl-C, and its errors as a user reads them.

Also ``greenconn ping``, which connects to it and measures round trips, and ``greenconn postgres``: the
tables that a broker in PostgreSQL needs.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from types import FrameType
from typing import Any, Final

import click
import gevent
from gevent import get_hub
from greenlet import getcurrent, greenlet

from greenconn.cli import (
    FAILED,
    WRONG_USAGE,
    CommandGroup,
    json_option,
    timeout_option,
    url_argument,
)
from greenconn.connection import Connection
from greenconn.exceptions import (
    AccessRefused,
    AMQPError,
    BodyTooLarge,
    ConnectionBlocked,
    ConnectionForced,
    ContentDisallowed,
    ContentTooLarge,
    FrameError,
    KombuError,
    NotAllowed,
    NotFound,
    PreconditionFailed,
    PublishRefused,
    PublishTimeout,
    ReplyTimeout,
    ResourceLocked,
    Unroutable,
    error_text,
)
from greenconn.url import mask_secrets


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


@contextmanager
def connected(url: str, timeout: float) -> Iterator[Connection]:
    """Give an open connection for the block, which SIGINT interrupts; then close it.  May switch."""
    connection = connection_to(url, timeout)
    try:
        with interruptible():
            connection.connect()
            yield connection
    finally:
        connection.close()


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


@click.command("ping")
@url_argument
@click.option(
    "-c",
    "--count",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Number of round trips to measure.",
)
@json_option
@timeout_option
def ping(url: str, count: int, is_json: bool, timeout: float) -> None:
    """Connect to the broker at URL, say what it is, and measure round trips.

    \b
    Example:
      greenconn ping amqp://guest:guest@localhost:5672//
      greenconn ping --json
    """
    connection = connection_to(url, timeout)
    no_reply = TimeoutError(f"{connection.as_uri()}: no reply")
    try:
        with interruptible(), gevent.Timeout(2 * timeout, no_reply):
            began = perf_counter()
            connection.connect()
            opened = 1e3 * (perf_counter() - began)
            broker = product_of(connection)
            if not is_json:
                click.echo(f"{connection.as_uri()}: {broker}, open in {opened:.1f} ms")
            times = [1e3 * round_trip(connection) for _ in range(count)]
    finally:
        connection.close()
    best, middle, worst = min(times), median(times), max(times)
    if is_json:
        found = {"open_ms": opened, "best_ms": best, "median_ms": middle, "worst_ms": worst}
        rounded = {name: round(each, 3) for name, each in found.items()}
        where = {"url": connection.as_uri(), "broker": broker}
        click.echo(json.dumps({**where, **rounded, "count": count}, ensure_ascii=False))
        return
    click.echo(
        f"round trip: {best:.2f} ms at best, {middle:.2f} ms median, {worst:.2f} ms at worst "
        f"({count} times)"
    )


#: Class of an error, and the remedy for it; the first that fits.
_REMEDIES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (ConnectionRefusedError, "is the broker running, and is the port right?"),
    (AccessRefused, "check user, password and permissions in the URL"),
    (NotAllowed, "check that the virtual host in the URL exists and the user may use it"),
    (NotFound, "check the name, or publish to it first with --declare"),
    (PreconditionFailed, "it exists with other arguments: use those, or delete it"),
    (ResourceLocked, "another connection uses it exclusively"),
    (Unroutable, "check the name of the queue, or declare it: greenconn queues declare"),
    (ConnectionBlocked, "look at the broker's memory and disk alarms"),
    (PublishTimeout, "it is connected, but did not confirm: look at the broker's load and its log"),
    (ConnectionForced, "the broker was shut down: start it again"),
    (ConnectionResetError, "the broker closed the connection: look at its log"),
    (ContentTooLarge, "split it, or raise the broker's max_message_size"),
    (BodyTooLarge, "raise it in the URL, as in amqp://host//?max_message_size=BYTES"),
    (FrameError, "check that the port is the broker's"),
    (ContentDisallowed, "name the content type with --accept if you trust the sender"),
    (ReplyTimeout, "is a server of the queue running?"),
    (TimeoutError, "check host, port and firewall"),
)
EXCHANGE_REMEDY: Final = (
    "check the name of the exchange and the routing key, or bind a queue: greenconn queues bind"
)
#: What amqp and the system put before their texts.
_NUMBERS: Final = re.compile(
    r"^(\(\d+, \d+\):|None)\s*|\[Errno -?\d+\] |\b[A-Z]\w+\.\w+: \(\d{3}\) "
)
#: A URL in quotes, which may contain blanks, or a word with a URL.
_URL_IN_TEXT: Final = re.compile(
    r"""(?<=')[\w.+-]+://[^']*(?=')|(?<=")[\w.+-]+://[^"]*(?=")|[^\s'"]*://\S*"""
)
#: The end of a text that speaks of the arguments of a function.
_LIBRARY: Final = re.compile(r", and publish\(\) by name does not declare it: .*")


def error_line(exc: BaseException) -> tuple[str, int]:
    """Return one line for the user, and the exit code."""
    text = _text_of(exc)
    if isinstance(exc, (ValueError, KeyError, TypeError, ImportError)):
        return text, WRONG_USAGE
    if not isinstance(exc, (OSError, AMQPError, KombuError)):
        name = type(exc).__name__
        return f"unexpected {name}: {text}: this is a bug; --verbose shows the traceback", FAILED
    cause: BaseException | None = exc
    if isinstance(exc, PublishTimeout) and exc.__cause__ is not None:
        cause = exc.__cause__  # what the publish waited for: the broker's alarm, or the broker
    while cause is not None and not getattr(cause, "has_remedy", False):
        if _is_about_exchange(cause):
            return f"{text}: {EXCHANGE_REMEDY}", FAILED
        for kind, remedy in _REMEDIES:
            if isinstance(cause, kind):
                return (text if remedy in text else f"{text}: {remedy}"), FAILED
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno < 0:
            return f"{text}: check the host name", FAILED  # a number of getaddrinfo
        cause = cause.__cause__
    return text, FAILED


def _is_about_exchange(exc: BaseException) -> bool:
    """Return whether an exchange does not exist, or has no binding for a message."""
    if isinstance(exc, PublishRefused):  # of a queue by its name it is Unroutable
        return isinstance(exc.__cause__, NotFound)
    if isinstance(exc, NotFound):
        return "no exchange" in str(exc)
    return isinstance(exc, Unroutable) and bool(exc.exchange)


def _text_of(exc: BaseException) -> str:
    missing = (getattr(exc, "name", None) or "").partition(".")[0]
    if isinstance(exc, ImportError) and missing in ("click", "rich"):
        return f"this command needs {missing!r}: pip install 'greenconn[cli]'"
    text = str(exc.args[0]) if isinstance(exc, KeyError) and exc.args else error_text(exc)
    text = _LIBRARY.sub("", _NUMBERS.sub("", " ".join(text.split())))
    return masked(text) or type(exc).__name__


def masked(text: str) -> str:
    """Return *text* without the passwords of the URLs in it; an ``@`` elsewhere is kept."""
    return _URL_IN_TEXT.sub(lambda match: mask_secrets(match[0]), text)


@click.group("postgres", cls=CommandGroup)
def postgres() -> None:
    """Create the tables of a broker in PostgreSQL, or bring them up to date.

    A connection does that by itself, where its role may create a schema.

    \b
    Example:
      greenconn postgres migrate postgresql://owner@db/shop
      greenconn postgres migrate --sql | psql shop
    """


@postgres.command("migrate")
@url_argument
@click.option("--sql", "is_sql", is_flag=True, help="Print the statements, and connect to nothing.")
@click.option("--schema", help="Where the tables are.  [default: that of the URL, else greenconn]")
@click.option(
    "--from",
    "version",
    type=click.IntRange(min=0),
    default=0,
    help="With --sql: the version that is there; 0 is none.  [default: 0]",
)
@timeout_option
def migrate(url: str, is_sql: bool, schema: str | None, version: int, timeout: float) -> None:
    """Create the tables, or bring them up to the version of this greenconn.

    Each version is applied in one transaction, under a lock: any number of processes may do it at once.
    """
    from greenconn.cli.broker import connection_to, interruptible
    from greenconn.transport.postgresql import Transport
    from greenconn.transport.postgresql.schema import VERSION, statements

    if version and not is_sql:
        raise click.UsageError("--from goes with --sql: a database knows its version")
    if is_sql:
        if version > VERSION:
            raise click.BadParameter(
                f"{version} is later than the last one, {VERSION}", param_hint="--from"
            )
        name = schema
        if name is None:
            transport = connection_to(url).transport
            name = transport.options.schema if isinstance(transport, Transport) else "greenconn"
        click.echo("BEGIN;")
        for statement in statements(name, version):
            click.echo(f"{statement};")
        click.echo("COMMIT;")
        return
    connection = connection_to(url, timeout)
    if not isinstance(connection.transport, Transport):
        raise click.BadParameter(
            f"must be of PostgreSQL (postgresql://), got {connection.as_uri()}", param_hint="URL"
        )
    if schema is not None:
        connection = connection.clone(transport_options={"schema": schema})
    with interruptible(), connection:
        connection.connect()
        click.echo(f"schema {connection.transport.options.schema}: version {VERSION}")
