"""The former name of :mod:`greenconn.broker`."""

raise ImportError("greenconn.transport.leased was renamed: import greenconn.broker instead")
