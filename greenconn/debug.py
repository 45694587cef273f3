"""Debugging of a process that hangs: a report of its connections, pools, consumers and greenlets.

The module has no cost until a dump is requested.  A dump iterates over all objects of the process.
"""

from __future__ import annotations

import gc
import logging
import signal
from collections import Counter
from collections.abc import Iterator
from os.path import join
from types import FrameType
from typing import Final

from gevent import get_hub
from greenlet import getcurrent, greenlet

from greenconn import health
from greenconn.resource import Resource, all_pools
from greenconn.worker.consumer import running_consumers

__all__ = ["dump", "dump_on_signal"]

logger = logging.getLogger("greenconn.debug")

#: Frames of a greenlet that are named, from where it waits outwards.
FRAMES: Final = 6
#: Folders of code that only passes on a wait.
_PASSING: Final = ("/gevent/", "/greenlet/", join("greenconn", "green", ""))
#: Messages in handlers that are named for each consumer.
NAMED: Final = 20
#: Characters of their names that are shown.
LONGEST_NAME: Final = 255


def dump() -> str:
    """Return a human-readable report of the state of this thread.  Never switches.

    The report lists connections with their state; pools with the holder of each resource and the time
    for which it is held; consumers with their statistics and the messages in their handlers; and each
    greenlet with the place where it waits.  It contains no message body, header or password.
    """
    return "\n".join([*_connections(), *_pools(), *_consumers(), *_greenlets()])


def dump_on_signal(number: int = signal.SIGUSR1) -> None:
    """Log the result of :func:`dump` whenever the process receives a signal.

    The report is logged as a warning of the logger ``greenconn.debug``.  This also works while a handler
    blocks the hub, unless the handler is blocked in C code.

    Arguments:
        number: the number of the signal.  The previous signal handler is replaced.

    Raises:
        ValueError: the caller is not in the main thread.
    """
    signal.signal(number, lambda *_: logger.warning("%s", dump()))


def _connections() -> Iterator[str]:
    found = health.check().connections
    yield f"connections: {len(found)}"
    for each in found:
        about = [each.state, f"opened {each.lives} times"]
        about += [f"blocked: {each.blocked}"] if each.blocked else []
        about += [f"lost: {each.lost}"] if each.lost else []
        yield f"  {each.url}: {', '.join(about)}"


def _pools() -> Iterator[str]:
    found = [each for each in all_pools() if _is_in_use(each)]
    yield f"pools in use: {len(found)}"
    for pool in found:
        yield f"  {pool!r}"
        for name, seconds in pool.holders():
            yield f"    held for {seconds:.1f} s by {name}"


def _is_in_use(pool: Resource) -> bool:
    stats = pool.stats()
    return bool(stats["in_use"] or stats["waiting"] or stats["idle"])


def _consumers() -> Iterator[str]:
    found = running_consumers()
    yield f"consumers: {len(found)}"
    for each in found:
        figures = ", ".join(
            f"{name} {value:.1f}" if isinstance(value, float) else f"{name} {value}"
            for name, value in each.stats().items()
            if value and name != "state"
        )
        yield f"  {each.lifecycle.options.name}: {each.state.value}: {figures}"
        begun = [message for message, has_begun in each.lifecycle.dispatcher.unacked() if has_begun]
        for message in begun[:NAMED]:
            name = message.properties.get("message_id") or message.delivery_tag
            yield f"    a handler has message {str(name)[:LONGEST_NAME]}"
        if len(begun) > NAMED:
            yield f"    and {len(begun) - NAMED} more"


def _greenlets() -> Iterator[str]:
    hub, current = get_hub(), getcurrent()
    found: Counter[str] = Counter()
    for each in gc.get_objects():
        # Not isinstance(), which asks a weak proxy whose object may be gone.
        if not issubclass(type(each), greenlet) or each is hub or each.dead:
            continue
        if each is not current and (each.gr_frame is None or not _is_of(each, hub)):
            continue  # it has not begun, or is another thread's
        frame = None if each is current else each.gr_frame
        place = "runs this" if frame is None else _place_of(frame)
        found[f"{getattr(each, 'name', None) or 'a greenlet'}: {place}"] += 1
    yield f"greenlets: {sum(found.values())}"
    for text, count in found.most_common():
        yield f"  {text}" if count == 1 else f"  {count} x {text}"


def _is_of(each: greenlet, hub: greenlet) -> bool:
    """Return whether *each* runs in the thread of *hub*, whose parent is the main greenlet of that."""
    parent: greenlet | None = each
    while parent is not None and parent is not hub and parent is not hub.parent:
        parent = parent.parent
    return parent is not None


def _place_of(frame: FrameType) -> str:
    """Return where a greenlet waits: the innermost frame that says why, and those that called it."""
    places: list[str] = []
    at: FrameType | None = frame
    while at is not None and len(places) < FRAMES:
        code = at.f_code
        if not any(each in code.co_filename for each in _PASSING):
            folder, _, name = code.co_filename.rpartition("/")
            places.append(f"{folder.rpartition('/')[2]}/{name}:{at.f_lineno} {code.co_name}")
        at = at.f_back
    return " < ".join(places) or f"{frame.f_code.co_filename}:{frame.f_lineno}"
