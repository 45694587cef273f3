"""pytest for Celery's integration tests, in a process that is patched for gevent.

``celery_program.py WAY RESULTS ARGUMENTS``: each test that passed or failed is a line in the file
RESULTS; the other arguments are pytest's.
"""

from __future__ import annotations

import sys

from gevent import monkey

monkey.patch_all()

WAY, RESULTS = sys.argv[1:3]

if WAY == "install_as_kombu":
    from greenconn.compat import install_as_kombu

    install_as_kombu()
elif WAY == "contrib":
    import greenconn.contrib.celery  # noqa: F401 - gives kombu the schemes

import pytest  # noqa: E402 - what it imports is chosen above

from tests.quality.thirdparty.results import Results  # noqa: E402

if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[3:], plugins=[Results(RESULTS)]))
