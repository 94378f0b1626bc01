"""Containers on a machine where no Docker engine runs."""

import gc
import warnings
from pathlib import Path

import pytest

from mqcore.contract.brokers.catalogue import find
from mqcore.contract.brokers.docker import DockerServer
from mqcore.contract.brokers.server import BrokerUnavailable

pytest.importorskip("testcontainers")


def test_an_engine_that_does_not_run_leaves_no_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket left over would fail an innocent test, at some garbage collection."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'nobody.sock'}")
    gc.collect()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(BrokerUnavailable):
            DockerServer(find("redis")[0]).open()
        gc.collect()

    assert [str(one.message) for one in caught if one.category is ResourceWarning] == []
