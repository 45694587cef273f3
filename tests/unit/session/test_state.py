"""The table of a session's states."""

from __future__ import annotations

import pytest

from greenconn.session.state import MOVES, SessionState, moved


def test_every_state_has_a_row() -> None:
    assert set(MOVES) == set(SessionState)
    assert set().union(*MOVES.values()) == set(SessionState)


@pytest.mark.parametrize("old", SessionState)
@pytest.mark.parametrize("new", SessionState)
def test_only_moves_of_the_table_are_made(old: SessionState, new: SessionState) -> None:
    if new is old or new in MOVES[old]:
        assert moved(old, new, MOVES, "a session") is new
    else:
        with pytest.raises(RuntimeError, match=f"from {old.value} to {new.value}"):
            moved(old, new, MOVES, "a session")
