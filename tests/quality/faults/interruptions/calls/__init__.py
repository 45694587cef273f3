"""The public calls, in groups; each of the modules enters its own."""

from tests.quality.faults.interruptions.calls import (  # noqa: F401 - for what they enter
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
from tests.quality.faults.interruptions.scene import CALLS

__all__ = ["CALLS"]
