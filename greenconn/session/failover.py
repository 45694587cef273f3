"""Which broker comes next when one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import cycle
from typing import Any, Final

from greenconn.url import mask_secrets

__all__ = ["STRATEGIES", "Failover", "shufflecycle"]

Strategy = Callable[[list[str]], Iterator[str]]


def shufflecycle(it: Iterable[str]) -> Iterator[str]:
    """Yield the members of *it* for ever, in a new random order in each round."""
    import random  # for this strategy only

    members = list(it)
    while members:
        random.shuffle(members)
        yield from members


#: Strategies by name.
STRATEGIES: Final[Mapping[str, Strategy]] = {"round-robin": cycle, "shuffle": shufflecycle}


class Failover:
    """The brokers of a connection, and the order in which they are tried.

    Arguments:
        addresses: URLs or host names, the one that is tried first at the front; fewer than two
            means that there is nothing to fail over to.
        strategy: a name in *strategies*, a function that takes the list and gives an iterator, or
            an iterator of addresses.
        strategies: names and functions.

    Raises:
        ValueError: the strategy's name is not known.
    """

    def __init__(
        self, addresses: list[str], strategy: Any = None, strategies: Mapping[str, Any] = STRATEGIES
    ) -> None:
        self.addresses = addresses
        #: As it was given, for ``info`` and clones.
        self.given = strategy or "round-robin"
        #: What it stands for.
        # (A class may have strategies of its own that lack kombu's.)
        named = {**STRATEGIES, **strategies}
        self.strategy: Any = named.get(self.given) if isinstance(self.given, str) else None
        if self.strategy is None:
            if isinstance(self.given, str):
                raise ValueError(
                    f"unknown failover_strategy {self.given!r}: it is one of "
                    f"{', '.join(sorted(named))}, a function of a list, or an iterator"
                )
            self.strategy = self.given
        #: Gives the next address; None where there is only one.
        self.cycle: Iterator[str] | None = None
        if addresses:
            self.cycle = self._begin()
            next(self.cycle, None)  # the first is where the connection is already

    @property
    def hosts(self) -> int:
        """How many brokers a round has."""
        return len(self.addresses) or 1

    def next(self) -> str | None:
        """The address to try next; None where there is nothing to fail over to."""
        if self.cycle is None:
            return None
        address = next(self.cycle, None)
        if address is None:
            # A strategy that ended begins again.
            self.cycle = self._begin()
            address = next(self.cycle, None)
        return address

    def skip_to(self, address: str) -> None:
        """Go on behind *address* if it comes within a round."""
        if self.addresses and address != self.addresses[0]:
            for _ in range(self.hosts - 1):
                if self.next() == address:
                    return

    def completes_cycle(self, retries: int) -> bool:
        """Whether a round is over after the first try and *retries* more."""
        return (retries + 1) % self.hosts == 0

    def _begin(self) -> Iterator[str]:
        made = self.strategy(list(self.addresses)) if callable(self.strategy) else self.strategy
        return iter(made)

    def __repr__(self) -> str:
        return f"<Failover {mask_secrets(';'.join(self.addresses))}: {self.given!r}>"
