"""What was written leaves at the end of the interpreter, and that is not held up for long."""

from __future__ import annotations

import atexit
import gc
import subprocess
import sys
import textwrap
import time
import types
import weakref

import gevent
import pytest

from greenconn.green import atexit as green_exit
from greenconn.green.deadline import Deadline


class Writer:
    """Something that needs a while to be flushed."""

    pending = 0

    def flush(self) -> None:
        """Nothing."""


def run(code: str) -> tuple[str, float]:
    """What a program prints, and how long it takes."""
    program = textwrap.dedent(code)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=150, check=True
    )
    return done.stdout + done.stderr, time.monotonic() - began


def test_only_a_weak_reference_is_kept() -> None:
    gc.collect()
    before = len(green_exit._members)
    writer = Writer()
    green_exit.register(writer)
    green_exit.register(writer)
    assert len(green_exit._members) == before + 1
    del writer
    gc.collect()
    assert len(green_exit._members) == before


def test_importing_installs_nothing() -> None:
    printed, _ = run("""
    import atexit
    atexit.register = None
    import greenconn.green.atexit
    """)
    assert printed == ""


@pytest.mark.parametrize("has_multiprocessing", [False, True])
def test_each_process_installs_one_hook(
    monkeypatch: pytest.MonkeyPatch, has_multiprocessing: bool
) -> None:
    installed: list[object] = []
    finalized: list[object] = []

    def finalize(obj: None, callback: object, exitpriority: int) -> None:
        finalized.append(callback)

    module = types.SimpleNamespace(Finalize=finalize) if has_multiprocessing else None
    monkeypatch.setitem(sys.modules, "multiprocessing.util", module)
    monkeypatch.setattr(atexit, "register", installed.append)
    monkeypatch.setattr(atexit, "unregister", lambda hook: installed.append("not"))
    monkeypatch.setattr(green_exit, "_installed_in", -1)
    writers = [Writer(), Writer()]
    for writer in writers:
        green_exit.register(writer)
    hook = green_exit._flush_all
    assert installed == ["not", hook]
    assert finalized == ([hook] if has_multiprocessing else [])


@pytest.mark.parametrize(
    ("steps", "left"), [(0, 0), (3, 0), (10**9, 10**9)], ids=["at once", "soon", "never"]
)
def test_the_end_waits_for_what_is_pending(steps: int, left: int) -> None:
    printed, took = run(f"""
    import gevent
    from greenconn.green import atexit as green_exit
    class Writer:
        pending = {steps}
        def flush(self):
            print("flushed")
            gevent.spawn(self.drain)
        def drain(self):
            while self.pending:
                self.pending -= 1
                print("." * (self.pending < 9), end="")
                gevent.sleep(0.01)
    writer = Writer()
    green_exit.register(writer)
    """)
    assert printed == "flushed\n" + "." * (0 if left else steps)
    assert took < 20.0
    if left:
        assert took > 2.0


@pytest.mark.parametrize(("steps", "left"), [(3, 0), (10**9, 10**9)], ids=["soon", "never"])
def test_what_is_pending_is_waited_for_up_to_the_deadline(
    steps: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Writer):
        pending = steps

        def flush(self) -> None:
            self.drainer = gevent.spawn(self.drain)

        def drain(self) -> None:
            while self.pending:
                self.pending -= 1
                gevent.sleep(0.001)

    deadline = Deadline(0.05 if left else 100.0)
    monkeypatch.setattr(green_exit, "_deadline", deadline)
    monkeypatch.setattr(green_exit, "_members", weakref.WeakKeyDictionary())
    writer = Slow()
    green_exit.register(writer)
    green_exit._flush_all()
    writer.drainer.kill()
    assert (writer.pending > 0, deadline.has_ended) == (bool(left), bool(left))
