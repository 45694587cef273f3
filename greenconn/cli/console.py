"""``greenconn console``: the web pages of a broker, served alone."""

from __future__ import annotations

from ipaddress import ip_address

import click

from greenconn.cli.options import function_named, queue_argument, url_option

#: Names by which a server on a loopback address may be asked; another one was rebound to it.
LOCAL = ("localhost", "127.0.0.1", "::1")


@click.command("console")
@queue_argument("names", nargs=-1, metavar="[QUEUE]...")
@url_option
@click.option(
    "-b",
    "--bind",
    metavar="[HOST:]PORT",
    default="127.0.0.1:8090",
    show_default=True,
    help="Listen there; without HOST on 127.0.0.1.",
)
@click.option(
    "--actions",
    is_flag=True,
    help="Allow all actions, on a loopback address only: retry, purge ...",
)
@click.option(
    "--authorize",
    metavar="MODULE:FUNCTION",
    help="Called with the WSGI environ and an action; returns whether it may be done.",
)
@click.option("--hide-bodies", is_flag=True, help="Do not show the bodies of messages.")
def console(
    names: tuple[str, ...],
    url: str,
    bind: str,
    actions: bool,
    authorize: str | None,
    hide_bodies: bool,
) -> None:
    """Show queues, dead letters and connections of a broker on web pages.

    The pages only show, unless --actions or --authorize is given.  QUEUE is the name of a queue, for
    brokers that cannot list theirs.  The pages of the handlers and schedules of an application are those
    of the process in which it mounts greenconn.contrib.console.

    \b
    Example:
      greenconn console -u redis://localhost:6379/0
      greenconn console --actions --bind 8080 -u amqp://guest:guest@localhost:5672//
    """
    host, port = _address(bind)
    is_local = _is_local(host)
    if actions and authorize:
        raise click.UsageError("--actions and --authorize must not be given together")
    if not is_local and not authorize:
        raise click.UsageError(
            f"--authorize must be given to listen on {host}, which others can reach: the console shows "
            "the messages of the broker (or listen on 127.0.0.1)"
        )
    allowed = (
        function_named("--authorize", authorize) if authorize else (lambda environ, action: True)
    )

    from gevent.pywsgi import WSGIServer

    from greenconn.contrib.console import Console

    pages = Console(
        url,
        allowed if actions or authorize else None,
        queues=names,
        show_bodies=not hide_bodies,
        hosts=LOCAL if is_local else None,
    )
    server = WSGIServer((host, port), pages, log=None)
    try:
        server.start()
        shown = f"[{host}]" if ":" in host else host
        rights = "" if actions or authorize else ", read-only"
        click.echo(
            f"http://{shown}:{server.server_port}/ shows {pages.label}{rights}; Ctrl-C ends it"
        )
        server.serve_forever()
    except KeyboardInterrupt:
        click.echo("", err=True)
    finally:
        server.stop()
        pages.close()


def _address(bind: str) -> tuple[str, int]:
    from greenconn.service.processes import parse_address

    try:
        host, port = parse_address(bind)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--bind") from exc
    return ("127.0.0.1" if bind.isdigit() else host), port


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
