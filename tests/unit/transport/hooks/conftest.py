"""What the tests of kombu's hooks share."""

from __future__ import annotations

import pytest

from greenconn.transport.hooks import HookLink
from tests.unit.transport.hooks.test_channel import BackendChannel, opened


@pytest.fixture
def channel(link: HookLink) -> BackendChannel:
    """A channel with a queue ``q``."""
    made = opened(link)
    made.queue_declare("q")
    return made
