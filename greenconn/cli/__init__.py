"""The commands, and what a user sees when one cannot do its work: one line that names the remedy."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import takewhile
from typing import Any, Final

import click

from greenconn._version import __version__
from greenconn.cli.options import CommandGroup
from greenconn.cli.terminal import folded, is_colourless

#: Exit codes beside 0.
FAILED: Final = 1
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130

#: Command -> what it does.
COMMANDS: Final = {
    "demo": "Run consumers and publishers, and show live figures.",
    "bench": "Measure rates and latencies of a broker.",
    "ping": "Connect to a broker, and measure round trips.",
    "doctor": "Check the way to a broker, and the broker.",
    "publish": "Publish messages to a queue.",
    "consume": "Print the messages of a queue.",
    "rpc": "Call the server of a queue.",
    "peek": "Look at the messages of a queue, which stay there.",
    "move": "Move the messages of a queue to another, perhaps of another broker.",
    "top": "Show queues live: messages, consumers, rates and lag.",
    "console": "Show queues, dead letters and connections on web pages.",
    "queues": "List, declare, bind or delete queues.",
    "purge": "Delete all ready messages of a queue.",
    "dead": "Show, count, replay or purge the dead letters of a queue.",
    "run": "Run the consumers of an application.",
    "torture": "Run the handlers of an application with faults.",
    "asyncapi": "Print an AsyncAPI document of an application.",
    "postgres": "Create the tables of a broker in PostgreSQL.",
}
#: Commands that are not in the module of their name.
_MODULES: Final = {
    "ping": "broker",
    "postgres": "broker",
    "torture": "run",
    "rpc": "consume",
    "console": "run",
    "peek": "messages",
    "move": "messages",
    "purge": "messages",
    "dead": "messages",
}


class _Commands(CommandGroup):
    """Imports the module of a command when it is asked for, so that help comes at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"greenconn.cli.{_MODULES.get(cmd_name, cmd_name)}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="greenconn")
@click.option("-v", "--verbose", is_flag=True, help="Show the library's log, and tracebacks.")
def cli(verbose: bool) -> None:
    """Talk to message brokers from gevent programs.

    URL is where the broker is: memory://, amqp://user:password@host:5672/vhost ... Without one it is
    $GREENCONN_URL, else amqp://guest:guest@localhost:5672//.

    \b
    Example:
      greenconn demo
      greenconn ping amqp://guest:guest@localhost:5672//
      greenconn publish mail '{"to": "ada@example.org"}' --json
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 when the work was done, 1 when it could not be, 2 for wrong usage, 130 when interrupted.
    """
    given = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    own = takewhile(lambda each: each.startswith("-"), given)  # those before the command
    is_verbose = not {"-v", "--verbose"}.isdisjoint(own)
    with _log_shown(is_verbose):
        return _guarded(lambda: _invoked(given), is_verbose)


@contextmanager
def _log_shown(is_shown: bool) -> Iterator[None]:
    """Write the library's log to stderr, or nowhere: the command itself says what matters."""
    logger = logging.getLogger("greenconn")
    level = logger.level
    handler: logging.Handler = logging.NullHandler()
    if is_shown:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _invoked(arguments: list[str]) -> Any:
    """Run the command as click's ``main`` does, which would print and exit besides."""
    color = False if is_colourless() else None  # which click does not look at
    with cli.make_context("greenconn", arguments, color=color) as context:
        return cli.invoke(context)


def _guarded(function: Callable[[], Any], is_verbose: bool) -> int:
    try:
        result = function()
        if sys.stdout is not None:  # the shell's >&-
            sys.stdout.flush()
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.ClickException as exc:
        click.echo(folded(_one_line(exc), sys.stderr), err=True)
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("greenconn: interrupted", err=True)
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # The reader of our output has gone, as `| head` does: nothing is wrong.  (It is for that
        # alone that rich raises SystemExit.)
        _drop_output()
        return 0
    except Exception as exc:
        from greenconn.cli.broker import error_line

        if is_verbose:
            logging.getLogger("greenconn.cli").exception("the command failed")
        text, code = error_line(exc)
        click.echo(folded(f"greenconn: {text}", sys.stderr), err=True)
        return code
    return result if isinstance(result, int) else 0


def _one_line(exc: click.ClickException) -> str:
    """Return in one line the error that click would print in four."""
    text = " ".join(exc.format_message().split()).rstrip(".")
    context = getattr(exc, "ctx", None)
    path = "greenconn" if context is None else context.command_path
    return f"{path}: {text} (see {path} --help)"


def _drop_output() -> None:
    """Keep the interpreter from reporting, when it exits, output that is not read."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass
