"""What is known of the queues.

Where it matters that a queue is there, the store is asked; what does not change as long as it is
there (its arguments) is remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from greenconn.transport.virtual import directory as virtual
from greenconn.transport.virtual.declaration import UNDECLARED, Declaration
from greenconn.transport.virtual.owners import is_lost

if TYPE_CHECKING:
    from greenconn.broker.link import StoreLink

__all__ = ["Directory", "Rules"]

#: Queues that a link remembers.
MOST_KNOWN: Final = 100_000


class Rules(NamedTuple):
    """What counts at each publish and delivery.

    Attributes:
        message_ttl: seconds that a message may wait; None: for ever.
        max_priority: the highest; None: all count.
        delivery_limit: how often a message may be delivered; None: no limit.
        is_single_active: only the oldest consumer is served.
    """

    message_ttl: float | None
    max_priority: int | None
    delivery_limit: int | None
    is_single_active: bool


class Directory(virtual.Directory):
    """The queues as one link knows them."""

    __slots__ = ("_known", "_rules")

    _link: StoreLink

    def __init__(self, link: StoreLink) -> None:
        super().__init__()
        self._link = link
        self._known: dict[str, Declaration] = {}
        self._rules: dict[str, Rules] = {}

    def look(self, name: str) -> Declaration:
        """How a queue was declared, as it was read last; read now if it never was.  May switch."""
        declared = self._known.get(name)
        if declared is None:
            declared = self.find(name)
        return UNDECLARED if declared is None else declared

    def is_known(self, name: str) -> bool:
        """Whether nothing need be asked to publish to a queue.  Never switches."""
        return name in self._rules

    def is_there(self, name: str) -> bool:
        """Whether a queue exists, as far as is known here; else the store says.  May switch."""
        return name in self._known or self.find(name) is not None

    def rules(self, name: str) -> Rules:
        """The rules of a queue.  May switch where they are not known."""
        rules = self._rules.get(name)
        if rules is None:
            declared = self.look(name)
            policy = declared.policy
            rules = Rules(
                policy.message_ttl,
                policy.max_priority,
                declared.delivery_limit(self._link.options.delivery_limit),
                policy.is_single_active,
            )
            if name in self._known:
                self._rules[name] = rules
        return rules

    def delivery_limit(self, name: str) -> int | None:
        """How often a message of a queue may be delivered, as far as is known.  Never switches."""
        rules = self._rules.get(name)
        return self._link.options.delivery_limit if rules is None else rules.delivery_limit

    def is_single_active(self, name: str) -> bool:
        """Whether only the oldest consumer of a queue is served.  Never switches."""
        rules = self._rules.get(name)
        return rules is not None and rules.is_single_active

    # -- looking up

    def settle(self) -> None:
        """Wait until what this link did before counts for whoever asks now.  May switch."""
        self._link.catch_up()

    def find(self, name: str) -> Declaration | None:
        """Ask the store for a queue; None when there is none.  May switch."""
        link = self._link
        declared: Declaration | None = link.ask("looking for a queue", link.store.find_queue, name)
        if declared is not None and is_lost(declared.owner):
            self.drop(name)  # nobody need wait for the end of a lease that was ours
            declared = None
        if declared is None:
            self.forget(name)
        else:
            self._remember(name, declared)
        return declared

    def _remember(self, name: str, declared: Declaration) -> None:
        if self._known.get(name) == declared:
            return
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
            self._rules.clear()
        self._known[name] = declared
        self._rules.pop(name, None)

    def forget(self, name: str) -> None:
        """Ask again when it is next needed.  Never switches."""
        self._known.pop(name, None)
        self._rules.pop(name, None)

    # -- declaring

    def _make(self, name: str, declared: Declaration) -> Declaration:
        link = self._link
        kept: Declaration = link.ask("declaring a queue", link.store.make_queue, name, declared)
        self._remember(name, kept)
        return kept

    def declare(self, name: str, declared: Declaration) -> None:
        """Make a queue, or check that the existing one is the same.  May switch.

        Raises:
            ChannelError: see the base class.
        """
        super().declare(name, declared)
        self.rules(name)

    # -- use and its end

    def counts(self, name: str) -> tuple[int, int]:
        """How many messages wait in a queue, and how many consumers it has.  May switch."""
        link = self._link
        size = link.ask("counting messages", link.store.size, name)
        others = link.ask("counting consumers", link.store.others, name)
        feed = link.feeds.get(name)
        return int(size), int(others) + (len(feed.consumers) if feed is not None else 0)

    def purge(self, name: str) -> int:
        """Drop the messages that wait in a queue, and return how many there were.  May switch."""
        return int(self._link.ask("purging a queue", self._link.store.purge, name))

    def drop(self, name: str) -> int:
        """Delete a queue, and return how many messages it had.  May switch."""
        link = self._link
        self.forget(name)
        self._own.discard(name)
        link.state.queue_bindings_delete(name)
        count = link.ask("deleting a queue", link.store.drop_queue, name)
        self.forget(name)
        return int(count)

    def close(self) -> None:
        """Delete the exclusive queues of this link.  May switch."""
        for name in list(self._own):
            self.drop(name)
