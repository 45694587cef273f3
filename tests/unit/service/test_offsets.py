"""Offsets of stream readers in files."""

from __future__ import annotations

import os
from pathlib import Path

import gevent
import pytest

from greenconn.service.offsets import FileOffsets


def test_the_last_one_counts(tmp_path: Path) -> None:
    offsets = FileOffsets(str(tmp_path))
    for offset in (7, 10**12, 3):
        offsets.store("invoices", "billing", offset)
        assert offsets.load("invoices", "billing") == offset
    assert len(list(tmp_path.iterdir())) == 1


def test_each_reader_of_each_stream_has_its_own(tmp_path: Path) -> None:
    offsets = FileOffsets(tmp_path / "made" / "when needed")
    names = ["a", "b@a", "a@b", "../a", ".", "", "ä/ö"]
    places = [(stream, reader) for stream in names for reader in names]
    for offset, place in enumerate(places):
        assert offsets.load(*place) is None
        offsets.store(*place, offset)
    assert [offsets.load(*place) for place in places] == list(range(len(places)))
    assert len(list((tmp_path / "made" / "when needed").iterdir())) == len(places)


@pytest.mark.parametrize("text", ["", "seven", "-1", "1.5", "7 8", "\x00\xff"])
def test_what_is_no_offset(tmp_path: Path, text: str) -> None:
    offsets = FileOffsets(tmp_path)
    Path(offsets.path("invoices", "billing")).write_text(text)
    with pytest.raises(
        ValueError, match="billing@invoices' must have an offset, an integer from 0"
    ):
        offsets.load("invoices", "billing")


def test_a_write_that_fails_leaves_the_former_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offsets = FileOffsets(tmp_path)
    offsets.store("invoices", "billing", 7)

    def fail(*args: object) -> None:
        raise OSError("no space left")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            with pytest.raises(OSError, match="no space"):
                offsets.store("invoices", "billing", 8)
    assert offsets.load("invoices", "billing") == 7
    assert len(list(tmp_path.iterdir())) == 1


def test_greenlets_run_while_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.read(read, 1))
    storing = gevent.spawn(FileOffsets(tmp_path).store, "invoices", "billing", 7)
    gevent.sleep(0)
    gevent.sleep(0)
    assert not storing.ready()
    os.write(write, b"12")
    storing.get(timeout=30)
    os.close(read)
    os.close(write)
