"""kombu's own tests, run on greenconn: ``python -m tests.compat.kombu_suite``."""
