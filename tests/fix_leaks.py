"""After each test: nothing may be left behind.

Looked for are greenlets that still live, sockets that are still open, threads that still run, disabled
logging, and errors that nobody saw: those that ended a greenlet or a callback of the hub, those that the
library's own greenlets logged, and those that could not be raised (in ``__del__``; the warning of a
socket that nobody closed is one, since warnings are errors).  Each check has a test that plants what
it must find.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import gevent
import pytest
from gevent import get_hub
from gevent.hub import Hub
from greenlet import getcurrent, greenlet

from greenconn.green.hub import yield_to_hub
from greenconn.worker import consumer

#: Seconds that an orderly end may take after the test's own end; who leaves nothing waits for nothing.
SETTLE = float(os.environ.get("GREENCONN_TEST_SETTLE", "10"))
STEP = 0.01
TASKS = Path("/proc/self/task")

#: What is left: what it is, and a text that names it.
Left: TypeAlias = dict[object, str]


class HubError:
    """An exception that was reported to the hub."""

    def __init__(self, context: object, value: BaseException) -> None:
        self.value = value
        self._text = f"{type(value).__name__}: {value} (in {context!r})"
        self._trace = value.__traceback__

    @property
    def was_seen(self) -> bool:
        """Whether it was raised again since, as ``Greenlet.get`` does: then somebody saw it."""
        return self.value.__traceback__ is not self._trace

    def __repr__(self) -> str:
        return self._text


class HubErrors(list[HubError]):
    """What was reported to the hub, because it ended a greenlet or a callback.

    A test that lets a greenlet fail on purpose gets its exception by ``get()`` of the greenlet, or
    asks for the fixture ``hub_errors`` and clears it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._hub: Hub | None = None

    def watch(self, hub: Hub) -> None:
        """Stand before *hub*'s own handler, once for each hub."""
        if hub is self._hub:
            return
        self._hub = hub
        original: Callable[..., None] = hub.handle_error

        def handle_error(
            context: object,
            kind: type[BaseException] | None,
            value: BaseException | str | None,
            trace: TracebackType | None,
        ) -> None:
            if isinstance(value, BaseException) and not isinstance(value, hub.NOT_ERROR):
                self.append(HubError(context, value))
            original(context, kind, value, trace)

        hub.__dict__["handle_error"] = handle_error  # mypy minds the assignment of a method
        # The end of a test (its time is over, say) that lands in another greenlet ends the test.
        hub.SYSTEM_ERROR = (*hub.SYSTEM_ERROR, pytest.fail.Exception)

    @property
    def unseen(self) -> list[HubError]:
        """Those that nobody saw."""
        return [error for error in self if not error.was_seen]


_hub_errors = HubErrors()


@pytest.fixture
def hub_errors() -> HubErrors:
    """What was reported to the hub since the test began."""
    return _hub_errors


def live_greenlets() -> Left:
    """The greenlets that run or wait, except main ones, hubs and those of gevent's threads."""
    hub = get_hub()
    current = getcurrent()
    return {
        each: _described(each)
        for each in gc.get_objects()
        # Not isinstance(), which asks a proxy for its __class__ and so runs code.
        if issubclass(type(each), greenlet) and each is not current and _is_alive(each, hub)
    }


def _is_alive(each: greenlet, hub: Hub) -> bool:
    if isinstance(each, gevent.Greenlet):
        return each.started and not each.dead
    return bool(each) and each.parent is hub and not isinstance(each, Hub)


def _described(each: greenlet) -> str:
    """A greenlet's name and where it waits."""
    frame = each.gr_frame
    where = "not begun"
    if frame is not None:
        inner: list[str] = []
        while frame is not None and len(inner) < 3:
            inner.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
            frame = frame.f_back
        where = "at " + " < ".join(inner)
    return f"greenlet {each!r} {where}"


def open_sockets() -> Left:
    """The sockets of this process, by descriptor and inode."""
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    found: Left = {}
    for name in os.listdir(folder):
        fd = int(name)
        try:
            status = os.fstat(fd)
            if stat.S_ISSOCK(status.st_mode):
                found[fd, status.st_ino] = f"socket {fd} {_ends_of(fd)}"
        except OSError:  # that of the listing itself, or one that a thread has closed meanwhile
            continue
    return found


def _ends_of(fd: int) -> str:
    """The addresses of both ends of a socket."""
    with socket.socket(fileno=os.dup(fd)) as duplicate:
        try:
            ends = f"from {duplicate.getsockname()!r}"
            return f"{ends} to {duplicate.getpeername()!r}"
        except OSError:
            return f"{ends}, not connected"


def native_threads() -> Left:
    """The operating system's threads of this process, except those of the hub's thread pool.

    Those of the pool have no name, so as many nameless ones as it has are left out.
    """
    # One of the pool whose name somebody asked for (a log record has it) is called a dummy for ever.
    names = {
        each.native_id: each.name
        for each in threading.enumerate()
        if not isinstance(each, threading._DummyThread)
    }
    if not os.path.isdir(TASKS):
        return {each: f"thread {name!r}" for each, name in names.items()}
    ids = [int(each) for each in os.listdir(TASKS)]
    found: Left = {each: f"thread {names[each]!r}" for each in ids if each in names}
    pool = getattr(get_hub(), "_threadpool", None)
    size: int = pool.size if pool is not None else 0
    nameless = len(ids) - len(found) - size
    return found | {("nameless", number): "a thread without name" for number in range(nameless)}


#: More objects than that make the look for greenlets and the collections, after each test, slow.
MANY_OBJECTS = 1_000


def forget_many() -> None:
    """Take what there is between two tests out of the garbage collector's sight, when it has grown."""
    if len(gc.get_objects()) > MANY_OBJECTS:
        gc.collect()
        yield_to_hub()
        gc.freeze()


LOOKS: tuple[Callable[[], Left], ...] = (live_greenlets, open_sockets, native_threads)


class Traces:
    """What there was before a test."""

    def __init__(self) -> None:
        self._before = [(look, look()) for look in LOOKS]

    def new(self) -> Left:
        """What there is now and was not before."""
        return {
            what: text
            for look, before in self._before
            for what, text in look().items()
            if what not in before
        }

    def settle(self) -> Left:
        """What is still new after everything had its time to end.  May switch."""
        yield_to_hub()
        gc.collect()  # what cycles hold goes in this test and not in a later one
        yield_to_hub()  # and so do the connections among it, which close in a greenlet and log it
        # Looks are counted, not the time: on a busy machine this process may stand still for all of it.
        for _ in range(round(SETTLE / STEP)):
            new = self.new()
            if not new:
                return new
            new.clear()
            gevent.sleep(STEP)
            gc.collect()
        return self.new()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note whether the test itself failed, for the fixture below."""
    report = yield
    if report.failed:
        item.stash[has_failed] = True
    return report


def pytest_keyboard_interrupt() -> None:
    """What the interrupted test leaves is no news, and pytest still has to tell the others'."""
    _interrupted.append(True)


has_failed = pytest.StashKey[bool]()
_interrupted: list[bool] = []


@contextlib.contextmanager
def noted_unraisable() -> Iterator[list[str]]:
    """Note the exceptions that cannot be raised, as texts: their objects are not kept alive."""
    texts: list[str] = []

    def note(unraisable: sys.UnraisableHookArgs) -> None:
        kind, value, where = unraisable.exc_type, unraisable.exc_value, unraisable.object
        texts.append(f"{kind.__name__}: {value} (in {type(where).__name__} {where!r:.100})")

    original, sys.unraisablehook = sys.unraisablehook, note
    try:
        yield texts
    finally:
        if sys.unraisablehook is note:
            sys.unraisablehook = original


class Complaints(logging.Handler):
    """What ended a greenlet or a tick of the library, which logs it and goes on."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of a record that has an exception."""
        if record.exc_info:
            self.texts.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


@contextlib.contextmanager
def noted_complaints() -> Iterator[list[str]]:
    """Note what the library's greenlets log as unexpected errors."""
    logger = logging.getLogger("greenconn.green")
    complaints = Complaints()
    logger.addHandler(complaints)
    try:
        yield complaints.texts
    finally:
        logger.removeHandler(complaints)


@pytest.fixture(autouse=True)
def leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test if it left something behind."""
    _hub_errors.watch(get_hub())
    _hub_errors.clear()
    forget_many()
    with noted_unraisable() as unraisable, noted_complaints() as complaints:
        traces = Traces()
        yield
        left = traces.settle()
        texts = [*left.values()]
        texts += [f"error in the hub: {error!r}" for error in _hub_errors.unseen]
        _hub_errors.clear()
        if "caplog" not in request.fixturenames:  # else the test looks for itself
            texts += [f"error in the log: {text}" for text in complaints]
        _end(left)
        texts += [f"error that was not raised: {text}" for text in unraisable]
        if logging.root.manager.disable:
            logging.disable(logging.NOTSET)
            texts.append("disabled logging")
    # A process whose consumer was refused is not ready until its namesake starts, and so for all tests.
    consumer._registry.get().failures.clear()
    # What a failed test leaves behind is held by its traceback.
    if texts and not _interrupted and not request.node.stash.get(has_failed, False):
        pytest.fail("the test left behind:\n  " + "\n  ".join(texts), pytrace=False)


def _end(left: Left) -> None:
    """End what can be ended, so that the next test does not suffer."""
    # A thread that is a greenlet would complain of its end.
    threads = {each.ident for each in threading.enumerate()}
    greenlets = [each for each in left if isinstance(each, greenlet) and id(each) not in threads]
    gevent.killall(greenlets, block=True, timeout=SETTLE)
