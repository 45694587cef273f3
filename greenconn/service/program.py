"""One process that runs an application: from its import to its end.

Also the search for applications in the files of a directory, which imports none of them.
"""

from __future__ import annotations

import ast
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import gevent
import gevent.socket
from gevent.event import Event
from gevent.pywsgi import WSGIServer

from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import spawn
from greenconn.identity import note_slot
from greenconn.service.app import App, stop_and_close, time_for_handlers
from greenconn.service.health import Probes, Watchdog
from greenconn.service.processes import (
    BOOT_FAILED,
    FAILED,
    HANDED_OVER,
    INDEX_VARIABLE,
    MANAGER_VARIABLE,
    REFUSED,
    RELOAD,
    STOPPED,
    Address,
    health_socket,
    is_managed,
)
from greenconn.worker.consumer import ConsumerGreenlet

logger = logging.getLogger("greenconn.running")

_PACKAGE: Final = f"{os.path.dirname(os.path.dirname(__file__))}{os.sep}"
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
#: Seconds between two checks whether the manager is alive.
INTERVAL: Final = 1.0
#: Seconds between two checks whether a source file changed.
RELOAD_INTERVAL: Final = 0.5
#: Directories of installed packages, whose files are not watched.
_INSTALLED: Final = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
#: Directories that are searched for applications at most, and their depth below the given one.
MOST_FOLDERS: Final = 1000
DEPTH: Final = 3
#: Directories that do not belong to the program.
_LEFT_OUT: Final = frozenset({"build", "dist", "node_modules", "site-packages", "tests"})


def load_app(target: str) -> App:
    """Import an application.

    Arguments:
        target: ``module:name``; without a name it is ``app``.

    Raises:
        ValueError: there is no such module, it has no such name, or that is no application.
        Exception: what the module raises.
    """
    module_name, _, name = target.partition(":")
    name = name or "app"
    if not module_name:
        raise ValueError(f"application must be given as module:name, got {target!r}")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: object = import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module_name}.".startswith(f"{exc.name}."):
            raise  # of a module that it imports
        raise ValueError(
            f"module {exc.name!r} of application {target!r} was not found: run the command in the "
            f"directory of the program, or set PYTHONPATH"
        ) from exc
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"module {module_name!r} has no application {name!r}")
        found = getattr(found, part)
    if not isinstance(found, App):
        raise ValueError(f"{target} must be a greenconn.App, got {found!r}")
    return found


class Program:
    """A process that runs an application until a signal, a change of its files, or its failure.

    TERM and INT stop it gracefully: no more messages are taken, running handlers finish, publishes get
    their confirms, connections are closed.  The same signal again, or QUIT, interrupts the handlers;
    their messages are requeued.  A process that has a manager is interrupted by QUIT alone, which the
    manager sends.

    Arguments:
        load: returns the application; called once.
        graceful_timeout: seconds for all of the end.
        health: host and port at which ``/health/live`` and ``/health/ready`` are answered, unless a
            manager has handed over a socket for that.  None: nowhere.
        stalled_after: seconds of a :class:`~greenconn.service.health.Watchdog`; None: there is none.
        reloads: end with :data:`~greenconn.service.processes.RELOAD` when a source file changes.
    """

    def __init__(
        self,
        load: Callable[[], App],
        *,
        graceful_timeout: float = 30.0,
        health: Address | None = None,
        stalled_after: float | None = None,
        reloads: bool = False,
    ) -> None:
        self._load = load
        self._graceful_timeout = graceful_timeout
        self._health = health
        self._stalled_after = stalled_after
        self._reloads = reloads
        #: Set when it is to end.
        self._ending = Event()
        self._exit_code = STOPPED
        self._received: set[int] = set()
        self._server: WSGIServer | None = None
        #: The greenlet that runs the end, once it is under way.
        self._stopping: gevent.Greenlet[..., Any] | None = None

    def run(self) -> int:
        """Run the application.  May switch.

        Returns:
            An exit code of :mod:`greenconn.service.processes`.
        """
        note_slot(int(os.environ.get(INDEX_VARIABLE, "0")))
        handlers: list[gevent.signal_handler[...]] = [
            gevent.signal_handler(each, self._on_signal, each) for each in SIGNALS
        ]
        if is_managed():
            handlers.append(gevent.signal_handler(HANDED_OVER, self._on_handed_over))
        helpers: list[gevent.Greenlet[..., Any]] = [gevent.spawn(self._watch_manager)]
        hub: Any = gevent.get_hub()
        handle_error = hub.handle_error
        hub.handle_error = partial(_handle_error, handle_error)
        watchdog: Watchdog | None = None
        try:
            try:
                app = self._load()
                consumers = app.start()
                if self._health is not None and not self._ending.is_set():
                    self._serve_probes(self._health)
                if self._stalled_after is not None:
                    watchdog = Watchdog(self._stalled_after)
            except Exception as exc:
                return self._boot_failed(exc)
            for each in consumers:
                each.rawlink(self._note_end)
            if self._reloads:
                helpers.append(gevent.spawn(self._watch, SourceFiles()))
            logger.info("%r runs in process %d", app, os.getpid())
            self._ending.wait()
            return self._end()
        finally:
            hub.handle_error = handle_error
            gevent.killall(helpers)
            if watchdog is not None:
                watchdog.stop()
            if self._server is not None:
                self._server.stop(timeout=0)
            for handler in handlers:
                handler.cancel()
            if is_managed():
                # It may still come, and its default action is to end the process.
                signal.signal(HANDED_OVER, signal.SIG_IGN)

    def _on_signal(self, number: int) -> None:
        """Handle a signal, in a greenlet of its own."""
        # systemd and terminals send a signal to all processes, and the manager passes it on besides.
        is_repeated = number in self._received and not is_managed()
        is_hasty = number == signal.SIGQUIT or is_repeated
        self._received.add(number)
        logger.info("received %s: stopping", signal.Signals(number).name)
        self._ending.set()
        if is_hasty:
            self._graceful_timeout = 0.0
            if self._stopping is not None:
                self._stopping.kill(block=False)

    def _end(self) -> int:
        while True:
            deadline = Deadline(time_for_handlers(self._graceful_timeout))
            self._stopping = gevent.spawn(stop_and_close, deadline)
            self._stopping.join()
            if isinstance(self._stopping.value, gevent.GreenletExit):
                continue  # a further signal
            if self._stopping.value is not True and self._exit_code == STOPPED:
                self._exit_code = FAILED
            return self._exit_code

    def _note_end(self, consumer: ConsumerGreenlet) -> None:
        # In the hub.  One that the program stops by itself ends without an error.
        if not consumer.successful() and not self._ending.is_set():
            self._exit_code = FAILED
            if is_managed() and not self._reloads and not consumer.lifecycle.has_run:
                self._exit_code = REFUSED  # with reloads another try may have other files
            self._ending.set()
            # Why is in the log already.  In another greenlet, as a log handler may switch.
            spawn(
                "log",
                logger.error,
                "consumer %s failed: stopping",
                consumer.lifecycle.options.name,
                extra={"consumer": consumer.lifecycle.options.name},
            )

    def _boot_failed(self, error: Exception) -> int:
        trace = _frames_of_program(error)
        if trace is None and not isinstance(error, SyntaxError):
            # The library alone raised it: its text says all.
            logger.error("%s", error.args[0] if isinstance(error, KeyError) else error)
        else:
            text = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
            logger.error("the application could not be started:\n%s", text)
        if not self._reloads:
            return BOOT_FAILED
        # As they are now: who reads the line may change them.
        files = SourceFiles(files_of_error(error))
        logger.info("waiting for a change of its files")
        watching = gevent.spawn(self._watch, files)
        self._ending.wait()
        watching.kill()
        return self._exit_code

    def _watch(self, files: SourceFiles) -> None:
        path = files.wait_change()
        logger.info("%s changed: reloading", os.path.relpath(path))
        self._exit_code = RELOAD
        self._ending.set()

    def _watch_manager(self) -> None:
        """End when the manager is gone: a process without one would never be stopped or replaced."""
        manager = os.environ.get(MANAGER_VARIABLE)
        while manager is not None:
            if os.getppid() != int(manager):
                logger.warning("the manager of process %d is gone: stopping", os.getpid())
                self._ending.set()
                return
            gevent.sleep(INTERVAL)

    def _serve_probes(self, address: Address) -> None:
        # Made of its descriptor, as it must be gevent's where nothing is patched, too.
        listener = gevent.socket.socket(fileno=health_socket(address).detach())
        self._server = WSGIServer(listener, Probes(), log=None)
        self._server.start()
        host, port = listener.getsockname()[:2]
        logger.info("health at http://%s:%d/health/ready", host, port)

    def _on_handed_over(self) -> None:
        """Leave the health probes to the process that replaces this one."""
        if self._server is not None:
            self._server.close()


def _handle_error(
    handle: Callable[..., None],
    context: object,
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
) -> None:
    """Have gevent print an error, unless the log has it already: that for which a consumer failed."""
    if not (isinstance(context, ConsumerGreenlet) and error is context.lifecycle.error):
        handle(context, kind, error, trace)


def _frames_of_program(error: Exception) -> TracebackType | None:
    """Return the traceback of *error* from the first frame of the program on; None without any."""
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith(_PACKAGE) and "importlib" not in name:
            break
        trace = trace.tb_next
    return trace


class SourceFiles:
    """The files of all modules that are loaded, but for the standard library and installed packages.

    Arguments:
        further: files that are looked at besides.
    """

    def __init__(self, further: tuple[str, ...] = ()) -> None:
        self._further = further
        self._seen: dict[str, float] = {}
        self._changed()

    def wait_change(self) -> str:
        """Return the path of the first file that changes after this was made.  May switch."""
        while (path := self._changed()) is None:
            gevent.sleep(RELOAD_INTERVAL)
        return path

    def _changed(self) -> str | None:
        for path in {*self._loaded(), *self._further}:
            try:
                changed_at = os.stat(path).st_mtime
            except OSError:
                continue  # it is just being written, or gone
            if self._seen.setdefault(path, changed_at) != changed_at:
                self._seen[path] = changed_at
                return path
        return None

    def _loaded(self) -> list[str]:
        standard = os.path.dirname(os.__file__)
        return [
            path
            for module in list(sys.modules.values())
            if (path := getattr(module, "__file__", None))
            and not path.startswith(standard)
            and not any(each in path for each in _INSTALLED)
        ]


def files_of_error(error: BaseException) -> tuple[str, ...]:
    """Return the files in which *error* was raised, or in which the syntax is wrong."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        files.append(error.filename)
    return tuple(files)


def applications_in(folder: str) -> list[str]:
    """Return the applications that modules in *folder* make at their top level, as ``module:name``."""
    found = []
    for path in _files(folder):
        parts = Path(os.path.relpath(path, folder)).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts and all(map(str.isidentifier, parts)):
            found += [f"{'.'.join(parts)}:{name}" for name in _names_in(path)]
    return found


def _files(folder: str) -> Iterator[str]:
    depth = len(Path(folder).parts)
    for where, folders, files in islice(os.walk(folder), MOST_FOLDERS):
        folders[:] = sorted(
            name
            for name in folders
            if len(Path(where).parts) - depth < DEPTH
            and name[:1] not in ("_", ".")
            and name not in _LEFT_OUT
            and not os.path.exists(os.path.join(where, name, "pyvenv.cfg"))
        )
        yield from (os.path.join(where, name) for name in sorted(files) if name.endswith(".py"))


def _names_in(path: str) -> Iterator[str]:
    """Yield the names to which a module assigns a new ``greenconn.App``."""
    try:
        source = Path(path).read_bytes()
        if b"greenconn" not in source or b"App" not in source:
            return
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        return
    classes: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            classes |= {
                f"{each.asname or each.name}.App" for each in node.names if each.name == "greenconn"
            }
        elif isinstance(node, ast.ImportFrom) and node.module == "greenconn":
            classes |= {each.asname or each.name for each in node.names if each.name == "App"}
        elif (
            isinstance(node, (ast.Assign, ast.AnnAssign))
            and isinstance(node.value, ast.Call)
            and ast.unparse(node.value.func) in classes
        ):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (each.id for each in targets if isinstance(each, ast.Name))
