"""kombu's own virtual transports, run as they are: their channels put and get, we do the rest.

Named by class path, with kombu installed, e.g. ``transport="kombu.transport.filesystem:Transport"``.
They do their input and output as their library does: in a process that is not monkey-patched they may
block the hub meanwhile.
"""

from greenconn.transport.hosted.transport import hosted

__all__ = ["hosted"]
