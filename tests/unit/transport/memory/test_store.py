"""The messages that wait in a queue."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from greenconn.transport.memory.store import Entry, Store, size_of


def entry(
    position: int, priority: int = 0, expires_at: float | None = None, size: int = 0
) -> Entry:
    made = Entry(cast(Any, None), {}, "", "", position, expires_at, priority)
    made.size = size
    return made


def test_size_is_that_of_the_wire() -> None:
    assert [size_of(each) for each in ("", "a", "\u00e9", b"abc", None)] == [0, 1, 2, 3, 0]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 3)),
            st.tuples(st.just("take"), st.just(0)),
            st.tuples(st.just("return"), st.integers(0, 20)),
        ),
        max_size=60,
    )
)
def test_order_is_that_of_a_sorted_list(steps: list[tuple[str, int]]) -> None:
    store = Store(3)
    waiting: list[Entry] = []
    out: list[Entry] = []
    position = 0
    for step, number in steps:
        if step == "add":
            position += 1
            added = entry(position, number, size=position)
            store.add(added)
            waiting.append(added)
        elif step == "take" and waiting:
            waiting.sort(key=lambda each: (-each.priority, each.position))
            taken = store.take()
            assert taken is waiting.pop(0)
            out.append(taken)
        elif step == "return" and out:
            back = out.pop(number % len(out))
            store.put_back(back)
            waiting.append(back)
        waiting.sort(key=lambda each: (-each.priority, each.position))
        assert list(store) == waiting
        assert store.count == len(waiting)
        assert store.size == sum(each.size for each in waiting)


def test_only_heads_expire() -> None:
    store = Store(1)
    late, soon, never = entry(1, 0, 20.0), entry(2, 0, 10.0), entry(3, 1)
    for each in (late, soon, never):
        store.add(each)
    assert store.next_expiry() == 20.0
    assert store.take_expired(15.0) is None
    assert store.take() is never
    assert store.take_expired(20.0) is late
    assert store.next_expiry() == 10.0
    assert store.take_expired(20.0) is soon
    assert store.take_expired(20.0) is None
    assert store.next_expiry() is None


def test_clear() -> None:
    store = Store(2)
    for n in range(3):
        store.add(entry(n, n, size=5))
    assert store.clear() == 3
    assert (store.count, store.size, list(store)) == (0, 0, [])
    store.add(entry(9))
    assert store.take().position == 9
