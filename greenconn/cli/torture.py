"""``greenconn torture``: run the handlers of an application with faults."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any, TextIO

import click

from greenconn.cli.options import function_named


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
