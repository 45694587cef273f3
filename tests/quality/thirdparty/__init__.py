"""Programs that others wrote for kombu, on greenconn and on kombu."""
