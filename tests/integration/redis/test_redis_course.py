"""The blocks of examples/course, on Redis as broker and store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.course import PROMPT, attend

from mqcore.spi import new_id

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(600)
def test_the_course_on_redis(tmp_path: Path, redis_url: str) -> None:
    attend(tmp_path, f"{redis_url}?prefix=course-{new_id()[:8]}", PROMPT)
