"""What unit tests of several rooms take."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from greenconn.testing import MemoryBroker
from tests.unit.fake_channel import FakeChannel, FakeClient


@pytest.fixture
def client() -> FakeClient:
    """A client that notes what it is asked for."""
    return FakeClient()


@pytest.fixture
def channel(client: FakeClient) -> FakeChannel:
    """A channel of it."""
    return client.channel()


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    """The memory broker as programs have it in their tests."""
    with MemoryBroker() as broker:
        yield broker
