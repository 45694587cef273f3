"""A client of the chat, ``chat_client.py PORT``: it says each line of its input and prints events."""

from __future__ import annotations

import sys
from typing import Any

from gevent import monkey

monkey.patch_all()

import socketio  # noqa: E402 - what it uses is patched first
from gevent.fileobject import FileObject  # noqa: E402

client = socketio.Client(reconnection_delay=0.1, reconnection_delay_max=1)


@client.on("welcome")  # type: ignore[untyped-decorator, unused-ignore]
def welcome(event: dict[str, Any]) -> None:
    print("worker", event["worker"], flush=True)


@client.on("said")  # type: ignore[untyped-decorator, unused-ignore]
def said(event: dict[str, Any]) -> None:
    print("said", event["text"], flush=True)


def main() -> None:
    client.connect(f"http://127.0.0.1:{sys.argv[1]}", transports=["websocket"], wait_timeout=60)
    for line in FileObject(sys.stdin.fileno(), "r"):
        print("sent", client.call("say", line.strip(), timeout=60), flush=True)
    client.disconnect()


if __name__ == "__main__":
    main()
