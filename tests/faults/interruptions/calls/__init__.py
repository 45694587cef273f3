"""The public calls, in groups; each of the modules enters its own."""

from tests.faults.interruptions.calls import (  # noqa: F401 - for what they enter
    channels,
    common,
    connecting,
    consuming,
    entities,
    pooling,
    publishing,
    recovering,
    remote,
    simple,
    spawning,
)
from tests.faults.interruptions.scene import CALLS

__all__ = ["CALLS"]
