"""Debugging of a process that hangs: its connections, pools, consumers and greenlets, and late patching.

The module has no cost until a dump is requested.  A dump iterates over all objects of the process.
"""

from __future__ import annotations

import gc
import logging
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from os.path import join
from types import FrameType
from typing import Any, Final, NamedTuple

from gevent import get_hub, monkey
from greenlet import getcurrent, greenlet

from greenconn import health
from greenconn.resource import Resource, all_pools
from greenconn.worker.consumer import running_consumers

__all__ = ["Unpatched", "dump", "dump_on_signal", "find_unpatched"]

logger = logging.getLogger("greenconn.debug")

#: Frames of a greenlet that are named, from where it waits outwards.
FRAMES: Final = 6
#: Folders of code that only passes on a wait.
_PASSING: Final = ("/gevent/", "/greenlet/", join("greenconn", "green", ""))
#: Messages in handlers that are named for each consumer.
NAMED: Final = 20
#: Characters of their names that are shown.
LONGEST_NAME: Final = 255

_BLOCKS_NETWORK: Final = "its connections block all greenlets"
_BLOCKS_TLS: Final = "its TLS connections block all greenlets, or fail with RecursionError"
_BLOCKS_WAITS: Final = "its waits for sockets block all greenlets"
_BLOCKS_LOCKS: Final = "a greenlet that waits for one of its locks blocks all others, too"
_SHARES_LOCALS: Final = "greenlets share what it keeps for each thread"
_BLOCKS_CHILDREN: Final = "its waits for child processes block all greenlets"
#: Originals that work no more once they are held elsewhere -> what that breaks.  The others, such as
#: ``threading.Thread``, call what is patched.
_BREAKS: Final[Mapping[tuple[str, str], str]] = {
    **{
        ("socket", name): _BLOCKS_NETWORK
        for name in ("socket", "SocketType", "getaddrinfo", "gethostbyname", "gethostbyaddr")
    },
    **{("ssl", name): _BLOCKS_TLS for name in ("SSLContext", "SSLSocket")},
    **{("select", name): _BLOCKS_WAITS for name in ("epoll", "kqueue", "poll", "select")},
    **{
        ("selectors", name): _BLOCKS_WAITS
        for name in ("DefaultSelector", "EpollSelector", "KqueueSelector", "PollSelector")
    },
    ("time", "sleep"): "its pauses block all greenlets",
    ("threading", "Lock"): _BLOCKS_LOCKS,
    ("_thread", "allocate_lock"): _BLOCKS_LOCKS,
    ("_thread", "LockType"): _BLOCKS_LOCKS,
    ("threading", "_CRLock"): _BLOCKS_LOCKS,
    ("threading", "local"): _SHARES_LOCALS,
    ("threading", "get_ident"): _SHARES_LOCALS,
    ("queue", "SimpleQueue"): "its queues block all greenlets",
    ("subprocess", "Popen"): _BLOCKS_CHILDREN,
    ("os", "waitpid"): _BLOCKS_CHILDREN,
}
#: Packages that work whenever the process is patched.
_SAFE: Final = sys.stdlib_module_names | {"gevent", "greenconn", "greenlet"}


class Unpatched(NamedTuple):
    """A module that was imported before the process was monkey-patched, and holds what was replaced.

    Attributes:
        module: its name.
        original: what it holds, such as ``"ssl.SSLContext"``.
        effect: what that breaks.
    """

    module: str
    original: str
    effect: str


def find_unpatched() -> list[Unpatched]:
    """Return the modules that hold functions, classes or locks that gevent has replaced since.

    Never switches.  Empty for a process that is not patched, or that was patched before they were
    imported.  Left out are the standard library, and modules that have ``gevent.monkey.get_original``,
    and so have asked for the originals.
    """
    originals: dict[int, tuple[str, str]] = {}
    classes: dict[type, tuple[str, str]] = {}
    for (module, name), _ in _BREAKS.items():
        if module not in sys.modules:
            continue
        original: Any = None
        with suppress(AttributeError):  # this platform has none
            original = monkey.get_original(module, name)
        if original is None or original is getattr(sys.modules[module], name, None):
            continue
        originals.setdefault(id(original), (module, name))
        if isinstance(original, type):
            classes.setdefault(original, (module, name))
    found: dict[Unpatched, None] = {}
    if originals:
        if monkey.is_module_patched("threading"):
            lock = monkey.get_original("_thread", "allocate_lock")()
            classes[type(lock)] = ("threading", "Lock")
        for module, namespace in _namespaces():
            for value in namespace:
                key = originals.get(id(value)) or _class_of(value, classes, module)
                if key is not None:
                    name = ".".join(key).replace("_CRLock", "RLock")
                    found[Unpatched(module, name, _BREAKS[key])] = None
    return list(found)


def _namespaces() -> Iterator[tuple[str, list[object]]]:
    """Yield each module with the values of its globals and of its classes' attributes."""
    for name, module in list(sys.modules.items()):
        # Some modules are objects of a class of their own, which import what they are asked for.
        namespace = getattr(module, "__dict__", None)
        if name.partition(".")[0] in _SAFE or not isinstance(namespace, dict):
            continue
        values = list(namespace.values())
        if any(each is monkey.get_original for each in values):
            continue
        if namespace.get("__name__") != name:
            continue  # another name of a module
        for each in list(values):
            # Not isinstance(), which asks a proxy whose object may not be there.
            if issubclass(type(each), type) and each.__module__ == name:
                values += vars(each).values()
        yield name, values


def _class_of(
    value: object, classes: Mapping[type, tuple[str, str]], module: str
) -> tuple[str, str] | None:
    """Return the replaced class that *value* is an instance of, or that *module* has a subclass of."""
    is_class = issubclass(type(value), type)
    cls: Any = value if is_class else type(value)
    if is_class and cls.__module__ != module:
        return None
    for base in cls.__mro__:
        key = classes.get(base)
        if key is not None:
            # gevent's class may be a subclass of the one that it replaces.
            replacement = getattr(sys.modules.get(key[0]), key[1], None)
            is_patched = isinstance(replacement, type) and issubclass(cls, replacement)
            return None if is_patched else key
    return None


def dump() -> str:
    """Return a human-readable report of the state of this thread.  Never switches.

    The report lists connections with their state; pools with the holder of each resource and the time
    for which it is held; consumers with their statistics and the messages in their handlers; each
    greenlet with the place where it waits; and what :func:`find_unpatched` returns.  It contains no
    message body, header or password.
    """
    return "\n".join([*_connections(), *_pools(), *_consumers(), *_greenlets(), *_late_patches()])


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
        place = "runs this" if frame is None else " < ".join(places_of(frame))
        found[f"{getattr(each, 'name', None) or 'a greenlet'}: {place}"] += 1
    yield f"greenlets: {sum(found.values())}"
    for text, count in found.most_common():
        yield f"  {text}" if count == 1 else f"  {count} x {text}"


def _late_patches() -> Iterator[str]:
    found = find_unpatched()
    if found:
        yield f"imported before the monkey patch: {len({each.module for each in found})} modules"
        for each in found:
            yield f"  {each.module} has {each.original}: {each.effect}"


def _is_of(each: greenlet, hub: greenlet) -> bool:
    """Return whether *each* runs in the thread of *hub*, whose parent is the main greenlet of that."""
    parent: greenlet | None = each
    while parent is not None and parent is not hub and parent is not hub.parent:
        parent = parent.parent
    return parent is not None


def places_of(frame: FrameType) -> list[str]:
    """Return where a greenlet waits: the innermost frame that says why, and those that called it."""
    places: list[str] = []
    at: FrameType | None = frame
    while at is not None and len(places) < FRAMES:
        code = at.f_code
        if not any(each in code.co_filename for each in _PASSING):
            folder, _, name = code.co_filename.rpartition("/")
            places.append(f"{folder.rpartition('/')[2]}/{name}:{at.f_lineno} {code.co_name}")
        at = at.f_back
    return places or [f"{frame.f_code.co_filename}:{frame.f_lineno}"]
