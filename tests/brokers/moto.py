"""A stand-in for AWS' SQS, SNS and STS: moto's server in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import sys

from tests.brokers.keeper import Keeper
from tests.brokers.packages import NoBroker
from tests.brokers.server import Server

#: What it signs with is not checked.
ACCESS_KEY, SECRET_KEY = "AKIATESTING", "no-secret-at-all"
#: Serves over connections that are kept, as AWS does; moto's own server closes each after one answer.
#: A request whose head was cut is none: gevent's server would take what has come of it for the whole,
#: and without its length it would have no body, and name no queue.
#: At each request moto asks the clock twice for every message in the queue, so it gets a quick one.
PROGRAM = """
from gevent import monkey
monkey.patch_all()
import socket, sys, time
from gevent.pywsgi import WSGIHandler, WSGIServer, headers_factory
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.sqs import models

class Head:
    def __init__(self, file):
        self.file = file
    def readline(self, *limit):
        line = self.file.readline(*limit)
        if not line.endswith(b"\\n"):
            raise ValueError("the head has no end")
        return line

class Handler(WSGIHandler):
    MessageClass = staticmethod(lambda file, *more: headers_factory(Head(file)))

slow = models.unix_time_millis
models.unix_time_millis = lambda at=None: time.time() * 1000 if at is None else slow(at)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=512)
listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
application = DomainDispatcherApplication(create_backend_app)
WSGIServer(listener, application, log=None, handler_class=Handler).serve_forever()
"""


class MotoServer(Server):
    """A moto server that this process owns; what it knows is in its memory only.

    Raises:
        NoBroker: moto's server is not installed.
    """

    name = "moto"
    start_timeout = 60.0

    def __init__(self, keeper: Keeper) -> None:
        if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
            raise NoBroker("moto and flask are not installed")
        super().__init__(keeper)

    @property
    def endpoint(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The address of its SQS."""
        return f"sqs://{ACCESS_KEY}:{SECRET_KEY}@127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """The program and its arguments."""
        return [sys.executable, "-c", PROGRAM, str(self.port)]

    def environment(self) -> dict[str, str]:
        """The environment of its process: nobody's own settings for AWS."""
        return {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }

    def stop(self) -> None:
        """Stop it; there is nothing that it had to put in order.  May switch."""
        self.kill()
