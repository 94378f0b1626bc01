"""The contract on the second worked example of the plugin author's guide: beanstalkd, started by `ProcessServer`."""

from __future__ import annotations

import pytest
from support.beanstalk import harness

from mqcore.contract.suite import test_contract

__all__ = ["harness", "test_contract"]

pytestmark = pytest.mark.timeout(600)
