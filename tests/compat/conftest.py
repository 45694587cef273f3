"""The fixtures of the tests that hold greenconn to what was written or measured elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from greenconn.transport import memory


@pytest.fixture(params=["memory", "amqp", "redis"])
def url(request: pytest.FixtureRequest, unique: str) -> Iterator[str]:
    """The address of each broker in turn."""
    if request.param == "memory":
        yield f"memory:///{unique}"
        memory.reset(unique)
    else:
        yield request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def memory_url(unique: str) -> Iterator[str]:
    """The address of a memory broker that is empty."""
    yield f"memory:///{unique}"
    memory.reset(unique)
