"""The contract on beanstalkd, the plugin author's guide's second example, by `ProcessServer`."""

from __future__ import annotations

import pytest
from support.beanstalk import harness

from mqcore.contract.suite import test_contract

__all__ = ["harness", "test_contract"]

pytestmark = pytest.mark.timeout(600)
