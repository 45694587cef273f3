"""Tokens: a text, an end, and nothing to be seen of either in a log."""

from __future__ import annotations

import copy
import pickle

import pytest

from greenconn.connection import Connection
from greenconn.credentials import Token


def test_a_token_is_its_text() -> None:
    token = Token("secret-word", expires_in=60)
    assert token == "secret-word"
    assert token.encode() == b"secret-word"
    left = token.expires_in
    assert left is not None
    assert 50 < left <= 60


def test_a_token_need_not_end() -> None:
    assert Token("secret-word").expires_in is None
    assert repr(Token("secret-word")) == "<Token>"


def test_a_token_shows_nothing() -> None:
    token = Token("secret-word", expires_in=60)
    assert "secret" not in repr(token)
    assert "secret" not in repr([token])
    assert "secret-word" not in repr(Connection("amqp://", password=token))


@pytest.mark.parametrize("expires_in", [None, 60.0])
def test_copies_end_at_the_same_time(expires_in: float | None) -> None:
    token = Token("secret-word", expires_in)
    for copied in (copy.copy(token), copy.deepcopy(token), pickle.loads(pickle.dumps(token))):
        assert (copied, type(copied)) == (token, Token)
        assert (copied.expires_in is None) == (expires_in is None)
        if copied.expires_in is not None and token.expires_in is not None:
            assert copied.expires_in == pytest.approx(token.expires_in, abs=5)
