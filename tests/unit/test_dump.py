"""Files for messages that cannot be kept at the broker."""

from __future__ import annotations

import io
import logging
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest

from greenconn.transport.hooks.channel import emergency_dump_state


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_a_state_is_written_where_only_this_user_reads_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "greenconn.transport.virtual"):
        path = Path(emergency_dump_state({"messages": [1]}))
    assert pickle.loads(path.read_bytes()) == {"messages": [1]}
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert str(path) in caplog.text


def test_what_cannot_be_pickled_is_written_as_text() -> None:
    errors = io.StringIO()
    path = emergency_dump_state({"messages": [lambda: None]}, stderr=errors)
    assert Path(path).read_text().startswith("{'messages': [<function")
    assert "Cannot pickle state" in errors.getvalue()


def test_a_dump_of_the_programs_own() -> None:
    def dump(state: Any, file: Any, protocol: int) -> None:
        file.write(f"{state} {protocol}")

    assert Path(emergency_dump_state([1], dump=dump)).read_text() == "[1] 0"


def test_a_dump_that_fails_half_way_leaves_the_text_alone() -> None:
    def dump(state: Any, file: Any, protocol: int) -> None:
        file.write("half of it")
        raise ValueError("no more")

    assert Path(emergency_dump_state([1], dump=dump)).read_text() == "[1]"
