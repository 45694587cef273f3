"""carrot's modules, for programs of its days: ``greenconn.compat.carrot.messaging`` and others.

Names, arguments and defaults are carrot 0.10's.  What it did over amqplib and stompy is done over the
transports of greenconn.  For code that cannot be edited see
:func:`~greenconn.compat.install_as_carrot`.
"""

from __future__ import annotations

from typing import Final

__all__ = ["VERSION", "__version__"]

#: The carrot whose API this is.
VERSION: Final = (0, 10, 7)
__version__ = "0.10.7"
