"""What a link remembers of queues, and what a broker's adapter need not say."""

from __future__ import annotations

import pytest

from greenconn.broker import queue_port
from greenconn.broker.queue_port import KnownQueues, QueueStore, Rules
from greenconn.transport.refusal import Method
from greenconn.transport.virtual.declaration import UNDECLARED, Declaration

ONE = Declaration(durable=True)
OTHER = Declaration(auto_delete=True)
RULES = Rules(1.0, None, None, False)


class Queues(QueueStore):
    """Has one queue."""

    def find(self, name: str) -> Declaration | None:
        return ONE if name == "q" else None

    def make(self, name: str, declared: Declaration) -> Declaration:
        return declared

    def counts(self, name: str) -> tuple[int, int]:
        return 0, 0

    def purge(self, name: str) -> int:
        return 0

    def drop(self, name: str) -> int:
        return 0


@pytest.fixture
def known() -> KnownQueues:
    """What is remembered, with one queue and its rules."""
    known = KnownQueues()
    known.remember("q", ONE)
    known.rules["q"] = RULES
    return known


def test_rules_stay_as_long_as_the_declaration(known: KnownQueues) -> None:
    known.remember("q", Declaration(durable=True))
    assert (known.declared, known.rules) == ({"q": ONE}, {"q": RULES})
    known.remember("q", OTHER)
    assert (known.declared, known.rules, known.last("q")) == ({"q": OTHER}, {}, OTHER)


def test_what_may_have_changed_was_still_read(known: KnownQueues) -> None:
    known.forget("q")
    assert (known.declared, known.rules, known.last("q")) == ({}, {}, ONE)
    known.forget("q")
    known.ended("q")
    known.ended("q")
    assert known.last("q") is UNDECLARED


def test_a_queue_that_ended_has_no_rules(known: KnownQueues) -> None:
    known.ended("q")
    assert (known.declared, known.rules, known.last("q")) == ({}, {}, UNDECLARED)


def test_so_many_are_remembered(known: KnownQueues, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_port, "MOST_KNOWN", 2)
    known.remember("p", ONE)
    known.remember("p", ONE)
    assert (set(known.declared), known.rules) == ({"p", "q"}, {"q": RULES})
    known.remember("r", ONE)
    assert (set(known.declared), known.rules, known.last("q")) == ({"r"}, {}, UNDECLARED)


def test_queue_that_has_changed_is_no_further_one(
    known: KnownQueues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_port, "MOST_KNOWN", 2)
    known.remember("p", ONE)
    known.remember("p", OTHER)
    assert known.declared == {"q": ONE, "p": OTHER}


def test_queue_that_says_nothing_is_not_one_that_was_declared_so(known: KnownQueues) -> None:
    known.remember("p", Declaration())
    known.remember("p", UNDECLARED)
    assert known.declared["p"] is UNDECLARED
    assert known.last("p") is UNDECLARED


def test_by_default_the_broker_is_asked_each_time() -> None:
    queues = Queues()
    assert not queues.is_current("q")
    assert (queues.is_there("q"), queues.is_there("p")) == (True, False)
    queues.check_name("amq.reserved", Method.QUEUE_DECLARE)
    queues.settle()
    queues.touch("q")
    assert not queues.ends_exclusive
