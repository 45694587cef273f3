"""``greenconn run``: run the consumers and servers of an application."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import click

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
