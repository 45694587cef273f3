"""What greenconn costs, beside other Python clients: ``python -m benchmarks``."""
