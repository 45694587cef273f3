"""The stand-in's program: ``python -m tests.brokers.mongodb --port N [--journal FILE]``."""

from __future__ import annotations

import argparse
import contextlib
import socket
import socketserver
import struct
import sys
from pathlib import Path
from typing import Any

from bson import decode, encode

from tests.brokers.mongodb.commands import Commands, Refused
from tests.brokers.mongodb.wire import Request, read_request, reply_to

READY = "the stand-in for MongoDB is ready"
#: Commands that change data.
WRITES = frozenset(
    {"insert", "update", "delete", "findAndModify", "create", "createIndexes", "drop"}
    | {"dropDatabase"}
)
#: What may be said before one has logged in.
OPEN = frozenset({"hello", "ismaster", "saslStart", "saslContinue", "ping", "buildInfo"})


class Journal:
    """The commands that changed something, in a file: a server that is killed finds them again.

    Each is written before it is answered, so what was confirmed survives the end of the process.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = open(path, "ab+") if path else None  # noqa: SIM115 - the process's own

    def replay(self, commands: Commands) -> None:
        """Do again what was done before."""
        if self._file is None:
            return
        self._file.seek(0)
        whole = self._file.read()
        at = 0
        while at + 4 <= len(whole):
            (size,) = struct.unpack_from("<i", whole, at)
            if at + size > len(whole):  # the process was killed while it wrote
                break
            note = decode(whole[at : at + size])
            with contextlib.suppress(Refused):
                commands.run(note["database"], note["command"])
            at += size

    def note(self, database: str, command: dict[str, Any]) -> None:
        """Note a command."""
        if self._file is not None and next(iter(command)) in WRITES:
            self._file.write(encode({"database": database, "command": command}))
            self._file.flush()


class Handler(socketserver.BaseRequestHandler):
    """One connection of a driver."""

    server: Server

    def handle(self) -> None:
        """Answer until the client hangs up."""
        client: socket.socket = self.request
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.is_trusted = self.server.login is None
        with contextlib.suppress(OSError):
            while True:
                request = read_request(client)
                answer = self.answer(request)
                if request.wants_reply:
                    client.sendall(reply_to(request, answer))

    def answer(self, request: Request) -> dict[str, Any]:
        """Do what is asked."""
        name = next(iter(request.command))
        try:
            if name == "saslStart":
                return self.log_in(request.command)
            if not self.is_trusted and name not in OPEN:
                raise Refused(13, f"command {name} requires authentication")
            return self.server.commands.run(request.database, request.command)
        except Refused as exc:
            name = "Unauthorized" if exc.code in (13, 18) else "Refused"
            return {"ok": 0.0, "errmsg": str(exc), "code": exc.code, "codeName": name}
        except Exception as exc:
            print(f"{request.command!r:.300}: {exc!r}", file=sys.stderr, flush=True)
            return {"ok": 0.0, "errmsg": f"the stand-in failed: {exc!r}", "code": 8}

    def log_in(self, command: dict[str, Any]) -> dict[str, Any]:
        """The mechanism PLAIN, which is all that is known here."""
        given = bytes(command["payload"]).decode().split("\0")
        if command["mechanism"] != "PLAIN" or ":".join(given[1:]) != self.server.login:
            raise Refused(18, "Authentication failed.")
        self.is_trusted = True
        return {"conversationId": 1, "done": True, "payload": b"", "ok": 1.0}


class Server(socketserver.ThreadingTCPServer):
    """The listening socket, and what all connections share."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, address: tuple[str, int], commands: Commands, login: str | None) -> None:
        super().__init__(address, Handler)
        self.commands = commands
        self.login = login


def main() -> None:
    """Serve until the end of the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--replica-set")
    parser.add_argument("--login", help="user:password, for the mechanism PLAIN")
    given = parser.parse_args()
    commands = Commands(f"127.0.0.1:{given.port}", given.replica_set)
    journal = Journal(given.journal)
    journal.replay(commands)
    commands.note = journal.note
    with Server(("127.0.0.1", given.port), commands, given.login) as server:
        print(READY, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
