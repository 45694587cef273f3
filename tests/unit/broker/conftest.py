"""A fake broker of stored messages, and transports to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gevent
import pytest

from greenconn.broker.link import StoreLink
from greenconn.exceptions import WrongHub
from tests.tiny_client import TinyClient
from tests.unit.broker.fake_store import (
    EachStore,
    FakeBroker,
    FakeStore,
    FakeTransport,
    WaitingStore,
)

Opener = Callable[..., StoreLink]


def refused_elsewhere(calls: Sequence[Callable[[], object]]) -> list[bool]:
    """Make *calls* in a native thread; return which were refused there.  May switch."""

    def refused() -> list[bool]:
        outcomes = []
        for call in calls:
            try:
                call()
            except WrongHub:
                outcomes.append(True)
            else:
                outcomes.append(False)
        return outcomes

    found: list[bool] = gevent.get_hub().threadpool.apply(refused)
    return found


@pytest.fixture
def fake_broker() -> FakeBroker:
    """Return a broker that keeps its messages in this process."""
    return FakeBroker()


@pytest.fixture(params=[FakeStore, WaitingStore, EachStore], ids=["wakes", "waits", "each"])
def kind(request: pytest.FixtureRequest) -> type[FakeStore]:
    """Each kind of store in turn."""
    made: type[FakeStore] = request.param
    return made


@pytest.fixture
def connect(fake_broker: FakeBroker, unique: str) -> Iterator[Opener]:
    """Open a link: ``connect(kind, **options)``; closed after the test."""
    links: list[StoreLink] = []

    def open_link(kind: type[FakeStore] = FakeStore, **options: Any) -> StoreLink:
        transport = FakeTransport(TinyClient(f"fake:///{unique}", **options), fake_broker, kind)
        links.append(transport.establish_connection())
        return links[-1]

    yield open_link
    for link in links:
        link.close()
