"""The settings of Django's tests, and those of mqcore."""

from __future__ import annotations

import os

DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3"},
    "other": {"ENGINE": "django.db.backends.sqlite3"},
}
SECRET_KEY = "not a secret, the tests have no sessions"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
USE_TZ = False
TEST_RUNNER = "suite_runner.Runner"

STORE = os.environ["MQCORE_SUITE_STORE"]
BROKER = "memory://suite" if STORE.startswith("memory:") else STORE
MQCORE = {"BROKER": BROKER, "STORE": STORE}
