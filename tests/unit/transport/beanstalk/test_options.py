"""The transport options of beanstalk."""

from __future__ import annotations

import pytest

from greenconn.transport.beanstalk.options import BeanstalkOptions


def test_values_that_are_taken_and_refused() -> None:
    assert BeanstalkOptions().bury_rejected
    assert not BeanstalkOptions(bury_rejected=False).bury_rejected
    with pytest.raises(ValueError, match="bury_rejected must be of type bool"):
        BeanstalkOptions(bury_rejected="no")  # type: ignore[arg-type]
