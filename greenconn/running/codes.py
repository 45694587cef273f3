"""Exit codes of a process that runs an application, and what its manager tells it."""

from __future__ import annotations

from typing import Final

__all__ = ["BOOT_FAILED", "FAILED", "INDEX_VARIABLE", "MANAGER_VARIABLE", "RELOAD", "STOPPED"]

#: A signal stopped it.
STOPPED: Final = 0
#: The broker refused a consumer for good, or handlers had to be interrupted.
FAILED: Final = 1
#: The application could not be imported or started: another process could not, either.
BOOT_FAILED: Final = 3
#: A source file changed.
RELOAD: Final = 4

#: The number of the process, from 0, in the environment of each that a manager starts.
INDEX_VARIABLE: Final = "GREENCONN_PROCESS"
#: The process id of the manager.
MANAGER_VARIABLE: Final = "GREENCONN_MANAGER"
