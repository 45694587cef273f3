"""The manager of several processes that run one application.

It starts copies of its own command line, restarts those that end, and takes the signals that
gunicorn's arbiter takes: TERM and INT stop gracefully, QUIT (or the same a second time) at once, HUP
replaces all processes, TTIN and TTOU add and remove one.  It runs no gevent, opens no connection and
loads no code of the program, so that little in it can fail; if it is killed, its processes stop by
themselves.

The sockets that answer health probes belong to the manager, which hands each to the process of its
index: the one that stops and the one that takes its place would be in each other's way otherwise.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from time import monotonic
from typing import Final, TypeAlias

logger = logging.getLogger("greenconn.running")

SIGNALS: Final = frozenset(
    {
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGHUP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGCHLD,
    }
)
#: Tells a process that stops that another answers the health probes now.
HANDED_OVER: Final = signal.SIGHUP
#: A process that lived for fewer seconds than this waits before it is started again.
SHORT_LIFE: Final = 10.0
FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 30.0
#: Seconds that a process has, after the time of its handlers, before it is killed.
KILL_MARGIN: Final = 5.0
#: Probes that wait until a process has started.
BACKLOG: Final = 256

# The exit codes of a process that runs an application.

#: A signal stopped it.
STOPPED: Final = 0
#: The broker refused a consumer for good, or handlers had to be interrupted.
FAILED: Final = 1
#: The application could not be imported or started: another process could not, either.
BOOT_FAILED: Final = 3
#: A source file changed.
RELOAD: Final = 4
#: The broker refused a consumer that had never run, as it refuses a wrong password.
REFUSED: Final = 5

#: The number of the process, from 0, in the environment of each that a manager starts.
INDEX_VARIABLE: Final = "GREENCONN_PROCESS"
#: The process id of the manager.
MANAGER_VARIABLE: Final = "GREENCONN_MANAGER"
#: The descriptor of the socket that answers health probes.
HEALTH_VARIABLE: Final = "GREENCONN_HEALTH"

#: Host and port.
Address: TypeAlias = tuple[str, int]


def is_managed() -> bool:
    """Return whether this process was started by a manager."""
    return INDEX_VARIABLE in os.environ


def unblock_signals() -> None:
    """Take the signals that the manager blocks for itself, and those that came meanwhile."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def parse_address(text: str) -> Address:
    """Return host and port of ``port`` or ``host:port``; without a host all interfaces.

    Raises:
        ValueError: it is neither.
    """
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ValueError(f"address must be a port, or host:port, got {text!r}")
    return host.strip("[]") or "0.0.0.0", int(port)


def health_socket(address: Address) -> socket.socket:
    """Return the listening socket that answers the health probes of this process.

    Arguments:
        address: where it listens, unless a manager has handed one over.

    Raises:
        OSError: nothing can listen there.
    """
    handed_over = os.environ.pop(HEALTH_VARIABLE, None)
    if handed_over is not None:
        listener = socket.socket(fileno=int(handed_over))
        listener.set_inheritable(False)
        return listener
    return _listen(address)


def _listen(address: Address) -> socket.socket:
    host, port = address
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as exc:
        raise OSError(f"cannot listen for health probes at {host}:{port}: {exc}") from exc


class _Process:
    """A process that runs the application."""

    def __init__(
        self, index: int, command: Sequence[str], listener: socket.socket | None = None
    ) -> None:
        self.index = index
        self.began_at = monotonic()
        #: When it is killed; None before it is stopped.
        self.kill_at: float | None = None
        environment = {
            **os.environ,
            INDEX_VARIABLE: str(index),
            MANAGER_VARIABLE: str(os.getpid()),
        }
        handed_over: tuple[int, ...] = ()
        if listener is not None:
            handed_over = (listener.fileno(),)
            environment[HEALTH_VARIABLE] = str(listener.fileno())
        self.child = subprocess.Popen(list(command), env=environment, pass_fds=handed_over)

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return monotonic() - self.began_at


class ProcessManager:
    """The manager of processes that run the same command.

    Arguments:
        command: what each of them executes.
        count: number of processes.
        graceful_timeout: seconds that their handlers have when they are stopped.
        health: host and port at which process 0 answers health probes; process n at the port plus n.
            None: nowhere.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        *,
        graceful_timeout: float = 30.0,
        health: Address | None = None,
    ) -> None:
        self._command = command
        self._count = count
        self._graceful_timeout = graceful_timeout
        self._health = health
        #: By index, those that answer health probes.
        self._listeners: dict[int, socket.socket] = {}
        #: By index; the ones that serve.
        self._serving: dict[int, _Process] = {}
        #: Those that a signal was sent to.
        self._stopping: list[_Process] = []
        #: Index -> when it may be started, and the next delay.
        self._due: dict[int, float] = {}
        self._delays: dict[int, float] = {}
        self._exit_code: int | None = None
        #: Indexes of the processes that were refused by the broker when they were started last.
        self._refused: set[int] = set()
        #: The signals that stop, as far as they came.
        self._received: set[signal.Signals] = set()

    def run(self) -> int:
        """Run until a signal ends it.  Blocks.

        Returns:
            The exit code: 0, or that of the process whose end made all stop.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            try:
                for index in range(self._count):
                    self._listener(index)
            except OSError as exc:
                logger.error("%s", exc)
                return BOOT_FAILED
            while not self._has_ended:
                self._start_missing()
                self._wait()
                self._reap()
                self._kill_late()
        finally:
            for process in (*self._serving.values(), *self._stopping):
                process.child.kill()
                process.child.wait()
            for listener in self._listeners.values():
                listener.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._exit_code or STOPPED

    @property
    def _has_ended(self) -> bool:
        return self._exit_code is not None and not self._serving and not self._stopping

    def _start_missing(self) -> None:
        if self._exit_code is not None:
            return
        for index in range(self._count):
            if index not in self._serving and self._due.get(index, 0.0) <= monotonic():
                self._due.pop(index, None)
                try:
                    listener = self._listener(index)
                    process = _Process(index, self._command, listener)
                except OSError as exc:
                    # Such as too many processes, no memory, or a port in use: those that run go on.
                    delay = self._back_off(index)
                    logger.error(
                        "process %d cannot be started, tried again in %g s: %s", index, delay, exc
                    )
                    continue
                self._serving[index] = process
                logger.info("process %d was started (%d)", process.child.pid, index)
                for former in self._stopping:
                    if listener is not None and former.index == index:
                        former.child.send_signal(HANDED_OVER)

    def _listener(self, index: int) -> socket.socket | None:
        """Return the socket that answers the health probes of the process with *index*."""
        if self._health is None:
            return None
        listener = self._listeners.get(index)
        if listener is None:
            host, port = self._health
            listener = self._listeners[index] = _listen((host, port + index if port else 0))
        return listener

    def _close_listener(self, index: int) -> None:
        """Close the socket of *index* once no process needs it."""
        if index >= self._count and all(each.index != index for each in self._stopping):
            listener = self._listeners.pop(index, None)
            if listener is not None:
                listener.close()

    def _wait(self) -> None:
        """Wait for a signal, or until something is due."""
        times = [each.kill_at for each in self._stopping if each.kill_at is not None]
        if self._exit_code is None:
            times += [self._due[each] for each in range(self._count) if each in self._due]
        if times:
            received = signal.sigtimedwait(SIGNALS, max(0.0, min(times) - monotonic()))
        else:
            received = signal.sigwaitinfo(SIGNALS)
        if received is not None:
            self._handle(signal.Signals(received.si_signo))

    def _handle(self, number: signal.Signals) -> None:
        if number is signal.SIGHUP:
            self._stop(list(self._serving.values()), signal.SIGTERM)
            self._serving.clear()
            self._due.clear()
        elif number is signal.SIGTTIN:
            self._count += 1
        elif number is signal.SIGTTOU:
            if self._count > 1:
                self._count -= 1
                last = self._serving.pop(self._count, None)
                self._stop([last] if last else [], signal.SIGTERM)
        elif number is not signal.SIGCHLD:
            is_hasty = number is signal.SIGQUIT or number in self._received
            self._received.add(number)
            self._end(STOPPED, signal.SIGQUIT if is_hasty else signal.SIGTERM)

    def _end(self, code: int, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop all processes, and exit with *code* when they have ended."""
        if self._exit_code is None:
            self._exit_code = code
        processes = [*self._serving.values()]
        self._serving.clear()
        if number is signal.SIGQUIT:
            processes += self._stopping
            self._stopping = []
        self._stop(processes, number)

    def _stop(self, processes: list[_Process], number: signal.Signals) -> None:
        for process in processes:
            time = self._graceful_timeout if number is signal.SIGTERM else 0.0
            process.kill_at = monotonic() + time + KILL_MARGIN
            process.child.send_signal(number)
            self._stopping.append(process)

    def _kill_late(self) -> None:
        for process in self._stopping:
            if process.kill_at is not None and process.kill_at <= monotonic():
                logger.warning("process %d did not stop in time: killed", process.child.pid)
                process.kill_at = None
                process.child.kill()

    def _reap(self) -> None:
        for process in list(self._serving.values()):
            code = process.child.poll()
            # The end of one before it may have made all stop.
            if code is not None and self._serving.get(process.index) is process:
                del self._serving[process.index]
                self._note_end(process, code)
        for process in [each for each in self._stopping if each.child.poll() is not None]:
            self._stopping.remove(process)
            self._close_listener(process.index)
            was_interrupted = process.child.returncode in (FAILED, -signal.SIGKILL)
            if was_interrupted and self._exit_code == STOPPED:
                self._exit_code = FAILED

    def _note_end(self, process: _Process, code: int) -> None:
        """Start a process again that ended without a signal of ours, unless that is of no use."""
        index = process.index
        if code == RELOAD:
            return
        if code == BOOT_FAILED:
            logger.error("process %d could not start the application: stopping", process.child.pid)
            self._end(BOOT_FAILED)
            return
        if code == REFUSED:
            self._refused.add(index)
            if not any(self._may_serve(each) for each in range(self._count)):
                logger.error("the broker refused the consumers of all processes: stopping")
                self._end(FAILED)
                return
        else:
            self._refused.discard(index)
        delay = 0.0
        if process.age < SHORT_LIFE:
            delay = self._back_off(index)
        else:
            self._delays.pop(index, None)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        logger.error("process %d %s; another is started in %g s", process.child.pid, how, delay)

    def _may_serve(self, index: int) -> bool:
        """Return whether the process with *index* has its consumers, or may have them once it runs."""
        process = self._serving.get(index)
        return index not in self._refused or (process is not None and process.age >= SHORT_LIFE)

    def _back_off(self, index: int) -> float:
        """Let a process be started later, each time twice as late; return in how many seconds."""
        delay = self._delays.get(index, FIRST_DELAY)
        self._delays[index] = min(2 * delay, LONGEST_DELAY)
        self._due[index] = monotonic() + delay
        return delay


def command_line() -> list[str]:
    """Return the command that started this process, for copies of it."""
    return [sys.executable, *sys.orig_argv[1:]]
