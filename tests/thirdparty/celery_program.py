"""pytest for Celery's integration tests, in a process that is patched for gevent.

``celery_program.py WAY ARGUMENTS``; the rest are pytest's.
"""

from __future__ import annotations

import sys

from gevent import monkey

monkey.patch_all()

WAY = sys.argv[1]

if WAY == "install_as_kombu":
    from greenconn.compat import install_as_kombu

    install_as_kombu()
elif WAY == "contrib.celery":
    import greenconn.contrib.celery  # noqa: F401 - gives kombu the schemes

import pytest  # noqa: E402 - what it imports is chosen above

if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[2:]))
