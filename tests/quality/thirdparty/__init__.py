"""Programs that others wrote for kombu, on greenconn and on kombu: ``python -m tests.quality.thirdparty``."""
