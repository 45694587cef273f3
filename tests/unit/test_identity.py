"""Names that nobody else has."""

from __future__ import annotations

import os
import uuid as standard

import gevent
import pytest

from greenconn import identity
from greenconn.identity import generate_oid, get_node_id, oid_from, program_name, uuid


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


def test_node_id_stays() -> None:
    assert get_node_id() == get_node_id()


def test_oid() -> None:
    thing, other = object(), object()
    assert oid_from(thing) == oid_from(thing)
    assert oid_from(thing) != oid_from(other)
    assert oid_from(thing) != oid_from(thing, threads=False)
    assert generate_oid(1, 2, 3, thing) != generate_oid(1, 2, 4, thing)
    standard.UUID(oid_from(thing))


def test_greenlets_of_one_hub_share_the_oid() -> None:
    thing = object()
    greenlet = gevent.spawn(oid_from, thing)
    assert greenlet.get(timeout=30) == oid_from(thing)


def test_oid_without_md5(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> standard.UUID:
        raise ValueError("no MD5 in FIPS mode")

    monkeypatch.setattr(identity, "uuid3", refuse)
    assert standard.UUID(oid_from(object())).version == 5


def test_the_program_is_named() -> None:
    name = program_name()
    assert name.endswith(f":{os.getpid()}")
    assert "@" in name
