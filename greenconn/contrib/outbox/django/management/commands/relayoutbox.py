"""``manage.py relayoutbox``: publish the messages of the outbox."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.db import DEFAULT_DB_ALIAS

from greenconn.contrib.django import ProgramCommand
from greenconn.contrib.outbox.django import relay
from greenconn.contrib.outbox.relay import RelayOptions
from greenconn.service.app import App


class Command(ProgramCommand):
    """The command."""

    help = "Publishes what the project has written into its outbox."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options."""
        super().add_arguments(parser)
        defaults = RelayOptions()
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="database (default)")
        parser.add_argument(
            "--poll-interval",
            type=float,
            default=defaults.poll_interval,
            help="seconds after which new rows are looked for (%(default)g)",
        )
        parser.add_argument(
            "--lease",
            type=float,
            default=defaults.lease,
            help="seconds after which others take over from a relay that died (%(default)g)",
        )
        parser.add_argument(
            "--keep",
            type=float,
            default=defaults.keep,
            help="seconds for which published rows are kept (%(default)g)",
        )

    def load(self, **options: Any) -> App:
        """Return an application that only runs a relay."""
        app = App()
        names = ("poll_interval", "lease", "keep")
        app.service(relay(options["database"], **{name: options[name] for name in names}))
        return app
