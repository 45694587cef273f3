"""The commands, and what a user sees when one cannot do its work: one line that names the remedy."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from greenconn._version import __version__
from greenconn.cli import demo, messages, ping
from greenconn.cli.complaint import complaint
from greenconn.url import maybe_sanitize_url

__all__ = ["run"]

#: Exit codes beside 0 and click's 2 for wrong usage.
FAILED = 1
INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="greenconn")
def cli() -> None:
    """Talk to message brokers from gevent programs.

    URL is where the broker is: memory://, amqp://user:password@host:5672/vhost ... Without --url it is
    $GREENCONN_URL, else amqp://guest:guest@localhost:5672//.
    """


for _command in (demo.command, ping.command, *messages.commands):
    cli.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 when the work was done, 1 when it could not be, 2 for wrong usage, 130 when interrupted.
    """
    return _guarded(lambda: cli.main(arguments, prog_name="greenconn", standalone_mode=False))


def _guarded(function: Callable[[], Any]) -> int:
    try:
        result = function()
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("greenconn: interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does: nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as exc:
        text = complaint(exc)
        if text is None:
            raise
        click.echo(f"greenconn: {maybe_sanitize_url(text)}", err=True)
        return FAILED
    return result if isinstance(result, int) else 0
