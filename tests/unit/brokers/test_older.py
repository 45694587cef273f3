"""Finding MongoDB and CouchDB; nothing is fetched."""

from __future__ import annotations

from pathlib import Path

import pymongo
import pytest

from tests.__main__ import has_servers
from tests.brokers import older
from tests.brokers.environment import SERVERS
from tests.brokers.fetching import NoBroker, cache_folder
from tests.brokers.keeper import Keeper

pytestmark = pytest.mark.programs


def test_a_driver_that_does_not_talk_to_such_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SERVERS, "older")
    monkeypatch.setattr(pymongo, "version", "4.20.0")
    monkeypatch.setattr(pymongo, "version_tuple", (4, 20, 0))
    with Keeper() as keeper:
        assert not has_servers(keeper)
    assert "needs pymongo 4.10 or older, got 4.20.0" in capsys.readouterr().out


def test_a_program_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    program = cache_folder(tmp_path) / older.MONGODB.release / older.MONGODB.path
    with pytest.raises(NoBroker, match="unshare"):
        monkeypatch.setenv("PATH", str(tmp_path))
        older.find(older.MONGODB, tmp_path)
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    starter = older.find(older.MONGODB, tmp_path)
    assert str(program.parents[2]) in starter.read_text()
    assert older.find(older.MONGODB, tmp_path) == starter
