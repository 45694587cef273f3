"""Subscribers of the newsletter."""

from django.db import models


class Subscriber(models.Model):
    address = models.EmailField(unique=True)
    is_welcomed = models.BooleanField(default=False)
