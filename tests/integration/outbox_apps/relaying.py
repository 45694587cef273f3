"""A program that runs a relay; says when it has begun."""

from __future__ import annotations

import os
import signal

from gevent import monkey

if os.environ["OUTBOX_PATCHED"] == "1":
    monkey.patch_all()

from sqlalchemy import create_engine

import greenconn
from greenconn.contrib.outbox.sqlalchemy import Outbox
from tests.integration.outbox_apps.database import connect_arguments
from tests.integration.stacks import print_on_signal

DATABASE = os.environ["OUTBOX_DATABASE"]
print_on_signal()
# A shell that starts something in the background has it ignore SIGINT, and its children with it.
signal.signal(signal.SIGINT, signal.default_int_handler)
greenconn.configure(os.environ["OUTBOX_BROKER"])
relay = Outbox().relay(
    create_engine(DATABASE, connect_args=connect_arguments(DATABASE)),
    poll_interval=0.1,
    lease=2.0,
    batch_size=20,
)
print("begun", flush=True)
relay.run()
