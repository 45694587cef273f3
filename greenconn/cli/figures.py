"""Resources of this process, read from the system: sockets, threads, CPU time, memory."""

from __future__ import annotations

import os
import resource
import sys

__all__ = ["cpu_seconds", "memory", "peak_memory", "sockets", "threads"]


def sockets() -> int | None:
    """Sockets that are open; None where the system does not tell."""
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return None
    count = 0
    for name in names:
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            continue  # the descriptor of the listing itself
    return count


def threads() -> int:
    """Threads of the process; where the system does not tell, those that run Python code."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return len(sys._current_frames())


def cpu_seconds() -> float:
    """User and system time so far, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory() -> int:
    """Resident size now, in bytes; where the system does not tell, the largest so far."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return peak_memory()


def peak_memory() -> int:
    """Largest resident size so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
