"""A process without clients that speaks to all of them: ``python announce.py 'closing at six'``."""

from __future__ import annotations

import os
import sys

from greenconn.contrib.socketio import Manager


def main() -> None:
    manager = Manager(write_only=True)
    manager.emit("said", {"text": sys.argv[1], "worker": os.getpid()})


if __name__ == "__main__":
    main()
