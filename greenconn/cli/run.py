"""Programs that run until Ctrl-C: ``greenconn run``, ``torture`` and ``console``.

The consumers and servers of an application, the same with faults, and the web pages of a broker.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TextIO

import click

from greenconn.cli import function_named, queue_argument, url_option

if TYPE_CHECKING:
    from greenconn.service.app import App


@click.command("run")
@click.argument("application", metavar="MODULE[:APP]", required=False)
@click.option(
    "-u", "--url", metavar="URL", help="URL of the broker, instead of the application's own."
)
@click.option(
    "-p", "--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Processes."
)
@click.option(
    "-g",
    "--graceful-timeout",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Seconds that running handlers have when it is stopped.",
)
@click.option("--reload", "reloads", is_flag=True, help="Restart when a source file changes.")
@click.option(
    "--health",
    metavar="[HOST:]PORT",
    help="Answer /health/live and /health/ready there; process n listens at PORT + n.",
)
@click.option(
    "--stalled-after",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="Report a consumer that gets nothing for so long, though its queue holds messages.",
)
@click.option(
    "--patch/--no-patch",
    default=True,
    show_default=True,
    help="Patch the standard library for gevent before the application is imported.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Level of the log, if the application sets up none.",
)
def run(
    application: str | None,
    url: str | None,
    processes: int,
    graceful_timeout: float,
    reloads: bool,
    health: str | None,
    stalled_after: float | None,
    patch: bool,
    log_level: str,
) -> int:
    """Run the consumers and RPC servers that APP, a greenconn.App in MODULE, declares.

    TERM and INT stop it gracefully, a second time at once.  HUP replaces the processes, TTIN and TTOU
    add and remove one.  Without MODULE it lists the applications in the files of this directory.

    \b
    Example:
      greenconn run shop.tasks
      greenconn run shop.tasks:app --processes 4 --health 8080
      greenconn run shop.tasks --reload
    """
    from greenconn.service.processes import (
        ProcessManager,
        command_line,
        is_managed,
        parse_address,
        unblock_signals,
    )

    if application is None:
        from greenconn.service.program import applications_in

        found = ", ".join(applications_in(os.getcwd()))
        raise click.UsageError(
            f"missing argument 'MODULE[:APP]': found {found}"
            if found
            else "missing argument 'MODULE[:APP]', and no file in this directory makes a greenconn.App"
        )
    try:
        address = None if health is None else parse_address(health)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--health") from exc
    if (processes > 1 or reloads) and not is_managed():
        _log(log_level, is_one_of_many=True)
        return ProcessManager(
            command_line(), processes, graceful_timeout=graceful_timeout, health=address
        ).run()

    if patch:
        from gevent import monkey

        monkey.patch_all()
    from greenconn.service.program import Program, load_app

    def load() -> App:
        try:
            app = load_app(application)
        finally:
            # The application's own setting comes first.
            _log(log_level, is_one_of_many=is_managed())
        if url is not None:
            app.configure(url)
        return app

    unblock_signals()
    program = Program(
        load,
        graceful_timeout=graceful_timeout,
        health=address,
        stalled_after=stalled_after,
        reloads=reloads,
    )
    return program.run()


def _log(level: str, *, is_one_of_many: bool) -> None:
    """Show the log, unless the application has set it up.

    Arguments:
        is_one_of_many: name the process in each line.
    """
    process = " [%(process)d]" if is_one_of_many else ""
    logging.basicConfig(
        level=level.upper(), format=f"%(asctime)s{process} %(levelname)s %(name)s: %(message)s"
    )


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


@click.command("torture")
@click.argument("application", metavar="MODULE[:APP]")
@click.option(
    "-m",
    "--messages",
    type=click.File(encoding="utf-8"),
    required=True,
    help='A file with a message a line: {"queue": "orders", "body": {"id": 1}}; - is the input.',
)
@click.option(
    "-c",
    "--check",
    "checks",
    metavar="MODULE:FUNCTION",
    multiple=True,
    help="Called after each history: it fails if it raises or returns False.  "
    "[default: no message may be given up]",
)
@click.option(
    "--reset",
    metavar="MODULE:FUNCTION",
    help="Called before each history, so that each begins with the same state.",
)
@click.option(
    "--forget",
    metavar="MODULE:FUNCTION",
    help="Called when a process is restarted, to drop what a process has in its memory.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sample.")
@click.option(
    "-n",
    "--histories",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Maximum number of histories.",
)
@click.option(
    "--fault",
    "faults",
    metavar="FAULT",
    multiple=True,
    help="Only faults of this kind, such as kill.",
)
@click.option("--replay", metavar="HISTORY", help="Run only this history, as a failure prints it.")
@click.option(
    "--patch/--no-patch",
    default=True,
    show_default=True,
    help="Patch the standard library for gevent before the application is imported.",
)
def torture(
    application: str,
    messages: TextIO,
    checks: tuple[str, ...],
    reset: str | None,
    forget: str | None,
    seed: int,
    histories: int,
    faults: tuple[str, ...],
    replay: str | None,
    patch: bool,
) -> int:
    """Run the handlers of APP, a greenconn.App in MODULE, with every kill, duplicate and reordering.

    The messages are published to a broker in memory, again and again, each time with other faults.  The
    first history whose check fails is printed as a story, with the line that repeats it.

    \b
    Example:
      greenconn torture shop.tasks --messages orders.jsonl
      greenconn torture shop.tasks --messages orders.jsonl --check shop.checks:paid_once
    """
    if patch:
        from gevent import monkey

        monkey.patch_all()
    from greenconn.cli.terminal import progress
    from greenconn.service.program import load_app
    from greenconn.torture import FAULTS, TortureFailure
    from greenconn.torture import torture as tortured

    app = load_app(application)
    run = tortured(
        app,
        seed=seed,
        histories=histories,
        faults=faults or FAULTS,
        reset=None if reset is None else function_named("--reset", reset),
        forget=None if forget is None else function_named("--forget", forget),
        replay=replay,
    )
    for target, body, options in _messages_in(messages):
        run.publish(target, body, **options)
    for check in checks:
        run.check(function_named("--check", check))
    run.repeat = f"{_command(application, messages.name, checks, reset, forget)} --replay {{!r}}"
    try:
        with progress("histories:", None if replay else histories) as show:
            report = run.explore(show)
    except TortureFailure as exc:
        click.echo(str(exc))
        return 1
    what = "all" if report.is_complete else "a sample"
    faults_each = "1 fault" if report.depth == 1 else f"{report.depth} faults"
    click.echo(
        f"{report.histories:,} histories passed in {report.seconds:.1f} s: {what} of those with up to "
        f"{faults_each}, {report.calls:,} calls of handlers"
    )
    return 0


def _messages_in(file: TextIO) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield queue, body and further options of each message.

    Raises:
        click.UsageError: a line is not such an object, or there is none.
    """
    number = 0
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
        except ValueError as exc:
            raise click.UsageError(f"line {number} of {file.name} must be JSON: {exc}") from exc
        if not isinstance(given, dict) or not isinstance(given.get("queue"), str):
            raise click.UsageError(
                f"line {number} of {file.name} must be an object with 'queue' and 'body', "
                f"got {line.strip()[:60]}"
            )
        if "body" not in given:
            raise click.UsageError(f"line {number} of {file.name} must have a 'body'")
        yield given.pop("queue"), given.pop("body"), given
    if not number:
        raise click.UsageError(f"{file.name} must have at least one message, a line each")


def _command(
    application: str,
    messages: str,
    checks: tuple[str, ...],
    reset: str | None,
    forget: str | None,
) -> str:
    words = ["greenconn", "torture", application, "--messages", messages]
    for check in checks:
        words += ["--check", check]
    for option, value in (("--reset", reset), ("--forget", forget)):
        if value is not None:
            words += [option, value]
    return shlex.join(words).replace("{", "{{").replace("}", "}}")
