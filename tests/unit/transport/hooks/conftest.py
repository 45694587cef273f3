"""What the tests of kombu's hooks share."""

from __future__ import annotations

from pathlib import Path

import pytest

from greenconn.transport.hooks import HookLink
from tests.unit.transport.hooks.test_channel import Backend, BackendChannel, opened


@pytest.fixture
def backend() -> Backend:
    """The broker."""
    return Backend()


@pytest.fixture
def dumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of emergency dumps."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def channel(link: HookLink) -> BackendChannel:
    """A channel with a queue ``q``."""
    made = opened(link)
    made.queue_declare("q")
    return made
