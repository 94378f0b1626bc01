"""The one line in an author's test file: `from mqcore.contract.suite import test_contract, test_model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mqcore.contract.case import Case
    from mqcore.contract.harness import Harness
    from mqcore.contract.pytest_plugin import Contract

__all__ = ["test_contract", "test_model"]


def test_contract(contract_case: Case, harness: Harness, contract: Contract, request: pytest.FixtureRequest) -> None:
    """Run one case of the contract; the plugin makes a test of each."""
    result = contract.run(contract_case, harness, [item for item in request.session.items if _beside(item, request)])
    contract.add(result, harness)
    if result.status == "failed":
        guarantees = " ".join(contract_case.guarantees)
        pytest.fail(f"{guarantees}: {contract_case.text}\n{result.text}", pytrace=False)
    if result.status == "waived":
        pytest.xfail(result.text)
    if result.status != "passed":
        pytest.skip(f"{result.status}: {result.text}")


def _beside(item: pytest.Item, request: pytest.FixtureRequest) -> bool:
    """Whether a test of the run is a case of the same module."""
    return isinstance(item, pytest.Function) and item.module is request.module and "contract_case" in item.fixturenames


def test_model(harness: Harness) -> None:
    """Hold random steps against the model, and one trace against memory; how many, `MQCORE_CONTRACT_EXAMPLES` says."""
    from mqcore.contract.stateful import check_model, compare_with_memory  # noqa: PLC0415 - Hypothesis takes a while to import

    compare_with_memory(harness)
    check_model(lambda: harness)
