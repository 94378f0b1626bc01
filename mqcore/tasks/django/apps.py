"""The Django application that brings the command `mqcore_worker`."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["MqcoreTasksConfig"]


class MqcoreTasksConfig(AppConfig):  # type: ignore[misc]  # a class without annotations
    """It has no models."""

    name = "mqcore.tasks.django"
    label = "mqcore_tasks"
    verbose_name = "mqcore tasks"
