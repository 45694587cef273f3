"""SQS beside kombu's transport of the same name, on one moto server: ``python -m benchmarks.sqs``."""
