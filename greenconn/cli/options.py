"""Options that several commands have."""

from __future__ import annotations

import os
from typing import Any

import click

from greenconn.defaults import DEFAULT_URL, URL_VARIABLE

__all__ = ["timeout_option", "url_argument", "url_option"]


def _default_url(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    return value or os.environ.get(URL_VARIABLE) or DEFAULT_URL


url_option: Any = click.option(
    "-u",
    "--url",
    metavar="URL",
    callback=_default_url,
    help=f"Where the broker is [default: ${URL_VARIABLE} or {DEFAULT_URL}].",
)
url_argument: Any = click.argument("url", required=False, callback=_default_url)
timeout_option: Any = click.option(
    "-t",
    "--timeout",
    type=click.FloatRange(min=0.01),
    default=10.0,
    show_default=True,
    help="Seconds to wait for the broker.",
)
