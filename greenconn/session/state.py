"""The state of a session.

A :class:`SessionState` says where the session is in its life, and :data:`MOVES` which states may follow.
A :class:`Life` holds what begins and ends with one link.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from greenconn.green.single_flight import SingleFlight
from greenconn.green.state import State
from greenconn.transport.base import Link


class SessionState(State):
    """The stages in the life of a logical connection."""

    #: No link, and none is needed: never used, lost without anything to recover, or dropped.
    IDLE = "idle"
    #: An attempt to open a link is under way or about to begin.
    OPENING = "opening"
    #: There is a link, and everything that belongs on it is there.
    OPEN = "open"
    #: A link was lost and what belonged on it is being brought back, in the background.
    RECOVERING = "recovering"
    #: Closed by the user; explicit use opens it again.
    CLOSED = "closed"


MOVES: Final[Mapping[SessionState, frozenset[SessionState]]] = {
    SessionState.IDLE: frozenset({SessionState.OPENING, SessionState.CLOSED}),
    SessionState.OPENING: frozenset(
        {
            SessionState.OPEN,
            # Members of a former life wait for the link that was just opened.
            SessionState.RECOVERING,
            SessionState.IDLE,
            SessionState.CLOSED,
        }
    ),
    SessionState.OPEN: frozenset({SessionState.RECOVERING, SessionState.IDLE, SessionState.CLOSED}),
    SessionState.RECOVERING: frozenset(
        {
            SessionState.OPEN,
            # The last member left, or the broker refuses us, while another greenlet still waits.
            SessionState.OPENING,
            SessionState.IDLE,
            SessionState.CLOSED,
        }
    ),
    # IDLE: pointed at another broker, or about to be used again.
    SessionState.CLOSED: frozenset({SessionState.OPENING, SessionState.IDLE}),
}


def is_open(part: Any) -> bool:
    """Return whether a channel or link may be used.  One that cannot tell counts as open."""
    return bool(getattr(part, "is_open", True))


def drop(link: object) -> None:
    """Drop *link* at once, without a word to the peer.

    One of a transport that is written to kombu's contract may be any object: its transport closes it.
    """
    end = getattr(link, "collect", None) or getattr(link, "close", None)
    if end is not None:
        end()


class Life:
    """All that begins with a link and ends with it.

    Arguments:
        link: what ``Transport.establish_connection`` returned; None for the time between two lives,
            in which nothing is open and nothing is declared.
        generation: number of this life, from 1; 0 between two lives.
        transport: that of the link.
    """

    def __init__(
        self, link: object | None = None, generation: int = 0, transport: object | None = None
    ) -> None:
        self.link: Any = link
        self.transport: Any = transport
        #: Whether the link knows when it is lost: that of a transport written for kombu is any object.
        self.can_tell = hasattr(link, "is_open")
        #: Whether its attribute ``lost`` says so, which takes no call.
        self.keeps_lost = isinstance(link, Link)
        self.generation = generation
        #: Entities known to exist at the broker; a new life may find another broker.
        self.declared_entities: set[Any] = set()
        if isinstance(link, Link):
            link.declared_entities = self.declared_entities  # a 404 takes out what is gone
        #: Quorum queues that turned out to be deleted, by name, and when.
        self.deleted_at: dict[str, float] = {}
        #: For ``maybe_declare``: one declaration at a time of each entity.
        self.declare_flight = SingleFlight("declare")
        #: For opening channels that several greenlets want.
        self.flight = SingleFlight("open-channel")
        self.default_channel: Any = None

    @property
    def is_open(self) -> bool:
        """Whether the link may be used."""
        return bool(self.link.is_open) if self.can_tell else self.link is not None

    @property
    def is_over(self) -> bool:
        """Whether the link may not be used any more, or there was none."""
        return not self.is_open

    def forget(self) -> None:
        """Reset in the child of a fork, where no greenlet waits for an attempt."""
        self.declare_flight.forget()
        self.flight.forget()

    def __repr__(self) -> str:
        if self.link is None:
            return "<Life: none>"
        return f"<Life {self.generation}: {'open' if self.is_open else 'over'}>"
