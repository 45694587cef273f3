"""A secret, and all texts in which it must not be."""

from __future__ import annotations

import base64
import gc
import traceback
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import quote

MARK = "s3cret/M@rk:er%41+x"
#: How it looks in a URL, and parts that would be enough.
MARKS = (
    MARK,
    quote(MARK, safe=""),
    quote(MARK),
    "s3cret",
    base64.b64encode(MARK.encode()).decode(),
)


def texts_of(error: BaseException | None) -> Iterator[str]:
    """All that can be read in an error."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield from (str(error), repr(error), repr(error.args), repr(vars(error)))
        yield "".join(traceback.format_exception(error))
        error = error.__cause__ or error.__context__


def reprs() -> Iterator[str]:
    """The texts of all objects of the library that live now."""
    for each in gc.get_objects():
        kind = type(each)
        if str(getattr(kind, "__module__", "")).startswith(("greenconn.", "amqp.")):
            with suppress(Exception):
                yield f"{kind.__name__}: {each!r}"
            with suppress(Exception):
                yield f"{kind.__name__}: {each!s}"
