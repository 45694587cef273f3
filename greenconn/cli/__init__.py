"""The commands, and what a user sees when one cannot do its work: one line that names the remedy.

Also options, arguments and groups that several commands share.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from itertools import takewhile
from typing import Any, Final, Protocol, TypeVar

import click

from greenconn._version import __version__
from greenconn.cli.terminal import folded, is_colourless

F = TypeVar("F", bound=Callable[..., Any])

#: As ``greenconn.defaults`` has them; that is not imported for a help text.
URL_VARIABLE: Final = "GREENCONN_URL"
DEFAULT_URL: Final = "amqp://guest:guest@localhost:5672//"


class Decorator(Protocol):
    """A decorator, as click's options are."""

    def __call__(self, function: F, /) -> F: ...


class CommandGroup(click.Group):
    """Commands whose names stand in the errors about a missing or unknown one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            ctx.fail(f"missing command: known: {self._known(ctx)}")
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        if args and args[0] not in names:
            from difflib import get_close_matches

            near = get_close_matches(args[0], names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {self._known(ctx)}"
            ctx.fail(f"unknown command {args[0]!r}: {hint}")
        return super().resolve_command(ctx, args)

    def _known(self, ctx: click.Context) -> str:
        return ", ".join(self.list_commands(ctx))


def _default_url(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    return value or os.environ.get(URL_VARIABLE) or DEFAULT_URL


_DEFAULT: Final = f"[default: ${URL_VARIABLE} or {DEFAULT_URL}]"
url_option: Decorator = click.option(
    "-u",
    "--url",
    metavar="URL",
    callback=_default_url,
    help=f"URL of the broker  {_DEFAULT}",
)


def _keep_url(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    context.meta[URL_VARIABLE] = value


def _argument_or_option(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> str:
    option = context.meta[URL_VARIABLE]
    if value and option:
        context.fail("the URL must be given once: as an argument or with --url")
    return _default_url(context, parameter, value or option)


def url_argument(function: F) -> F:
    """Add the URL as an argument, beside ``--url``: for commands that have no other argument."""
    option = click.option(
        "-u",
        "--url",
        "url_option",
        metavar="URL",
        is_eager=True,
        expose_value=False,
        callback=_keep_url,
        help=f"URL of the broker  {_DEFAULT}",
    )
    argument = click.argument("url", required=False, callback=_argument_or_option)
    return argument(option(function))


json_option: Decorator = click.option(
    "--json", "is_json", is_flag=True, help="Print JSON, an object a line."
)
rate_option: Decorator = click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="Messages a second."
)
yes_option: Decorator = click.option(
    "-y", "--yes", is_flag=True, help="Do not ask for confirmation."
)
timeout_option: Decorator = click.option(
    "-t",
    "--timeout",
    type=click.FloatRange(min=0.01),
    default=10.0,
    show_default=True,
    help="Seconds to wait for the broker.",
)


def number_option(name: str, help_text: str, default: int, least: int = 1) -> Decorator:
    """Return an option for an integer of at least *least*."""
    return click.option(
        name, type=click.IntRange(min=least), default=default, show_default=True, help=help_text
    )


def _names(
    context: click.Context, parameter: click.Parameter, value: str | tuple[str, ...] | None
) -> str | tuple[str, ...] | None:
    for name in (value,) if isinstance(value, str) else value or ():
        if "://" in name:
            from greenconn.url import mask_secrets

            context.fail(
                f"{mask_secrets(name)!r} is a URL where the name of a queue is expected: give the "
                f"URL with --url"
            )
    return value


def queue_argument(name: str = "queue", **options: Any) -> Decorator:
    """Return an argument for the name of a queue, or for several."""
    return click.argument(name, callback=_names, **options)


def _bodies(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    if "-" not in value:
        return value
    if len(value) > 1:
        context.fail("'-' stands for the lines of the standard input: it must be the only BODY")
    return ()


#: None, or a ``-``, are the lines of the standard input.
bodies_argument: Decorator = click.argument(
    "bodies", nargs=-1, metavar="[BODY]...", callback=_bodies
)


def header_option(help_text: str) -> Decorator:
    """Return the option for headers as ``NAME=VALUE``, which may be given more than once."""
    return click.option(
        "-H", "--header", "headers", multiple=True, metavar="NAME=VALUE", help=help_text
    )


def function_named(option: str, target: str) -> Callable[..., Any]:
    """Import a function of the program, from the working directory, too.

    Arguments:
        option: that names it.
        target: ``module:name``.

    Raises:
        click.BadParameter: there is none of this name.
    """
    module_name, _, name = target.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = import_module(module_name) if module_name and name else None
    except ModuleNotFoundError as exc:
        raise click.BadParameter(str(exc), param_hint=option) from exc
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise click.BadParameter(
            f"must be a function as module:name, got {target!r}", param_hint=option
        )
    function: Callable[..., Any] = found
    return function


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
    if isinstance(sys.stdout, TextIOWrapper):  # as that of errors is from the start
        sys.stdout.reconfigure(errors="backslashreplace")
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
