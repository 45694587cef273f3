"""The stores of limits: each carries out the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import gevent
import pytest

from greenconn import Connection
from greenconn.limits.store import (
    LONGEST_WAIT,
    Give,
    LimitStore,
    Note,
    Read,
    Renew,
    Take,
    key_of,
    store_for,
    text_of,
)
from tests.fix_wires import until

pytestmark = pytest.mark.halved

SOON = 60.0
#: Seconds that nothing here lasts.
LONG = 1000.0
#: Seconds of what is to end.
SHORT = 0.05
PLACES = ("memory", "redis", "redis-cluster", "postgresql", "sqlite")


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, unique: str) -> str:
    """The URL of a broker that keeps limits."""
    if request.param == "memory":
        return f"memory://localhost/{unique}"
    name = request.param.replace("-", "_")
    return str(request.getfixturevalue(f"{name}_url"))


class Tried:
    """A store whose keys are those of one test."""

    def __init__(self, store: LimitStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def named(self, operation: Any) -> Any:
        """Return *operation* with the keys of this test."""
        names = {
            name: f"{self._prefix}{key}"
            for name, key in operation._asdict().items()
            if name in ("place", "rate", "key") and key
        }
        return operation._replace(**names)

    def ask(self, operations: Sequence[Any]) -> list[Any]:
        return self._store.ask([self.named(each) for each in operations])

    def give(self, holder: str, place: str = "p", lease: float = LONG) -> None:
        self._store.give(self.named(Give("q", place, holder)), lease)

    def hold(self, renew: Renew) -> None:
        self._store.hold(self.named(renew))


@pytest.fixture
def store(place: str, unique: str) -> Iterator[Tried]:
    with Connection(place) as connection:
        yield Tried(store_for(connection, "a test"), unique)


def take(holder: str, place: str = "p", limit: int = 1, lease: float = LONG) -> Take:
    return Take("q", holder, place, limit, lease)


def token(interval: float, burst: int = 1, *, waited: bool = False, rate: str = "r") -> Take:
    return Take("q", "", rate=rate, interval=interval, burst=burst, has_waited=waited)


def one(store: Tried, operation: Any) -> Any:
    (reply,) = store.ask([operation])
    return reply


def test_a_place_is_taken_and_given_back(store: Tried) -> None:
    assert one(store, take("ada")).is_taken
    assert one(store, take("ada")).is_taken  # again
    refused = one(store, take("bob"))
    assert (refused.is_taken, refused.holder) == (False, "ada")
    assert one(store, take("bob", place="other")).is_taken
    store.give("eve")  # who has none
    assert not one(store, take("bob")).is_taken
    store.give("ada")
    assert one(store, take("bob")).is_taken


def test_as_many_places_as_the_limit(store: Tried) -> None:
    jobs = [gevent.spawn(one, store, take(f"h{n}", limit=3)) for n in range(20)]
    gevent.joinall(jobs, timeout=SOON, raise_error=True)
    assert sum(reply.is_taken for job in jobs if (reply := job.value)) == 3


def test_a_place_comes_back_when_its_lease_has_ended(store: Tried) -> None:
    assert one(store, take("ada", lease=SHORT)).is_taken
    until(lambda: one(store, take("bob")).is_taken, SOON)
    assert one(store, Renew("q", "p", "ada", LONG, False)) is False
    store.give("bob")
    assert one(store, take("eve")).is_taken  # his was the only one


def test_a_renewed_place_is_kept(store: Tried) -> None:
    assert one(store, take("ada")).is_taken
    assert one(store, Renew("q", "p", "ada", SHORT, False)) is True
    until(lambda: one(store, take("bob", lease=SHORT)).is_taken, SOON)
    # What it stands for goes on, whoever has the place.
    assert one(store, Renew("q", "p", "ada", LONG, True)) is False
    until(lambda: one(store, take("eve")).holder == "ada", SOON)


def test_a_rate_gives_its_burst_and_then_a_token_in_each_interval(store: Tried) -> None:
    waits = [one(store, token(0.4, burst=3)).wait for _ in range(5)]
    assert waits[:3] == [0.0, 0.0, 0.0]
    assert 0.0 < waits[3] <= 0.4
    assert waits[3] < waits[4] <= 0.8


def test_messages_without_a_token_are_told_different_times(store: Tried) -> None:
    assert one(store, token(10.0)).is_taken
    replies = [one(store, token(10.0)) for _ in range(8)]
    assert not any(reply.is_taken for reply in replies)
    waits = [reply.wait for reply in replies]
    assert waits == sorted(waits)
    assert all(later - sooner > 5.0 for sooner, later in pairwise(waits[:5]))
    assert max(waits) <= LONGEST_WAIT
    assert not one(store, token(10.0, waited=True)).is_taken


def test_who_comes_for_the_first_time_stands_behind_those_that_wait(store: Tried) -> None:
    assert one(store, token(1.05)).is_taken
    assert not one(store, token(1.05)).is_taken  # it is promised one
    assert not one(store, token(1.05)).is_taken
    until(lambda: one(store, token(1.05, waited=True)).is_taken, SOON)


def test_no_token_is_taken_where_there_is_no_place(store: Tried) -> None:
    both = Take("q", "ada", "p", 1, LONG, "r", LONG, 1)
    assert one(store, both).is_taken
    refused = one(store, both._replace(holder="bob", rate="s"))
    assert (refused.is_taken, refused.wait, refused.holder) == (False, 0.0, "ada")
    assert one(store, token(LONG, rate="s")).is_taken
    # And no place without a token.
    assert not one(store, both._replace(holder="eve", place="o")).is_taken
    assert one(store, take("bob", place="o")).is_taken


def test_the_latest_token_stays(store: Tried) -> None:
    now, found = one(store, Read("q", "d"))
    assert found is None
    assert now > 0
    one(store, Note("q", "d", "b", LONG))
    one(store, Note("q", "d", "a", LONG))
    later, found = one(store, Read("q", "d"))
    assert found == "b"
    assert later >= now
    one(store, Note("q", "d", "c", SHORT))
    until(lambda: one(store, Read("q", "d")).token is None, SOON)


def test_many_operations_of_one_call(store: Tried) -> None:
    operations = [take("ada"), take("bob"), token(LONG), token(LONG), Read("q", "d")]
    first, second, third, fourth, seen = store.ask(operations)
    assert (first.is_taken, second.holder) == (True, "ada")
    assert third.is_taken
    assert not fourth.is_taken
    assert seen.token is None


@pytest.mark.parametrize(
    "value",
    [
        "",
        "a b",
        "\0",
        "\udc80",
        "ü\n\u2028",
        "'",
        '"{}"',
        b"\xff\0",
        1,
        True,
        None,
        1.5,
        ("a", 1),
        "x" * 999,
    ],
    ids=ascii,
)
def test_keys_of_all_kinds(store: Tried, value: object) -> None:
    key = key_of("p", "q", text_of(value))
    assert one(store, take("ada", place=key)).is_taken
    assert one(store, take("bob", place=key)).holder == "ada"
    assert one(store, take("bob", place=key_of("p", "q", text_of(("x", value))))).is_taken


def test_equal_keys_of_other_types_are_others() -> None:
    assert len({text_of(each) for each in (1, "1", True, 1.0, b"1", (1,), None)}) == 7
    with pytest.raises(TypeError, match="a key must be text"):
        text_of([1])
    with pytest.raises(TypeError, match="a key must be text"):
        text_of(("a", object()))


def test_a_caller_that_is_killed_leaves_no_place(store: Tried) -> None:
    one(store, Read("q", "d"))  # it is connected
    for number in range(20):
        job = gevent.spawn(store.ask, [take(f"ada-{number}")])
        gevent.sleep(0.0002 * number)
        is_there = job.ready()
        job.kill()
        if is_there:
            store.give(f"ada-{number}")
        until(lambda n=number: one(store, take(f"bob-{n}")).is_taken, SOON)  # type: ignore[misc]
        store.give(f"bob-{number}")
    assert one(store, take("eve")).is_taken


@pytest.mark.sampled(2)
def test_held_places_are_renewed_by_one_request(store: Tried) -> None:
    places = [Renew("q", f"p{n}", "ada", 1.0, True) for n in range(10)]
    for renew in places:
        assert one(store, take("ada", renew.place, lease=1.0)).is_taken
        store.hold(renew)
    end = gevent.get_hub().loop.now() + 2.5
    while gevent.get_hub().loop.now() < end:
        assert not any(store.ask([take("bob", each.place)])[0].is_taken for each in places)
        gevent.sleep(0.1)
    for renew in places:
        store.give("ada", renew.place, 1.0)
    assert all(one(store, take("bob", each.place)).is_taken for each in places)
