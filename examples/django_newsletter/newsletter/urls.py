"""The project's pages."""

from django.urls import path
from subscribers import views

urlpatterns = [path("subscribers", views.subscribe)]
