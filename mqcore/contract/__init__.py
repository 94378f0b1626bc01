"""The contract kit: tests that a backend keeps what mqcore promises.

An author writes a `Harness` and one line in a test file:

    from mqcore.contract.suite import test_contract

    @pytest.fixture
    def harness() -> Harness:
        return UrlHarness("acme://127.0.0.1:7777")

or runs `mqcore contract run acme://127.0.0.1:7777`. Each case names the guarantee that it tests.
The report says what was shown, what failed and what was left out. Only a whole run has a badge.
"""

from mqcore.contract.case import Case, all_cases
from mqcore.contract.harness import Harness, MemoryHarness, UrlHarness
from mqcore.contract.kit import ContractError, Kit, NotShown
from mqcore.contract.report import Report
from mqcore.contract.run import Result, Waiver, run_case, run_contract

__all__ = [
    "Case",
    "ContractError",
    "Harness",
    "Kit",
    "MemoryHarness",
    "NotShown",
    "Report",
    "Result",
    "UrlHarness",
    "Waiver",
    "all_cases",
    "run_case",
    "run_contract",
]
