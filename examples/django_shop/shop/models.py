"""Orders and their invoices."""

from django.db import models


class Order(models.Model):
    item = models.CharField(max_length=100)
    address = models.EmailField()


class Invoice(models.Model):
    # Nothing in the database forbids a second one: the consumer writes each once.
    order = models.ForeignKey(Order, on_delete=models.PROTECT)
