"""kombu's own unit tests, run on greenconn: ``python -m tests.compat.kombu_suite``."""
