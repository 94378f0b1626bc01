"""A backend for Django's tasks: `django.tasks` of Django 6, and `django_tasks` before it.

    INSTALLED_APPS = [..., "mqcore.tasks.django"]
    TASKS = {"default": {"BACKEND": "mqcore.tasks.django.MqcoreBackend"}}
    MQCORE = {"BROKER": "redis://localhost/0"}

`manage.py mqcore_worker` runs what is enqueued. The table of tasks is in Django's own database,
unless `MQCORE` says otherwise.
"""

from mqcore.tasks.django.backend import EagerBackend, MqcoreBackend
from mqcore.tasks.django.functions import MqcoreTask, current_task
from mqcore.tasks.django.settings import MqcoreSettings

__all__ = ["EagerBackend", "MqcoreBackend", "MqcoreSettings", "MqcoreTask", "current_task"]
