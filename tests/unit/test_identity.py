"""Names that nobody else has."""

from __future__ import annotations

import os
import uuid as standard

from greenconn.identity import program_name, uuid


def test_uuid_is_a_random_one() -> None:
    drawn = [uuid() for _ in range(1000)]
    assert len(set(drawn)) == 1000
    for text in drawn:
        parsed = standard.UUID(text)
        assert str(parsed) == text
        assert parsed.version == 4
        assert parsed.variant == standard.RFC_4122
    assert {text[19] for text in drawn} == set("89ab")


def test_uuid_by_another_function() -> None:
    assert uuid(lambda: standard.UUID(int=1)) == "00000000-0000-0000-0000-000000000001"


def test_the_program_is_named() -> None:
    name = program_name()
    assert name.endswith(f":{os.getpid()}")
    assert "@" in name
