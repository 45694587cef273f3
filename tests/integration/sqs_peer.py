"""A web server that answers as SQS does when the test wants it to, in a greenlet of this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from gevent import socket

from tests.fix_peer import Peer, PeerFactory

#: Status and body of an answer.
Answer = tuple[int, bytes]


class Asked:
    """One request."""

    def __init__(self, head: str, body: bytes) -> None:
        first, *lines = head.split("\r\n")
        self.method, self.path, _ = first.split(" ")
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        self.body = body
        self.action = self.headers.get("x-amz-target", "").rpartition(".")[2]

    @property
    def parameters(self) -> Any:
        """Those of SQS."""
        return json.loads(self.body)

    @property
    def access_key(self) -> str:
        """Who signed it."""
        return self.headers["authorization"].partition("Credential=")[2].partition("/")[0]


def error(code: str, status: int = 400, message: str = "as the test wants it") -> Answer:
    """A refusal of SQS."""
    body = {"__type": f"com.amazonaws.sqs#{code}", "message": message}
    return status, json.dumps(body).encode()


class Scripted:
    """Calls *answer* for each request; None: the answer is cut off amid its body."""

    def __init__(self, peer: PeerFactory, answer: Callable[[Asked], Any]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.peer: Peer = peer(self._serve)

    @property
    def url(self) -> str:
        """For a connection."""
        return f"sqs://AKIASCRIPT:no-secret-at-all@127.0.0.1:{self.peer.port}"

    def actions(self, name: str) -> list[Asked]:
        """The requests for one action."""
        return [each for each in self.asked if each.action == name]

    def _serve(self, sock: socket.socket) -> None:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                piece = sock.recv(65536)
                if not piece:
                    return
                data += piece
            head, _, data = data.partition(b"\r\n\r\n")
            asked = Asked(head.decode(), b"")
            length = int(asked.headers.get("content-length", "0"))
            while len(data) < length:
                data += sock.recv(65536)
            asked.body, data = data[:length], data[length:]
            self.asked.append(asked)
            said = self.answer(asked)
            if said is None:
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
                return
            status, body = said if isinstance(said, tuple) else (200, json.dumps(said).encode())
            sock.sendall(
                b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
            )


URL = {"QueueUrl": "http://sqs/1/q"}


def stored(asked: Asked, *failed: dict[str, Any]) -> dict[str, Any]:
    """The answer to a batch of which all but *failed* was taken."""
    ids = {each["Id"] for each in failed}
    taken = [each for each in asked.parameters["Entries"] if each["Id"] not in ids]
    return {"Successful": [{"Id": each["Id"]} for each in taken], "Failed": list(failed)}


def usual(asked: Asked) -> Any:
    """What a queue without messages says."""
    if asked.action in ("GetQueueUrl", "CreateQueue"):
        return URL
    return stored(asked) if asked.action.endswith("Batch") else {}
