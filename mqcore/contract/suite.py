"""For an author's test file: `from mqcore.contract.suite import test_contract, test_model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mqcore.contract.case import Case
    from mqcore.contract.harness import Harness
    from mqcore.contract.pytest_plugin import Contract

__all__ = ["test_contract", "test_model"]


def test_contract(
    contract_case: Case, harness: Harness, contract: Contract, request: pytest.FixtureRequest
) -> None:
    """Run one case of the contract; the pytest plugin makes a test of each case."""
    result = contract.run(
        contract_case, harness, [item for item in request.session.items if _beside(item, request)]
    )
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
    return (
        isinstance(item, pytest.Function)
        and item.module is request.module
        and "contract_case" in item.fixturenames
    )


def test_model(harness: Harness, request: pytest.FixtureRequest) -> None:
    """Compare random steps with the model, and one trace with memory.

    `MQCORE_CONTRACT_EXAMPLES` says how many. With `--mqcore-steps`, do only the steps of a trace
    that failed before.
    """
    from mqcore.contract import stateful  # noqa: PLC0415 - Hypothesis takes a while to import
    from mqcore.contract.kit import ContractError  # noqa: PLC0415 - this module is loaded in every run of an author's tests

    test, steps = f"'{request.node.nodeid}'", request.config.getoption("--mqcore-steps")
    try:
        if steps is not None:
            stateful.replay(harness, steps, test=test)
        else:
            stateful.compare_with_memory(harness, test=test)
            stateful.check_model(lambda: harness, test=test)
    except stateful.StepsError as error:
        pytest.fail(f"--mqcore-steps: {error}", pytrace=False)
    except ContractError as error:
        notes = "\n".join(getattr(error, "__notes__", ()))
        pytest.fail(f"{error}\n{notes}", pytrace=False)
