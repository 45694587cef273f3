"""The ids of documents, which say what a document is and sort as it is read.

====================================================  ==========================================
``gcb!exchange!digest``                               a binding
``gco!owner!lease``                                   a sign of life
``gcq!queue``                                         how a queue was declared
``gcx!exchange``                                      how an exchange was declared
``gcy!time!message``                                  when a message expires
``gcz!queue!priority!time!origin``                    a message; the highest priority comes first
====================================================  ==========================================

What a link reads when it is opened comes before the rest, and is read in one piece.
Names are quoted as in URLs, so that ``!`` (which sorts before all that is left) ends them.

Whether a message waits is said by the generation of its revision, the number before the hyphen: each
claim and each giving back makes one more, so an odd one waits and an even one is held.  So a list
of ids and revisions, which CouchDB has in its tree, tells what waits without reading a document.
"""

from __future__ import annotations

import re
from hashlib import sha1
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from greenconn.broker.topology_port import Row

__all__ = [
    "BINDING",
    "EXCHANGE",
    "FOREIGN",
    "FOREIGN_RANGE",
    "MARK",
    "MESSAGE",
    "OWNER",
    "QUEUE",
    "SHARED_RANGE",
    "Range",
    "binding_id",
    "generation",
    "is_waiting",
    "message_id",
    "name_of",
    "named",
    "range_of",
]

BINDING: Final = "gcb"
OWNER: Final = "gco"
QUEUE: Final = "gcq"
EXCHANGE: Final = "gcx"
MARK: Final = "gcy"
MESSAGE: Final = "gcz"

#: What kombu's transport gave its messages.
FOREIGN: Final = re.compile("[0-9a-f]{32}")


class Range(NamedTuple):
    """Ids from *start* to *end*, the latter not included."""

    start: str
    end: str


FOREIGN_RANGE: Final = Range("0", "g")
#: What a link reads when it is opened.
SHARED_RANGE: Final = Range(BINDING, MARK)


def named(kind: str, name: str) -> str:
    """The id of the document of one thing."""
    return f"{kind}!{quote(name, safe='')}"


def name_of(doc_id: str) -> str:
    """The name in an id: the queue of a message, the exchange of a binding."""
    return unquote(doc_id.split("!", 2)[1])


def range_of(kind: str, name: str | None = None) -> Range:
    """All ids of a kind, or those that belong to one thing of it."""
    # '"' follows '!'.
    return Range(f"{kind}!", f'{kind}"') if name is None else _within(named(kind, name))


def _within(prefix: str) -> Range:
    return Range(f"{prefix}!", f'{prefix}"')


def message_id(queue: str, priority: int, micros: int, origin: str) -> str:
    """The id of a message.

    Arguments:
        priority: from 0 to 255.
        micros: microseconds since 1970, different for each message of one origin.
    """
    return f"{named(MESSAGE, queue)}!{255 - priority:03}!{micros:017}!{origin}"


def binding_id(exchange: str, row: Row) -> str:
    """The id of a binding: equal ones have the same."""
    arguments = sorted((row.arguments or {}).items(), key=lambda item: item[0])
    facts = repr((row.routing_key, row.pattern, row.queue, row.to_exchange, arguments))
    return f"{named(BINDING, exchange)}!{sha1(facts.encode(), usedforsecurity=False).hexdigest()}"


def generation(revision: str) -> int:
    """Return the number of revisions so far."""
    number = revision.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def is_waiting(revision: str) -> bool:
    """Whether a message of that revision waits for somebody to claim it."""
    return generation(revision) % 2 == 1
