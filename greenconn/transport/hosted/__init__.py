"""kombu's own virtual transports, unchanged: their channels put and get, greenconn does the rest.

Named by class path, with kombu installed, e.g. ``transport="kombu.transport.filesystem:Transport"``.
They do their input and output as their library does: in a process that is not monkey-patched they may
block the hub meanwhile.
"""

from greenconn.transport.hosted.transport import hosted

__all__ = ["hosted"]
