"""``greenconn doctor``: what is wrong between this machine and a broker, and what to do."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from textwrap import wrap
from typing import TYPE_CHECKING, Final

import click

from greenconn.cli.options import timeout_option, url_argument
from greenconn.cli.terminal import ACCENT, ATTENTION

if TYPE_CHECKING:
    from greenconn.cli.doctor.checks import Finding
    from greenconn.connection import Connection

#: Before a remedy.
ARROW: Final = "-> "
#: Outcome -> colour.
COLOURS: Final = {"ok": ACCENT, "note": None, "warning": ATTENTION, "failed": "red"}
#: Outcomes that stand out.
BOLD: Final = frozenset({"warning", "failed"})
#: Width of the outcome, and of the name of a check.
OUTCOME: Final = 9
CHECK: Final = 14


@click.command("doctor")
@url_argument
@click.option(
    "-q", "--queue", "queues", multiple=True, help="Check this queue, too.  (Repeatable.)"
)
@click.option("--read-only", is_flag=True, help="Declare no queue, and send no message.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object.")
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings, too.")
@timeout_option
def command(
    url: str,
    queues: tuple[str, ...],
    read_only: bool,
    is_json: bool,
    strict: bool,
    timeout: float,
) -> int:
    """Check this machine, the way to the broker at URL, and the broker.

    A line each: what was looked at, what was seen, and what to do.  Exits with 1 when something failed.

    \b
    Example:
      greenconn doctor amqp://guest:guest@localhost:5672// --queue mail
      greenconn doctor "amqp://one;amqp://two" --json
    """
    from greenconn.cli.broker import connection_to, interruptible
    from greenconn.cli.doctor.checks import Outcome, check_process
    from greenconn.url import maybe_sanitize_url

    found: list[tuple[str, list[Finding]]] = []
    with interruptible():
        found.append(("this machine", _shown(check_process(), "this machine", is_json)))
        for each in connection_to(url, timeout).alt or [url]:
            connection = connection_to(each, timeout)
            try:
                where = maybe_sanitize_url(each)
                checks = _check_broker(connection, queues, read_only, timeout)
                found.append((where, _shown(checks, where, is_json)))
            finally:
                connection.close()
    worst = {each.outcome for _, findings in found for each in findings}
    is_failed = Outcome.FAILED in worst or (strict and Outcome.WARNING in worst)
    if is_json:
        report = {where: [each.as_dict() for each in findings] for where, findings in found}
        click.echo(json.dumps({"ok": not is_failed, "checks": report}, ensure_ascii=False))
    return int(is_failed)


def _check_broker(
    connection: Connection, queues: tuple[str, ...], is_read_only: bool, timeout: float
) -> Iterator[Finding]:
    """Yield what is found of one broker, step by step: what fails ends it.  May switch."""
    from greenconn.cli.doctor.checks import (
        Outcome,
        check_message,
        check_network,
        check_queue,
        check_rabbitmq,
        check_redis,
        check_session,
    )

    transport = connection.transport
    port = connection.port or transport.default_connection_params.get("port")
    host = connection.hostname or transport.default_connection_params.get("hostname")
    if host and port and "/" not in host:
        is_reached = False
        for finding in check_network(host, port, connection.ssl, timeout):
            is_reached = is_reached or (finding.check == "TCP" and finding.outcome is Outcome.OK)
            yield finding
        if not is_reached:
            return
    for finding in check_session(connection):
        yield finding
        if finding.outcome is Outcome.FAILED:
            return
    if not is_read_only:
        yield from check_message(connection, timeout)
    if transport.driver_type == "amqp":
        yield from check_rabbitmq(connection)
    elif transport.driver_type == "redis":
        yield from check_redis(connection)
    for name in queues:
        yield from check_queue(connection, name)


def _shown(findings: Iterator[Finding], where: str, is_json: bool) -> list[Finding]:
    """Print the findings as they come, unless it is for JSON, and return them.  May switch."""
    if is_json:
        return list(findings)
    width = max(60, min(shutil.get_terminal_size().columns, 120)) if sys.stdout.isatty() else None
    click.secho(where, bold=True)
    shown = []
    for each in findings:
        shown.append(each)
        for line in _lines(each, width):
            click.echo(line)
    click.echo()
    return shown


def _lines(finding: Finding, width: int | None) -> Iterator[str]:
    """Yield the lines of a finding; its remedy has one of its own.

    Arguments:
        width: columns of the terminal; None: no line is broken.
    """
    outcome = finding.outcome.value
    head = (
        click.style(f"  {outcome:{OUTCOME - 2}}", fg=COLOURS[outcome], bold=outcome in BOLD)
        + f" {finding.check:{CHECK}} "
    )
    margin = " " * (OUTCOME + 1 + CHECK + 1)
    for number, text in enumerate((finding.text, finding.remedy)):
        mark = ARROW if number else ""
        room = width and width - len(margin) - len(mark)
        parts = wrap(text, room) if room and text else [text] if text else []
        for index, part in enumerate(parts):
            begin = margin if number or index else head
            yield begin + (" " * len(mark) if index else mark) + part
