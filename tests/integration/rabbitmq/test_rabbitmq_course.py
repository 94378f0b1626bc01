"""The blocks of examples/course, on RabbitMQ with results in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.course import PROMPT, attend

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(600)
def test_the_course_on_rabbitmq(tmp_path: Path, rabbitmq_url: str) -> None:
    attend(tmp_path, rabbitmq_url, PROMPT)
