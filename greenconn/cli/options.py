"""Options that several commands have."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import click

__all__ = [
    "DEFAULT_URL",
    "URL_VARIABLE",
    "Decorator",
    "header_option",
    "json_option",
    "rate_option",
    "timeout_option",
    "url_argument",
    "url_option",
]

F = TypeVar("F", bound=Callable[..., Any])

#: As ``greenconn.defaults`` has them; that is not imported for a help text.
URL_VARIABLE: Final = "GREENCONN_URL"
DEFAULT_URL: Final = "amqp://guest:guest@localhost:5672//"


class Decorator(Protocol):
    """A decorator, as click's options are."""

    def __call__(self, function: F, /) -> F: ...


def _default_url(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    return value or os.environ.get(URL_VARIABLE) or DEFAULT_URL


url_option: Decorator = click.option(
    "-u",
    "--url",
    metavar="URL",
    callback=_default_url,
    help=f"URL of the broker  [default: ${URL_VARIABLE} or {DEFAULT_URL}]",
)
url_argument: Decorator = click.argument("url", required=False, callback=_default_url)
json_option: Decorator = click.option(
    "--json", "is_json", is_flag=True, help="Print JSON, an object a line."
)
rate_option: Decorator = click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="Messages a second."
)
timeout_option: Decorator = click.option(
    "-t",
    "--timeout",
    type=click.FloatRange(min=0.01),
    default=10.0,
    show_default=True,
    help="Seconds to wait for the broker.",
)


def header_option(help_text: str) -> Decorator:
    """Return the option for headers as ``NAME=VALUE``, which may be given more than once."""
    return click.option(
        "-H", "--header", "headers", multiple=True, metavar="NAME=VALUE", help=help_text
    )
