"""The broker that a command talks to."""

from __future__ import annotations

import click
import gevent

from greenconn.connection import Connection
from greenconn.url import maybe_sanitize_url

__all__ = ["connection_to", "report_losses"]


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
        raise click.BadParameter(maybe_sanitize_url(str(text)), param_hint="URL") from exc


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
