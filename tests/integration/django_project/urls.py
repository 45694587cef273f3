"""The project's pages."""

from __future__ import annotations

from django.urls import path
from letters import views

urlpatterns = [
    path("letters", views.letters),
    path("carrot", views.carrot),
    path("kombu", views.kombu),
]
