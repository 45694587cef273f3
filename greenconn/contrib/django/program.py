"""The base of the commands that run a program: its options, processes and signals."""

from __future__ import annotations

import logging
import os
import sys
from argparse import ArgumentParser
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand

from greenconn.service.app import App
from greenconn.service.processes import (
    ProcessManager,
    is_managed,
    parse_address,
    unblock_signals,
)
from greenconn.service.program import Program


class ProgramCommand(BaseCommand):
    """A command that runs an application in processes of its own.

    The processes that it starts are patched for gevent before Django is imported; this one manages them.
    """

    def load(self, **options: Any) -> App:
        """Return the application; called in each process, with the options of the command."""
        raise NotImplementedError

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options of ``greenconn run``."""
        parser.add_argument("-p", "--processes", type=int, default=1, help="processes (1)")
        parser.add_argument(
            "-g",
            "--graceful-timeout",
            type=float,
            default=30.0,
            help="seconds that running handlers have when it is stopped (30)",
        )
        parser.add_argument(
            "--reload", action="store_true", help="restart when a source file changes"
        )
        parser.add_argument(
            "--health",
            type=parse_address,
            metavar="[HOST:]PORT",
            help="answer /health/live and /health/ready there; process n listens at PORT + n",
        )
        parser.add_argument(
            "--stalled-after",
            type=float,
            metavar="SECONDS",
            help="report a consumer that gets nothing for so long, though its queue holds messages",
        )
        parser.add_argument(
            "--no-patch", action="store_true", help="do not patch the standard library for gevent"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run it until a signal ends it."""
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        timeout = options["graceful_timeout"]
        if not is_managed():
            # The directory of manage.py, which the interpreter adds for scripts only.
            paths = [sys.path[0], os.environ.get("PYTHONPATH", "")]
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
            patch = [] if options["no_patch"] else ["-m", "gevent.monkey"]
            command = [sys.executable, *patch, *sys.argv]
            manager = ProcessManager(
                command,
                options["processes"],
                graceful_timeout=timeout,
                health=options["health"],
            )
            sys.exit(manager.run())
        unblock_signals()
        program = Program(
            partial(self.load, **options),
            graceful_timeout=timeout,
            health=options["health"],
            stalled_after=options["stalled_after"],
            reloads=options["reload"],
        )
        sys.exit(program.run())
