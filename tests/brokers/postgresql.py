"""A PostgreSQL of one's own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from stat import S_IXOTH
from typing import Any

from tests.brokers.fetching import cache_folder, make, run
from tests.brokers.keeper import Keeper, send, wait_for_end
from tests.brokers.packages import Programs, find_postgresql
from tests.brokers.server import Server

#: The role of tests that log in by a password, and the database in which only it must.
LOGIN = "secured"
#: What refuses to run as root runs as the first of these users that there is.
USERS = ("postgres", "nobody")
#: Parts of the packages that no test needs, some of them large.
_UNNEEDED = shutil.ignore_patterns("bitcode", "doc", "libLLVM*", "llvmjit*", "locale", "man")
#: Becomes another user, then another program; the process stays the same.
_RUN_AS = "import os, sys; os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[2])); " + (
    "os.execv(sys.argv[3], sys.argv[3:])"
)
#: Becomes another program, for which alone the folder $1 is a disk of $2 MiB, of the user $3.
_ON_DISK = 'mount -t tmpfs -o "size=$2m,uid=$3" disk "$1" && shift 3 && exec "$@"'
#: The tests kill processes, not machines: what is in the system's cache is not lost.
_SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = off
full_page_writes = off
shared_buffers = 32MB
max_connections = 300
log_min_messages = fatal
track_activities = on
"""
_ACCESS = f"""
host all {LOGIN} 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
"""


class UserServer(Server):
    """A server that refuses to run as root: then it runs as another user.

    Arguments:
        programs: where its programs are.
    """

    folder = Path("/")

    def __init__(self, keeper: Keeper, programs: Programs) -> None:
        super().__init__(keeper)
        self._programs = programs
        self._prefix: list[str] = []
        if os.geteuid() == 0:
            user = _user()
            code = [_RUN_AS, str(user.pw_gid), str(user.pw_uid)]
            self._prefix = [sys.executable, "-I", "-S", "-c", *code]
            keeper.directory.chmod(0o711)
            os.chown(self.directory, user.pw_uid, user.pw_gid)
            self._programs = _readable(programs, keeper.directory)

    def environment(self) -> dict[str, str]:
        """The environment of its process."""
        return {"LANG": "C.UTF-8", **self._programs.libraries()}


class PostgresServer(UserServer):
    """A PostgreSQL that this process owns.

    Arguments:
        settings: lines of ``postgresql.conf``.
        source: a server of which this is a standby.
        disk: the MiB of :attr:`disk`; 0: there is none.  Needs root.

    Attributes:
        disk: a folder on a small disk, for a tablespace.

    Raises:
        NoBroker: the programs are not to be had.
    """

    name = "postgresql"

    def __init__(
        self,
        keeper: Keeper,
        settings: Sequence[str] = (),
        source: PostgresServer | None = None,
        disk: int = 0,
    ) -> None:
        super().__init__(keeper, find_postgresql(keeper.directory))
        self._data = self.directory / "data"
        self.disk = self.directory / "disk"
        self._disk_size = disk
        if disk:
            self.disk.mkdir()
        if source is None:
            self._initialise()
        else:
            address = ["-h", "127.0.0.1", "-p", str(source.port), "-U", "postgres"]
            self._run(
                "pg_basebackup", *address, "-D", str(self._data), "-R", "--no-sync", "-c", "fast"
            )
        with open(self._data / "postgresql.conf", "a") as file:
            file.write("\n".join([_SETTINGS, *settings, ""]))
        (self._data / "pg_hba.conf").write_text(_ACCESS)

    def _initialise(self) -> None:
        """Make the files of an empty server: copies, as initdb takes half a second of the processor."""
        version = "".join(filter(str.isalnum, self._run("postgres", "--version")))
        owner = self.directory.stat().st_uid
        cached = cache_folder(self.directory) / f"data-of-{version}-{owner}"
        if cached.is_dir():
            run(["cp", "-a", str(cached / "data"), str(self._data)])
            return
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", "-D", str(self._data), *options)
        make(cached, lambda folder: run(["cp", "-a", str(self._data), str(folder / "data")]))

    def _run(self, program: str, *arguments: str) -> str:
        command = [*self._prefix, str(self._programs.server.with_name(program)), *arguments]
        return run(command, cwd=self.folder, env=self._programs.libraries())

    @property
    def url(self) -> str:
        """The address of the database ``postgres``, as its superuser."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def command(self) -> list[str]:
        """The program and its arguments."""
        server = str(self._programs.server)
        command = [*self._prefix, server, "-D", str(self._data), "-p", str(self.port)]
        if self._disk_size:
            owner = str(self._data.stat().st_uid)
            mount = ["sh", "-c", _ON_DISK, "sh", str(self.disk), str(self._disk_size), owner]
            command = ["unshare", "--mount", *mount, *command]
        return command

    def enlarge_disk(self, size: int) -> None:
        """Make :attr:`disk` one of so many MiB."""
        enter = ["nsenter", "-t", str(self._pid), "--mount"]
        run([*enter, "mount", "-o", f"remount,size={size}m", str(self.disk)])

    def promote(self) -> None:
        """Make a standby the primary."""
        self._run("pg_ctl", "promote", "-D", str(self._data))

    def show_certificate(self, certificate: Path, key: Path) -> None:
        """Speak TLS from the next start on."""
        for file, name in ((certificate, "server.crt"), (key, "server.key")):
            copy = self._data / name
            shutil.copyfile(file, copy)
            copy.chmod(0o600)
            owner = self._data.stat()
            os.chown(copy, owner.st_uid, owner.st_gid)
        with open(self._data / "postgresql.conf", "a") as settings:
            settings.write("ssl = on\n")

    def is_ready(self) -> bool:
        """Whether it takes connections now."""
        status = self._data / "postmaster.pid"
        with suppress(OSError):
            lines = status.read_text().splitlines()
            return lines[7:8] in (["ready   "], ["standby "]) and lines[0] == str(self._pid)
        return False

    @property
    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """Stop it in order, and do not wait for its clients.  May switch."""
        if self._process is not None:
            send(self._pid, signal.SIGINT)
            wait_for_end(self._process, self.start_timeout)
        super().stop()

    def kill(self) -> None:
        """End it and its processes at once (SIGKILL).  May switch."""
        if self._process is not None:
            for pid in self._children():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        super().kill()
        # Else it waits for processes that are gone, whose numbers others may have.
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def signal(self, number: signal.Signals) -> None:
        """Send it and its processes, each of which has a session of its own, a signal."""
        super().signal(number)
        for pid in self._children():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _children(self) -> list[int]:
        """Return its processes, one for each connection among them."""
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self._pid)], capture_output=True, text=True
        )
        return [int(each) for each in found.stdout.split()]


def _readable(programs: Programs, directory: Path) -> Programs:
    """Return programs that any user may run: copies in a folder, where the cache is root's alone."""
    root = programs.root
    if root is None or all(each.stat().st_mode & S_IXOTH for each in root.resolve().parents):
        return programs
    copied = directory / root.name
    if not copied.is_dir():
        shutil.copytree(root, copied, symlinks=True, ignore=_UNNEEDED, copy_function=_link)
    return replace(programs, server=copied / programs.server.relative_to(root), root=copied)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another file system
        shutil.copy2(source, target)


def _user() -> Any:
    for name in USERS:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise AssertionError("no user to run PostgreSQL as")
