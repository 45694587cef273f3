"""Attempts to connect: their states, who waits for them, and the time of the next one."""

from __future__ import annotations

import pytest

from greenconn.exceptions import AccessRefused, NotAllowed
from greenconn.session.connect import Attempt, AttemptState, is_lockout, is_refusal


class Ended(list[AttemptState]):
    """The states in which attempts were when they ended."""

    def note(self, attempt: Attempt) -> None:
        self.append(attempt.state)


@pytest.fixture
def ended() -> Ended:
    """Nothing has ended yet."""
    return Ended()


def test_a_refusal_is_distinguished_from_what_passes() -> None:
    assert is_refusal(AccessRefused("no such user"))
    assert not is_refusal(NotAllowed("connection limit of the virtual host is reached"))
    assert not is_refusal(ConnectionRefusedError(111, "nobody listens"))
    assert is_lockout(NotAllowed("access to vhost '/' refused for user 'guest'"))
    assert not is_lockout(NotAllowed("vhost 'gone' not found"))
