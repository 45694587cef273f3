"""A RabbitMQ of one's own."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from gevent import sleep

from tests.brokers.epmd import Epmd
from tests.brokers.keeper import Keeper, is_stopped, send, wait_for_end
from tests.brokers.packages import NoBroker, find_rabbitmq
from tests.brokers.ports import free_ports
from tests.brokers.rabbitmq_setup import COOKIE, DISK_FREE_LIMIT, environment, joining, write_files

READY = b"Server startup complete"
START_TIMEOUT = 90.0
CTL_TIMEOUT = 60.0
STOP_TIMEOUT = 15.0
STEP = 0.05
#: Bytes that the broker may use.
MEMORY_LIMIT = 2_000_000_000
#: Numbers the programs that this process started.
_calls = itertools.count(1)
#: More disk than there is.
ENDLESS = "1000000GB"

#: Waits until no start is under way.
NO_START_UNDER_WAY = (
    "Wait = fun Again() -> case whereis(rabbit_boot) of undefined -> ok;"
    " _ -> timer:sleep(10), Again() end end, Wait()"
)


class RabbitMQHandle:
    """A running RabbitMQ that another process may own: its address and ``rabbitmqctl``."""

    def __init__(
        self, directory: Path, port: int, tools: Path, environment: dict[str, str]
    ) -> None:
        self.directory = directory
        self.port = port
        self._tools = tools
        self.environment = environment

    @classmethod
    def of(cls, handle: str | Path) -> RabbitMQHandle:
        """The broker that a handle file describes (``GREENCONN_TEST_AMQP_CTL``)."""
        with open(handle, encoding="utf-8") as file:
            fields = json.load(file)
        return cls(
            Path(fields["directory"]), fields["port"], Path(fields["tools"]), fields["environment"]
        )

    @property
    def handle(self) -> Path:
        """The file that describes this broker to another process."""
        return self.directory / "handle.json"

    @property
    def pid_file(self) -> Path:
        """The file with the id of its process."""
        return self.directory / "server-pid"

    @property
    def log(self) -> Path:
        """The broker's log."""
        return self.directory / "log" / "broker.log"

    @property
    def ctl_program(self) -> Path:
        """The path of ``rabbitmqctl``, which needs :attr:`environment`."""
        return self._tools / "rabbitmqctl"

    @property
    def name(self) -> str:
        """The name of its node."""
        return self.environment["RABBITMQ_NODENAME"]

    @property
    def url(self) -> str:
        """The address of the virtual host ``/``."""
        return self.url_of("/")

    def url_of(self, vhost: str) -> str:
        """The address of a virtual host, in kombu's spelling."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{quote(vhost, safe='')}"

    def is_ready(self) -> bool:
        """Whether it started up; its port answers earlier."""
        try:
            since = int((self.directory / "log-began-at").read_text())
            with open(self.log, "rb") as file:
                file.seek(since)
                return READY in file.read()
        except FileNotFoundError:
            return False

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until it started up.  May switch.

        Raises:
            NoBroker: it did not within *timeout* seconds.
        """
        end = time.monotonic() + timeout
        while not self.is_ready():
            self._check_alive()
            if time.monotonic() >= end:
                raise NoBroker(f"RabbitMQ did not start within {timeout} s: {self.last_words()}")
            sleep(STEP)

    def _check_alive(self) -> None:
        """Raise when its process has ended; its owner reaps it."""
        try:
            os.kill(int(self.pid_file.read_text()), 0)
        except (FileNotFoundError, ProcessLookupError):
            # A failed start ends with code 0.
            raise NoBroker(f"RabbitMQ ended: {self.last_words()}") from None

    def last_words(self) -> str:
        """The end of what it wrote, for messages."""
        texts = []
        for file in (self.directory / "output", self.log):
            if file.exists():
                texts.append(file.read_text(errors="replace")[-1500:])
        return "\n".join(texts)

    def ctl(self, *arguments: str, timeout: float = CTL_TIMEOUT) -> str:
        """Run ``rabbitmqctl`` and return its output.  May switch.

        Raises:
            RuntimeError: it failed or did not end within *timeout* seconds.
        """
        return self._output([str(self.ctl_program), "--quiet", *arguments], timeout)

    def _output(self, command: list[str], timeout: float, given: str = "") -> str:
        """Run a program, which is given a text, and return its output."""
        name = f"ctl-{os.getpid()}-{next(_calls)}"
        source, output = self.directory / f"{name}-in", self.directory / name
        source.write_text(given)
        with open(source, "rb") as input_file, open(output, "wb") as output_file:
            child = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.directory,
                stdin=input_file,
                stdout=output_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            has_ended = wait_for_end(child, timeout)
        finally:
            if child.poll() is None:
                send(child.pid, signal.SIGKILL)
                child.wait()
        text = output.read_text(errors="replace")
        source.unlink()
        output.unlink()
        if not has_ended or child.returncode:
            how = f"code {child.returncode}" if has_ended else f"no end within {timeout} s"
            raise RuntimeError(f"{shlex.join(command)}: {how}: {text}")
        return text

    def evaluate(self, expression: str, timeout: float = CTL_TIMEOUT) -> str:
        """Evaluate an Erlang expression in the broker and return its value as text.  May switch.

        ``erl_call`` takes milliseconds, ``rabbitmqctl`` half a second of the processor: it starts an
        Erlang and loads Elixir.  It is only asked where Erlang came without ``erl_call``.

        Raises:
            RuntimeError: it failed or did not end within *timeout* seconds.
        """
        program = shutil.which("erl_call", path=self.environment["PATH"])
        if program is None:
            return self.ctl("eval", f"{expression}.", timeout=timeout).strip()
        cookie = self.directory / COOKIE
        # The broker refuses a second one of the same name.
        name = f"test{os.getpid()}x{next(_calls)}"
        command = [program, "-h", name, "-n", self.name, "-c", cookie.read_text(), "-e"]
        text = self._output(command, timeout, f"{expression}.\n")
        if not (text.startswith("{ok, ") and text.endswith("}")):
            raise RuntimeError(f"{expression}: {text}")
        return text.removeprefix("{ok, ").removesuffix("}")

    def _call(self, call: str, timeout: float = CTL_TIMEOUT) -> None:
        """Evaluate a call that says ``ok``."""
        if (value := self.evaluate(call, timeout)) != "ok":
            raise RuntimeError(f"{call}: {value}")

    def add_vhost(self, name: str) -> str:
        """Make a virtual host that ``guest`` may use; returns its address.  May switch."""
        self._call(f"rabbit_vhost:add({binary(name)}, {binary('guest')})")
        self._permit("guest", name, ".*")
        return self.url_of(name)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with all that is in it.  May switch."""
        self._call(f"rabbit_vhost:delete({binary(name)}, {binary('guest')})")

    def add_user(self, name: str, password: str, vhost: str = "/", configured: str = ".*") -> None:
        """Make a user who may read and write all of *vhost*.  May switch.

        Arguments:
            configured: the names of what it may declare there, as a regular expression.
        """
        words = ", ".join(map(binary, (name, password, "guest")))
        self._call(f"rabbit_auth_backend_internal:add_user({words})")
        self._permit(name, vhost, configured)

    def _permit(self, user: str, vhost: str, configured: str) -> None:
        words = ", ".join(map(binary, (user, vhost, configured, ".*", ".*", "guest")))
        self._call(f"rabbit_auth_backend_internal:set_permissions({words})")

    def delete_user(self, name: str) -> None:
        """Delete a user.  May switch."""
        self._call(f"rabbit_auth_backend_internal:delete_user({binary(name)}, {binary('guest')})")

    def set_password(self, name: str, password: str) -> None:
        """Give a user another password.  May switch."""
        words = ", ".join(map(binary, (name, password, "guest")))
        self._call(f"rabbit_auth_backend_internal:change_password({words})")

    def message_count(self, queue: str, vhost: str) -> int:
        """How many messages are in a queue, those that consumers hold included.  May switch."""
        name = f"rabbit_misc:r({binary(vhost)}, queue, {binary(queue)})"
        find = f"element(2, rabbit_amqqueue:lookup({name}))"
        return int(self.evaluate(f"element(2, hd(rabbit_amqqueue:info({find}, [messages])))"))

    def close_connections(self, reason: str) -> None:
        """Have the broker close all connections.  May switch."""
        # One that ends by itself meanwhile is none to be closed.
        close = f"fun(C) -> catch rabbit_networking:close_connection(C, {binary(reason)}) end"
        self._call(f"lists:foreach({close}, rabbit_networking:connections())")

    def stop_app(self) -> None:
        """Stop the broker inside its process: all connections end in order.  May switch."""
        self._call("rabbit:stop()")

    def start_app(self) -> None:
        """Start the broker inside its process again.  May switch.

        Up to 200 ms after a start RabbitMQ 3.10 takes another one for a part of it: it says ``ok`` and
        starts nothing.
        """
        self._call(f"begin {NO_START_UNDER_WAY}, rabbit:start() end")
        if (state := self.evaluate("rabbit:is_running()")) != "true":
            raise RuntimeError(f"rabbit:is_running(): {state}: {self.last_words()}")

    def set_memory_alarm(self, is_on: bool) -> None:
        """Make the broker block all publishing connections, or unblock them.  May switch."""
        limit = 1 if is_on else MEMORY_LIMIT
        self._call(f"vm_memory_monitor:set_vm_memory_high_watermark({{absolute, {limit}}})")

    def set_disk_alarm(self, is_on: bool) -> None:
        """The same for want of disk, whatever is free.  May switch."""
        limit = ENDLESS if is_on else DISK_FREE_LIMIT
        self._call(f"rabbit_disk_monitor:set_disk_free_limit({json.dumps(limit)})")


class RabbitMQ(RabbitMQHandle):
    """A RabbitMQ that this process owns.

    Arguments:
        keeper: ends it, whatever becomes of this process.
        vhosts: the virtual hosts that it has from the start, besides ``/``.
        is_managed: it has the management plugin, at ``http_port``.
        plugins: further plugins that it has.
        settings: further lines of its ``rabbitmq.conf``.
        epmd: the port mapper that it shares with the other nodes of a cluster; None: one of its own.
        cookie: the secret of a cluster; None: Erlang makes one.
        joins: the name of the node whose cluster it joins when it begins for the first time.

    Raises:
        NoBroker: the programs are not to be had.
    """

    def __init__(
        self,
        keeper: Keeper,
        vhosts: tuple[str, ...] = (),
        *,
        is_managed: bool = False,
        plugins: tuple[str, ...] = (),
        settings: Mapping[str, object] | None = None,
        epmd: Epmd | None = None,
        cookie: str | None = None,
        joins: str | None = None,
    ) -> None:
        self._keeper = keeper
        programs = find_rabbitmq(keeper.directory)
        port, dist, ctl, self.http_port = free_ports(4)
        self._has_own_epmd = epmd is None
        self._epmd = epmd or Epmd(keeper)
        directory = keeper.directory / f"rabbitmq-{port}"
        directory.mkdir()
        super().__init__(
            directory,
            port,
            programs.server.parent,
            environment(directory, programs, port=port, dist=dist, epmd=self._epmd.port, ctl=ctl),
        )
        self.server = programs.server
        self._process: subprocess.Popen[bytes] | None = None
        self._is_app_stopped = self._has_memory_alarm = self._has_disk_alarm = False
        if is_managed:
            plugins = ("rabbitmq_management", *plugins)
            http = {"management.tcp.port": self.http_port, "management.tcp.ip": "127.0.0.1"}
            settings = {**http, **(settings or {})}
        if joins is not None:
            settings = {**joining(joins, self.name), **(settings or {})}
        write_files(directory, ("/", *vhosts), plugins, settings, cookie)
        self._write_handle()

    def _write_handle(self) -> None:
        directory = self.directory
        self.handle.write_text(
            json.dumps(
                {
                    "directory": str(directory),
                    "port": self.port,
                    "tools": str(self._tools),
                    "environment": self.environment,
                }
            )
        )

    def stop_app(self) -> None:
        """Stop the broker inside its process; :meth:`mend` starts it.  May switch."""
        self._is_app_stopped = True
        super().stop_app()

    def start_app(self) -> None:
        """Start the broker inside its process again.  May switch."""
        super().start_app()
        self._is_app_stopped = False

    def set_memory_alarm(self, is_on: bool) -> None:
        """Make the broker block all publishing connections; :meth:`mend` unblocks them.  May switch."""
        self._has_memory_alarm = is_on
        super().set_memory_alarm(is_on)

    def set_disk_alarm(self, is_on: bool) -> None:
        """The same for want of disk.  May switch."""
        self._has_disk_alarm = is_on
        super().set_disk_alarm(is_on)

    @property
    def is_running(self) -> bool:
        """Whether its process lives; reaps it, so that its handles see its end."""
        return self._process is not None and self._process.poll() is None

    def begin(self) -> None:
        """Start its process, on the data it left, and do not wait for it.  May switch."""
        assert not self.is_running
        self._is_app_stopped = self._has_memory_alarm = self._has_disk_alarm = False
        self._epmd.serve(self.environment)
        began_at = self.log.stat().st_size if self.log.exists() else 0
        (self.directory / "log-began-at").write_text(str(began_at))
        self._process = self._keeper.run(
            [self.server],
            env=self.environment,
            output=self.directory / "output",
            cwd=self.directory,
        )
        self.pid_file.write_text(str(self._process.pid))

    def start(self) -> None:
        """Start it, on the data it left, and wait until it is ready.  May switch.

        Raises:
            NoBroker: it did not start.
        """
        self.begin()
        self.wait_ready()

    def _check_alive(self) -> None:
        if not self.is_running:
            self.pid_file.unlink(missing_ok=True)
        super()._check_alive()

    def drain(self) -> None:
        """Put it into maintenance, as ``rabbitmq-upgrade drain`` does, then stop it.  May switch.

        It closes its connections and moves the leaders of its queues to other nodes.  Started again, it
        is in service.
        """
        self._call("rabbit_maintenance:drain()")
        self.stop()

    def stop(self) -> None:
        """Stop its process in order; data stay.  May switch."""
        if self._process is not None:
            self._keeper.end(self._process, STOP_TIMEOUT)
            self._process = None

    def settle(self) -> None:
        """End its process in order and start it again: what was declared is on disk then.  May switch.

        Before a :meth:`kill`: RabbitMQ 3.10 that is killed within a second of it may forget that a queue
        was declared, with all that was confirmed in it, whatever the client.
        """
        self.stop()
        self.start()

    def kill(self) -> None:
        """End its process at once (SIGKILL); data stay.  May switch."""
        if self._process is not None:
            self._keeper.end(self._process, grace=0)
            self._process = None

    def pause(self) -> None:
        """Freeze it (SIGSTOP): its connections stay open and silent.  May switch."""
        assert self._process is not None
        send(self._process.pid, signal.SIGSTOP)
        while not is_stopped(self._process.pid):
            sleep(STEP)

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        if self._process is not None:
            send(self._process.pid, signal.SIGCONT)

    def mend(self) -> None:
        """Undo what a test did: let it go on, start it, stop the alarms.  May switch."""
        self.resume()
        if not self.is_running:
            self.start()
            return
        if self._is_app_stopped:
            self.start_app()
        if self._has_memory_alarm:
            self.set_memory_alarm(False)
        if self._has_disk_alarm:
            self.set_disk_alarm(False)

    def close(self) -> None:
        """Stop it for good.  May switch."""
        self.resume()
        self.stop()
        if self._has_own_epmd:
            self._epmd.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def binary(text: str) -> str:
    """Return *text* as an Erlang binary."""
    return f"<<{','.join(map(str, text.encode()))}>>"
