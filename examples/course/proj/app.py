"""The application: which broker, which store, which modules with tasks."""

import os

from mqcore import App
from mqcore.tasks import Tasks

URL = os.environ.get("MQCORE_URL", "memory://course")
STORE = "sqlite:///course.db" if URL.startswith("amqp") else URL

tasks = Tasks(
    "proj",
    store=STORE,
    include=["proj.tasks"],
    result_ttl=3600,
    queues=["hipri", "lopri"],
)
app = App("proj", tasks=[tasks])
