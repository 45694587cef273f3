"""The tables of states: each state has a row, and only the moves in it are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from greenconn.broker.consuming import FEED_MOVES
from greenconn.connection import LOAN_MOVES
from greenconn.green.pool import POOL_MOVES
from greenconn.green.state import State, moved
from greenconn.green.stream import STREAM_MOVES
from greenconn.session.connect import ATTEMPT_MOVES
from greenconn.session.session import MOVES as SESSION_MOVES
from greenconn.transport.amqp.consuming import CONSUMER_MOVES
from greenconn.transport.redis.nodes import SLOT_MOVES

Table = Mapping[Any, frozenset[Any]]
TABLES: dict[str, Table] = {
    "session": SESSION_MOVES,
    "attempt": ATTEMPT_MOVES,
    "loan": LOAN_MOVES,
    "pool": POOL_MOVES,
    "stream": STREAM_MOVES,
    "consumer of AMQP": CONSUMER_MOVES,
    "feed": FEED_MOVES,
    "slot of a cluster": SLOT_MOVES,
}


@pytest.mark.parametrize("moves", TABLES.values(), ids=TABLES)
def test_every_state_has_a_row(moves: Table) -> None:
    first = next(iter(moves))
    states: type[State] = type(first)
    assert issubclass(states, State)
    assert set(moves) == set(states)
    reached = set().union(*moves.values())
    assert set(states) - reached <= {first}, "a life begins with the first only"


@pytest.mark.parametrize("moves", TABLES.values(), ids=TABLES)
def test_only_moves_of_the_table_are_made(moves: Table) -> None:
    for old in moves:
        for new in moves:
            if new is old or new in moves[old]:
                assert moved(old, new, moves, "it") is new
            else:
                with pytest.raises(
                    RuntimeError, match=f"it cannot go from {old.value} to {new.value}"
                ):
                    moved(old, new, moves, "it")
