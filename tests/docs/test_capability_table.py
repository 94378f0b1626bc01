"""The site's capability table is generated: from this build's run and from stored reports."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from mqcore.contract import MemoryHarness, Report, all_cases, run_contract

if TYPE_CHECKING:
    from types import ModuleType

pytest.importorskip("mkdocs", reason="only the session that builds the site has MkDocs")
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def found() -> Report:
    """A report of few cases: the table asks for capabilities."""
    results = run_contract(MemoryHarness, cases=all_cases()[:2])
    capabilities = results[0].capabilities
    assert capabilities is not None
    return Report(results, capabilities, capabilities.server, whole=True)


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: Report) -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "REPORTS", tmp_path)
    monkeypatch.setattr(module, "_report", lambda: found)
    return module


def shown(hooks: ModuleType, name: str) -> str:
    page: Any = SimpleNamespace(file=SimpleNamespace(src_uri=name))
    return str(
        hooks.on_page_markdown(
            (DOCS / name).read_text(encoding="utf-8"), page=page, config=None, files=None
        )
    )


def test_every_report_has_a_column(hooks: ModuleType, found: Report, tmp_path: Path) -> None:
    other = {**found.data(), "backend": "other", "server": "Other 4.0", "capabilities": {}}
    (tmp_path / "other-4.json").write_text(json.dumps(other), encoding="utf-8")
    text = shown(hooks, "semantics.md")
    assert "|  | memory<br>memory, in this process | other<br>Other 4.0 |" in text
    assert "| PRIORITY | native: levels 11 | none |" in text
    assert "<!--" not in text


def test_a_backends_own_page_has_its_own_column_alone(hooks: ModuleType) -> None:
    text = shown(hooks, "backends/memory.md")
    assert "|  | memory<br>memory, in this process |\n" in text
    assert "| EXPIRY | native: sweep yes |" in text


def test_no_capability_is_typed_in_the_semantics() -> None:
    section = (
        (DOCS / "semantics.md").read_text(encoding="utf-8").partition("\n## Capabilities\n")[2]
    )
    assert not [line for line in section.splitlines() if line.startswith("|") and "native" in line]
