"""Private brokers for the tests: RabbitMQ and Redis on free ports of the loopback interface.

``python -m tests.brokers`` starts one of each and prints their addresses.
"""
