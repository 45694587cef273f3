"""Limits over all processes: places, rates, unique keys and debounced messages.

Here are the headers that they give to messages; the rest is loaded when it is first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from greenconn.message import Message

#: How often a message came and was not handled, for a limit.
WAITED: Final = "x-greenconn-waited"
#: Of a unique message, or a debounced one: how, the holder or the token, and the key.
CLAIM: Final = "x-greenconn-claim"
#: What is believed of the header: any publisher can write it.
MOST_WAITED: Final = 100


def waited_of(message: Message) -> int:
    """Return how often a message came and went back for a limit."""
    value = message.headers.get(WAITED)
    return min(value, MOST_WAITED) if type(value) is int and value > 0 else 0
