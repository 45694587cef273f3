"""The command socket of one link, its key names and its scripts, shared by all parts of the link."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from redis.exceptions import NoScriptError

from greenconn.green.deadline import Deadline
from greenconn.transport.redis.errors import LinkLost, NotRedis
from greenconn.transport.redis.keys import Keys
from greenconn.transport.redis.options import RedisOptions
from greenconn.transport.redis.pipeline import ENDLESS, Pipeline
from greenconn.transport.redis.replies import check_reply
from greenconn.transport.redis.scripts import Script, Scripts
from greenconn.wire.resp import Argument, ErrorReply, pack

__all__ = ["Commands"]

PING: Final = pack("PING")
_TRACK: Final = pack("CLIENT", "TRACKING", "ON")


class Commands:
    """The socket for commands, the names of keys, the scripts and the options of one link.

    Arguments:
        where: the server's URL, password masked, for messages.
        before_call: runs before each call, so that a call sees the effect of what was sent before.  It
            must not switch.

    Attributes:
        is_tracking: the server pushes when an idle queue gets a message.
        lost: why the link is over; None while it is not.
        owner: under which this life holds messages; nobody else has the same.  Known once it is open.
        pipeline: the socket.
        prefix: begins the fields under which messages are held.
        protocol: the version of Redis' protocol, 3 or 2.
    """

    def __init__(
        self, where: str, keys: Keys, options: RedisOptions, before_call: Callable[[], None]
    ) -> None:
        self.where = where
        self.keys = keys
        self.options = options
        self.scripts = Scripts()
        self._before_call = before_call
        self.lost: BaseException | None = None
        self.owner = self.prefix = ""
        self.is_tracking = False
        self.protocol = 3
        self.pipeline: Pipeline

    def begin(self, pipeline: Pipeline, protocol: int, owner: str) -> None:
        """Send commands on *pipeline* from now on.  Never switches."""
        self.pipeline = pipeline
        self.protocol = protocol
        self.owner = owner
        self.prefix = f"gc.{owner}."
        if protocol == 3:
            # Nothing is registered by this alone; reads are, from now on.
            pipeline.post(_TRACK, self._on_tracking)

    def _on_tracking(self, reply: Any) -> None:
        self.is_tracking = reply == b"OK"

    def call(self, command: bytes, deadline: Deadline = ENDLESS, what: str = "") -> Any:
        """Send a command and return its reply; see :meth:`Pipeline.call`.  May switch."""
        self._before_call()
        reply = self.pipeline.call(command, deadline, what)
        self._check_reply(command, reply)
        return reply

    def call_all(
        self, commands: Sequence[bytes], deadline: Deadline = ENDLESS, what: str = ""
    ) -> list[Any]:
        """Send commands and return their replies; see :meth:`Pipeline.call_all`.  May switch."""
        self._before_call()
        replies = self.pipeline.call_all(commands, deadline, what)
        for command, reply in zip(commands, replies, strict=True):
            self._check_reply(command, reply)
        return replies

    def _check_reply(self, command: bytes, reply: Any) -> None:
        try:
            check_reply(command, reply, self.where)
        except NotRedis as exc:
            lost = LinkLost(f"{self.where}: connection lost: {exc}")
            self.pipeline.end(lost)
            raise lost from exc

    def run(self, script: Script, keys: tuple[bytes, ...], *args: Argument, what: str) -> Any:
        """Run a script and return its reply.  May switch.

        Raises:
            Exception: as :meth:`call`.
        """
        try:
            return self.call(self.scripts.call(script, keys, *args), what=what)
        except NoScriptError:
            # Somebody has flushed the scripts: say it with its text.
            self.scripts.forget()
            return self.call(self.scripts.call(script, keys, *args), what=what)

    def post_script(
        self,
        script: Script,
        keys: tuple[bytes, ...],
        *args: Argument,
        done: Callable[[Any], object],
    ) -> None:
        """Post a script; *done* gets its reply, in the reader.  Never switches."""

        def replied(reply: Any) -> None:
            if isinstance(reply, ErrorReply) and reply.code == "NOSCRIPT":
                self.scripts.forget()  # somebody has flushed them
                self.post_script(script, keys, *args, done=done)
            else:
                done(reply)

        self.pipeline.post(self.scripts.call(script, keys, *args), replied)

    def watch(self, pipeline: Pipeline) -> None:
        """Watch from now on whether the server answers on *pipeline*.  Never switches."""
        options = self.options
        timeout = options.socket_timeout or options.reply_timeout
        pipeline.watch(timeout, options.health_check_interval)

    def check_open(self) -> None:
        """Raise unless the link is open.

        Raises:
            LinkLost: with the reason as ``__cause__``.
        """
        if self.lost is not None:
            raise LinkLost(f"connection is closed ({self.lost})") from self.lost
