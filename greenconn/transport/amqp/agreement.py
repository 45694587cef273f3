"""What both sides of a connection agree on before it is open, on the amqp package.

``amqp.Connection`` knows the steps (start, secure, tune, open); here are the answers that differ.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import amqp
from amqp import spec

from greenconn._version import __version__
from greenconn.exceptions import FrameError
from greenconn.identity import program_name
from greenconn.options import BROKER_HEARTBEAT, AmqpOptions
from greenconn.transport.amqp.handshake import Handshake
from greenconn.wire.amqp import FRAME_MIN

__all__ = ["Agreement"]


class Agreement(amqp.Connection):
    """The side of a connection that amqp's handshake sees.

    Arguments:
        where: host and port, for amqp's own texts.
        userid, password, virtual_host: the login; with ``login_method='EXTERNAL'`` no password is sent.
        heartbeat: seconds; ``BROKER_HEARTBEAT`` takes the broker's value, 0 is off.
        options: see :class:`~greenconn.options.AmqpOptions`.
    """

    library_properties = {
        "product": "greenconn",
        "product_version": __version__,
        "platform": "Python",
        "information": "gevent messaging client",
    }

    def __init__(
        self,
        where: str,
        *,
        userid: str | None,
        password: str | None,
        virtual_host: str,
        login_method: str | None,
        heartbeat: float,
        options: AmqpOptions,
    ) -> None:
        properties = {"connection_name": options.connection_name or program_name()}
        super().__init__(
            host=where,
            userid=userid,
            password=password,
            login_method=login_method,
            login_response=options.login_response,
            authentication=options.authentication,
            virtual_host=virtual_host,
            locale=options.locale,
            client_properties={**properties, **(options.client_properties or {})},
            channel_max=options.channel_max,
            frame_max=options.frame_max,
            heartbeat=min(ceil(heartbeat or 0), 65535),  # whole seconds on the wire
            confirm_publish=options.confirm_publish,
        )
        if options.frame_max == 0:
            self.frame_max = 0  # which amqp takes for "not given"
        self.options = options
        self.handshake = Handshake()
        self._takes_brokers_heartbeat = heartbeat is BROKER_HEARTBEAT

    def _setup_listeners(self) -> None:
        self._callbacks.update(
            {
                spec.Connection.Start: self._on_start,
                spec.Connection.Secure: self._on_secure,
                spec.Connection.Tune: self._on_tune,
                spec.Connection.OpenOk: self._on_open_ok,
            }
        )

    def _on_tune(self, channel_max: int, frame_max: int, server_heartbeat: int) -> None:
        """Agree on the smaller of both sides' limits; 0 is no limit."""
        if self._takes_brokers_heartbeat:
            self.client_heartbeat = server_heartbeat
        if 0 < frame_max < FRAME_MIN:
            raise FrameError(f"frames of {frame_max} bytes offered; AMQP asks for {FRAME_MIN}")
        super()._on_tune(
            min(channel_max or 65535, self.channel_max),
            _smaller(frame_max, self.frame_max),
            server_heartbeat,
        )

    def send_method(
        self,
        sig: tuple[int, int],
        format: str | None = None,
        args: Any = None,
        content: Any = None,
        wait: Any = None,
        callback: Any = None,
        returns_tuple: bool = False,
    ) -> None:
        """Answer a method of the handshake.  Never switches, waits for nothing."""
        self.handshake.add(sig, format, args)
        if callback is not None:
            callback()


def _smaller(theirs: int, ours: int) -> int:
    """The smaller of two limits of which 0 is none."""
    return min(theirs, ours) if theirs and ours else theirs or ours
