"""Options, arguments and groups that several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, Protocol, TypeVar

import click

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
