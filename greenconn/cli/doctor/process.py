"""Checks of this process and its machine."""

from __future__ import annotations

import platform
import resource
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from time import monotonic
from typing import Final

import gevent
from gevent import get_hub, monkey

from greenconn.cli.doctor.finding import Finding, note, ok, warning

__all__ = ["check_process"]

#: Packages whose versions matter.
PACKAGES: Final = ("greenconn", "gevent", "greenlet", "amqp", "redis", "hiredis")
#: Descriptors that a program with a pool or two should be allowed.
DESCRIPTORS: Final = 1024
#: Naps of the hub that are measured, and the seconds of each.
NAPS: Final = 20
NAP: Final = 0.005
#: Seconds that a timer may be late.
LATE: Final = 0.1


def check_process() -> Iterator[Finding]:
    """Check versions, limits and timers.  May switch."""
    found = ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))
    yield ok("versions", f"Python {platform.python_version()}, {found}")
    hub = get_hub()
    patched = "patched by gevent" if monkey.is_module_patched("socket") else "not patched"
    yield ok(
        "gevent", f"{type(hub.loop).__module__.rpartition('.')[2]}, {hub.loop.backend}, {patched}"
    )
    yield _check_descriptors()
    yield _check_timers()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _check_descriptors() -> Finding:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return ok("descriptors", "any number of files and sockets may be open")
    text = f"{allowed:,} files and sockets may be open"
    if allowed < DESCRIPTORS:
        return warning(
            "descriptors", text, "raise the limit (ulimit -n, or LimitNOFILE of systemd)"
        )
    return ok("descriptors", text)


def _check_timers() -> Finding:
    late = 0.0
    for _ in range(NAPS):
        began = monotonic()
        gevent.sleep(NAP)
        late = max(late, monotonic() - began - NAP)
    text = f"late by {late * 1e3:.1f} ms at worst"
    if late > LATE:
        return note("timers", text, "this machine has too little CPU time for its work")
    return ok("timers", text)
