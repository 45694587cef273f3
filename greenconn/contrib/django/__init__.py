"""greenconn in Django projects: the broker comes from the settings.

With ``"greenconn.contrib.django"`` in ``INSTALLED_APPS`` the default connections, which
``greenconn.publish``, ``spawn_consumer`` and ``rpc`` use, lead to the broker of the settings:
``BROKER_URL``, or ``BROKER_HOST``, ``BROKER_PORT``, ``BROKER_USER``, ``BROKER_PASSWORD``,
``BROKER_VHOST`` and others.  Without any of them nothing is configured.

:data:`app` is the application of the project: what its modules ``consumers`` declare with it is run by
``manage.py runconsumers``.
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlencode

from django.conf import settings as project
from django.core.management.base import BaseCommand
from django.db import connections, reset_queries, transaction

import greenconn.defaults
from greenconn.compat.carrot.connection import separate_settings
from greenconn.connection import Connection
from greenconn.message import Message
from greenconn.publishing import publish
from greenconn.publishing.publisher import Target
from greenconn.service.app import App
from greenconn.service.processes import ProcessManager, is_managed, parse_address, unblock_signals
from greenconn.service.program import Program
from greenconn.url import as_url, safequote, split_urls, url_to_parts

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.publishing.publisher import PublishArguments

__all__ = ["app", "configure", "connection", "handler", "publish_on_commit"]

Result = TypeVar("Result")

#: Argument of a connection -> part of a URL.
_PARTS: Final = {
    "transport": "scheme",
    "hostname": "hostname",
    "port": "port",
    "userid": "username",
    "password": "password",
    "virtual_host": "path",
}


def connection(settings: Any = None, **arguments: Any) -> Connection:
    """Make a connection to the broker of the settings.  Opens nothing.

    Arguments:
        settings: any object with such attributes; None is ``django.conf.settings``.
        arguments: of :class:`greenconn.Connection`; they win over the settings.

    Raises:
        ValueError, KeyError: a setting is wrong.
    """
    url, found = _arguments(project if settings is None else settings)
    return Connection(url, **{**found, **arguments})


def configure(settings: Any = None) -> None:
    """Have the default connections lead to the broker of the settings, if they name one.

    The app does it when Django starts.  May switch.

    Arguments:
        settings: as for :func:`connection`.

    Raises:
        ValueError, KeyError: a setting is wrong.
    """
    url, found = _arguments(project if settings is None else settings)
    if url is not None or found:
        url = url or "localhost"
        if "://" not in url:
            found.setdefault("transport", "amqp")
        greenconn.defaults.configure(url, **found)


def _arguments(settings: Any) -> tuple[str | None, dict[str, Any]]:
    """Return the URL and the further arguments of a connection.

    Separate settings win over their parts of a URL; where that is a list, they fill what each of its
    URLs leaves blank.
    """
    found = separate_settings(settings)
    if "backend_cls" in found:
        found["transport"] = found.pop("backend_cls")
    url = getattr(settings, "BROKER_URL", None)
    if not url:
        return found.pop("hostname", None), found
    urls = split_urls(url)
    if len(urls) > 1:
        found.pop("hostname", None)
        return ";".join(urls), found
    return _merged(urls[0], found), found


def _merged(url: str, found: dict[str, Any]) -> str:
    """*url* with the parts that *found* has in their place; they are taken out of *found*."""
    parts = url_to_parts(url)
    changes = {part: found.pop(name) for name, part in _PARTS.items() if name in found}
    query = {name: value for name, value in parts.query.items() if name not in found}
    parts = parts._replace(**changes)
    path = safequote(parts.path) if parts.path else None
    merged = as_url(*parts[:5], path=path)
    return f"{merged}?{urlencode(query)}" if query else merged


def handler(function: Callable[..., Result]) -> Callable[..., Result]:
    """Return a handler that uses Django's models, for ``spawn_consumer`` and ``spawn_server``.

    Before and after it, database connections that are broken or too old are closed, as Django does it
    around a request.

    Example::

        greenconn.spawn_consumer("mail", handler(send_mail), concurrency=10)
    """

    @wraps(function)
    def handle(*arguments: Any) -> Result:
        with _database_connections():
            return function(*arguments)

    return handle


@contextmanager
def _database_connections(message: Message | None = None) -> Iterator[None]:
    """Close database connections that are broken or too old, before and after a message."""
    reset_queries()
    _close_old_connections()
    try:
        yield
    finally:
        _close_old_connections()


def _close_old_connections() -> None:
    # Not that of a transaction in which the handler runs, for which Django's function would do it.
    for each in connections.all(initialized_only=True):
        if not each.in_atomic_block:
            each.close_if_unusable_or_obsolete()


#: The application of the project: its handlers use models as requests do, without :func:`handler`.
app: Final = App()
app.around_handle(_database_connections)


def publish_on_commit(
    target: Target, body: Any, *, using: str | None = None, **options: Unpack[PublishArguments]
) -> None:
    """Publish a message when the transaction is committed, and not at all if it is rolled back.

    So a consumer finds in the database what the message is about.  Without a transaction it is
    published now.  May switch, in either case.

    Arguments:
        target, body, options: as for :func:`greenconn.publish`.
        using: the database; None is the default one.

    Raises:
        OperationalError: as :func:`greenconn.publish`; the transaction is committed all the same.
    """
    transaction.on_commit(partial(publish, target, body, **options), using=using)


class ProgramCommand(BaseCommand):
    """A command that runs an application in processes of its own.

    The processes that it starts are patched for gevent before Django is imported; this one manages them.
    """

    def load(self, **options: Any) -> App:
        """Return the application; called in each process, with the options of the command."""
        raise NotImplementedError

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options of ``greenconn run``."""
        parser.add_argument("-p", "--processes", type=int, default=1, help="processes (1)")
        parser.add_argument(
            "-g",
            "--graceful-timeout",
            type=float,
            default=30.0,
            help="seconds that running handlers have when it is stopped (30)",
        )
        parser.add_argument(
            "--reload", action="store_true", help="restart when a source file changes"
        )
        parser.add_argument(
            "--health",
            type=parse_address,
            metavar="[HOST:]PORT",
            help="answer /health/live and /health/ready there; process n listens at PORT + n",
        )
        parser.add_argument(
            "--stalled-after",
            type=float,
            metavar="SECONDS",
            help="report a consumer that gets nothing for so long, though its queue holds messages",
        )
        parser.add_argument(
            "--no-patch", action="store_true", help="do not patch the standard library for gevent"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run it until a signal ends it."""
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        timeout = options["graceful_timeout"]
        if not is_managed():
            # The directory of manage.py, which the interpreter adds for scripts only.
            paths = [sys.path[0], os.environ.get("PYTHONPATH", "")]
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
            patch = [] if options["no_patch"] else ["-m", "gevent.monkey"]
            command = [sys.executable, *patch, *sys.argv]
            manager = ProcessManager(
                command,
                options["processes"],
                graceful_timeout=timeout,
                health=options["health"],
            )
            sys.exit(manager.run())
        unblock_signals()
        program = Program(
            partial(self.load, **options),
            graceful_timeout=timeout,
            health=options["health"],
            stalled_after=options["stalled_after"],
            reloads=options["reload"],
        )
        sys.exit(program.run())
