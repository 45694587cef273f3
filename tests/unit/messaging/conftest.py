"""A channel and its client, which note what they are asked for."""

from __future__ import annotations

import pytest

from tests.unit.fake_channel import FakeChannel, FakeClient


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def channel(client: FakeClient) -> FakeChannel:
    return client.channel()
