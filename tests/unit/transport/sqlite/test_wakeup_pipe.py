"""Words between processes, through a named pipe."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import gevent
import pytest

from greenconn.transport.sqlite import ATOMIC, WakeupPipe, wake_process
from tests.forked import holds_in_child


class Ear:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.words: list[bytes] = []

    def wait_for(self, count: int) -> list[bytes]:
        with gevent.Timeout(10):
            while len(self.words) < count:
                gevent.sleep(0.001)
        return self.words


@pytest.fixture
def ear() -> Ear:
    """What a pipe is read with."""
    return Ear()


@pytest.fixture
def fifo(tmp_path: Path, ear: Ear) -> Iterator[WakeupPipe]:
    """A pipe that is read."""
    fifo = WakeupPipe(str(tmp_path / "pipe"), ear.words.extend)
    yield fifo
    fifo.close()


def test_words_arrive_in_order(fifo: WakeupPipe, ear: Ear) -> None:
    assert wake_process(fifo.path, [b"one", b"two"])
    assert wake_process(fifo.path, [b"three"])
    assert ear.wait_for(3) == [b"one", b"two", b"three"]


def test_one_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    status: list[os.stat_result] = []

    def open_one(path: str, flags: int) -> int:
        if not path.endswith("pipe"):
            return os_open(path, flags)  # somebody else's
        if opened:
            raise OSError(errno.EMFILE, "too many open files")
        opened.append(os_open(path, flags))
        status.append(os.fstat(opened[0]))
        return opened[0]

    os_open = os.open
    monkeypatch.setattr(os, "open", open_one)
    with pytest.raises(OSError, match="too many"):
        WakeupPipe(str(tmp_path / "pipe"), ear.words.extend)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
    gevent.sleep(0.01)  # a patched process closes at its next turn
    with suppress(OSError):  # else the number belongs to something else by now
        assert not os.path.samestat(os.fstat(opened[0]), status[0])


def test_nothing_stays_open(tmp_path: Path, ear: Ear) -> None:
    fifo = WakeupPipe(str(tmp_path / "pipe"), ear.words.extend)
    pipe = os.stat(fifo.path)
    assert len(opened_of(pipe)) == 2
    fifo.close()
    gevent.sleep(0.01)  # a patched process closes at its next turn
    assert opened_of(pipe) == []


def opened_of(pipe: os.stat_result) -> list[str]:
    """Return the descriptors of this process that lead to *pipe*."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.path.samestat(os.fstat(int(number)), pipe):
                found.append(number)
    return found


def test_words_of_another_process(fifo: WakeupPipe, ear: Ear) -> None:
    assert holds_in_child(lambda: wake_process(fifo.path, [b"hello"]))
    assert ear.wait_for(1) == [b"hello"]


def test_what_is_no_pipe_is_not_written_to(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"kept")
    assert wake_process(str(file), [b"hello"]) is False
    assert file.read_bytes() == b"kept"


def test_many_words_leave_in_pieces(fifo: WakeupPipe, ear: Ear) -> None:
    words = [b"%d" % n for n in range(1000)]
    assert wake_process(fifo.path, words)
    assert ear.wait_for(1000) == words


def test_a_piece_is_as_long_as_may_be_written_at_once(
    fifo: WakeupPipe, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    write = os.write

    def note(descriptor: int, piece: bytes) -> int:
        sizes.append(len(piece))
        return write(descriptor, piece)

    monkeypatch.setattr(os, "write", note)
    half = b"x" * (ATOMIC // 2 - 1)  # with its end
    assert wake_process(fifo.path, [half] * 4)
    assert sizes == [ATOMIC, ATOMIC]
    assert wake_process(fifo.path, [half, half + b"x"])
    assert sizes[2:] == [ATOMIC // 2, ATOMIC // 2 + 1]
    assert ear.wait_for(6) == [half] * 5 + [half + b"x"]


def test_word_in_two_halves(fifo: WakeupPipe, ear: Ear) -> None:
    with open(fifo.path, "wb", buffering=0) as pipe:
        pipe.write(b"on")
        gevent.sleep(0.01)
        pipe.write(b"e\ntwo\n")
        assert ear.wait_for(2) == [b"one", b"two"]
        pipe.write(b"x" * 2000)  # nobody of ours
        gevent.sleep(0.01)
        pipe.write(b"\nthree\n")
        assert ear.wait_for(4)[-1] == b"three"


def test_full_pipe_waits_for_nobody(fifo: WakeupPipe, ear: Ear) -> None:
    for _ in range(200):
        assert wake_process(fifo.path, [b"y" * 500])  # more than a pipe takes
    assert set(ear.wait_for(100)) == {b"y" * 500}


def test_nobody_reads_any_more(fifo: WakeupPipe, tmp_path: Path) -> None:
    fifo.close()
    assert not os.path.exists(fifo.path)
    assert not wake_process(fifo.path, [b"hello"])
    os.mkfifo(tmp_path / "dead")
    assert not wake_process(str(tmp_path / "dead"), [b"hello"])
    fifo.close()  # again: nothing


def test_only_the_owner_may_write(fifo: WakeupPipe) -> None:
    assert stat.S_IMODE(os.stat(fifo.path).st_mode) == 0o600


def test_child_of_a_fork_lets_it_be(fifo: WakeupPipe, ear: Ear) -> None:
    def in_child() -> bool:
        fifo.forget()
        fifo.close()
        return os.path.exists(fifo.path)

    assert holds_in_child(in_child)
    assert wake_process(fifo.path, [b"still"])
    assert ear.wait_for(1) == [b"still"]


def test_path_that_cannot_be(tmp_path: Path, ear: Ear) -> None:
    with pytest.raises(FileNotFoundError):
        WakeupPipe(str(tmp_path / "absent" / "pipe"), ear.words.extend)
    (tmp_path / "taken").write_text("")
    with pytest.raises(FileExistsError):
        WakeupPipe(str(tmp_path / "taken"), ear.words.extend)
