"""The fixtures of the tests that hold greenconn to what was written or measured elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from greenconn import serialization
from greenconn.transport import memory


@pytest.fixture(autouse=True)
def _disabled_serializers() -> Iterator[None]:
    """What a test lets be decoded is for that test alone, in both libraries."""
    registries: list[Any] = [serialization.registry]
    if (theirs := sys.modules.get("kombu.serialization")) is not None:
        registries.append(theirs.registry)
    before = [set(each._disabled_content_types) for each in registries]
    yield
    for registry, disabled in zip(registries, before, strict=True):
        registry._disabled_content_types.clear()
        registry._disabled_content_types.update(disabled)


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
