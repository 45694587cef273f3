"""What tests ask of gevent's loop."""

from __future__ import annotations

from typing import Final

import pytest
from gevent import get_hub

IS_DEFAULT: Final = type(get_hub().loop).__module__ == "gevent.libev.corecext"
#: The default loop calls last in a turn what asks for that; the others call it between the rest.
needs_turn_end: Final = pytest.mark.skipif(not IS_DEFAULT, reason="the loop has no priorities")
