"""The former name of :mod:`greenconn.broker`."""

raise ImportError("greenconn.transport.leased is renamed: import greenconn.broker instead")
