"""The other side of a measurement: ``python -m benchmarks.peers ROLE URL ARGUMENT...``.

It writes ``ready`` when it is, and those that send begin when they read a line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from time import monotonic_ns, sleep

from benchmarks.frames import JSON, Properties, publish
from benchmarks.line import Line
from benchmarks.stage import BODY

#: Seconds between two messages to an idle consumer.
PAUSE = 0.005
#: Messages that are sent at once where there is no rate.
AT_ONCE = 100


def echo(line: Line, queue: str) -> None:
    """Answer each request with its body."""
    line.consume(queue, no_ack=True)
    print("ready", flush=True)
    replies: list[bytes] = []
    while True:
        request = line.delivery()
        properties = Properties.encode(**JSON, correlation_id=request.properties["correlation_id"])
        replies.append(publish(request.properties["reply_to"], request.body, properties))
        if not line.holds_more:
            line.socket.sendall(b"".join(replies))
            replies.clear()


def feed(line: Line, each: str, *queues: str) -> None:
    """Send *each* messages to each queue, in turn."""
    body, properties = json.dumps(BODY).encode(), Properties.encode(**JSON)
    turn = b"".join(publish(queue, body, properties) for queue in queues)
    wait_go()
    for _ in range(int(each)):
        line.socket.sendall(turn)
    _until_killed()


def tick(line: Line, count: str, queue: str) -> None:
    """Send *count* messages that say when they left, with pauses."""
    properties = Properties.encode(**JSON)
    wait_go()
    for _ in range(int(count)):
        sleep(PAUSE)
        line.publish(queue, json.dumps({"sent": monotonic_ns()}).encode(), properties)
    _until_killed()


def stream(line: Line, count: str, queue: str, rate: str) -> None:
    """Send *count* messages that say when they were due, *rate* a second; 0: as fast as possible."""
    properties = Properties.encode(**JSON)
    pause = 1e9 / float(rate) if float(rate) else 0.0
    wait_go()
    began, sent, total = monotonic_ns(), 0, int(count)
    while sent < total:
        now = monotonic_ns()
        due = int((now - began) / pause) + 1 if pause else sent + AT_ONCE
        if due <= sent:
            sleep((began + sent * pause - now) / 1e9)
            continue
        numbers = range(sent, min(due, total))
        times = (began + int(number * pause) if pause else now for number in numbers)
        bodies = (json.dumps({**BODY, "sent": time}).encode() for time in times)
        line.socket.sendall(b"".join(publish(queue, body, properties) for body in bodies))
        sent = numbers.stop
    _until_killed()


def wait_go() -> None:
    """Say that all is ready, and wait for the word to begin."""
    print("ready", flush=True)
    sys.stdin.readline()


def _until_killed() -> None:
    """Closing the connection would not wait for what was sent."""
    sys.stdin.read()


ROLES: dict[str, Callable[..., None]] = {
    "echo": echo,
    "feed": feed,
    "tick": tick,
    "stream": stream,
}


def main() -> None:
    """Play the role that the command line names."""
    role, url, *arguments = sys.argv[1:]
    line = Line(url)
    line.open_channel()
    ROLES[role](line, *arguments)


if __name__ == "__main__":
    main()
