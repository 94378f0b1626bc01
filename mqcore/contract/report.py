"""What a run has shown: as JSON, as Markdown, and as a badge.

Only a *whole* run is a proof. Where cases were left out, the report is *partial* and has no badge.
The documentation's capability table is made from these reports.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from mqcore.contract.table import cell, limits_in_words
from mqcore.rules.capabilities import Capabilities, Capability

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.contract.run import Result, Waiver

__all__ = ["Report"]

_STATUSES = ("passed", "failed", "waived", "not applicable", "not shown")


@dataclass(frozen=True)
class Report:
    """The results of one run.

    `whole` is False when cases were deselected. `server` is the server's name.
    """

    results: Sequence[Result]
    capabilities: Capabilities
    server: str
    whole: bool
    waivers: Sequence[Waiver] = ()

    @property
    def ok(self) -> bool:
        """Whether no case failed. A partial run can be ok, and is still not a proof."""
        return not any(result.status == "failed" for result in self.results)

    @property
    def verdict(self) -> str:
        """`passed`, `failed` or `partial`."""
        if not self.ok:
            return "failed"
        return "passed" if self.whole else "partial"

    def counts(self, profile: str | None = None) -> Counter[str]:
        """The number of cases by status, for one profile or all."""
        return Counter(
            result.status for result in self.results if profile in (None, result.case.profile)
        )

    @property
    def repeated(self) -> list[Result]:
        """The cases that passed when they were tried again: the machine stood still before."""
        return [one for one in self.results if one.repeated and one.status == "passed"]

    def data(self) -> dict[str, Any]:
        """Everything, as plain data for JSON."""
        return {
            "format": 1,
            "mqcore": version("mqcore"),
            "verdict": self.verdict,
            "backend": self.capabilities.backend,
            "server": self.server,
            "durability": self.capabilities.durability.word,
            "capabilities": {
                capability.name: {
                    "level": self.capabilities[capability].level.value,
                    "limits": dict(self.capabilities[capability].limits),
                }
                for capability in Capability
            },
            "counts": dict(self.counts()),
            "measured": {
                name: value for result in self.results for name, value in result.measured.items()
            },
            "waivers": [{"case": waiver.case, "reason": waiver.reason} for waiver in self.waivers],
            "cases": [
                {
                    "name": result.case.name,
                    "guarantees": list(result.case.guarantees),
                    "ids": list(result.case.ids),
                    "status": result.status,
                    "text": result.text,
                    "seconds": round(result.seconds, 4),
                    **({"repeated": list(result.repeated)} if result.repeated else {}),
                }
                for result in self.results
            ],
        }

    def json(self) -> str:
        """The data as JSON text."""
        return json.dumps(self.data(), indent=1, ensure_ascii=False)

    def markdown(self) -> str:
        """A page with verdict, capabilities, counts by profile, failures, and every case."""
        counts = self.counts()
        lines = [
            f"# Contract report: {self.capabilities.backend}",
            "",
            f"**{self.verdict}** · {self.server} · durability "
            f"*{self.capabilities.durability.word}* · "
            + ", ".join(f"{counts[status]} {status}" for status in _STATUSES if counts[status]),
            "",
            "| capability | level | limits |",
            "|---|---|---|",
        ]

        for capability in Capability:
            support = self.capabilities[capability]
            limits = cell(limits_in_words(support.limits))
            lines.append(f"| {capability.name} | {support.level.value} | {limits} |")

        lines += [
            "",
            "| profile | " + " | ".join(_STATUSES) + " |",
            "|---" * (len(_STATUSES) + 1) + "|",
        ]

        for profile in dict.fromkeys(result.case.profile for result in self.results):
            counts_of_profile = self.counts(profile)
            lines.append(
                f"| {profile} | "
                + " | ".join(str(counts_of_profile[status]) for status in _STATUSES)
                + " |"
            )

        measured = self.data()["measured"]
        if measured:
            lines += ["", "| measured | |", "|---|---|"]
            lines += [f"| {name} | {value:.4g} |" for name, value in measured.items()]

        for status, title in (
            ("failed", "Failed"),
            ("waived", "Waived"),
            ("not shown", "Not shown"),
        ):
            some = [result for result in self.results if result.status == status]
            if some:
                lines += ["", f"## {title}", ""]
                lines += [_told(result) for result in some]

        if self.repeated:
            lines += ["", "## Passed when tried again", ""]
            lines += [_told(replace(one, text="\n".join(one.repeated))) for one in self.repeated]

        lines += ["", "## Every case"]
        for profile in dict.fromkeys(result.case.profile for result in self.results):
            lines += ["", f"### {profile}", "", "| case | of | |", "|---|---|---|"]
            lines += [_row(result) for result in self.results if result.case.profile == profile]

        return "\n".join(lines) + "\n"

    def badge(self) -> str | None:
        """An SVG for a README; None unless the run was whole."""
        if not self.whole:
            return None
        text = (
            f"{self.counts()['passed']} passed" if self.ok else f"{self.counts()['failed']} failed"
        )
        return _BADGE.format(
            text=text, color="#2a7f4f" if self.ok else "#b03030", backend=self.capabilities.backend
        )


def _told(result: Result) -> str:
    guarantees = " ".join(result.case.guarantees)
    text = "\n".join(f"    {line}" for line in result.text.splitlines())
    return f"**{result.case.name}** ({guarantees}): {result.case.text}\n\n{text}\n"


def _row(result: Result) -> str:
    """Return the table row of a case, with the reason when it is not applicable."""
    status = (
        f"{result.status}: {result.text}" if result.status == "not applicable" else result.status
    )
    name = result.case.name.partition(".")[2]
    return f"| {name} | {' '.join(result.case.guarantees)} | {cell(status)} |"


_BADGE = """<svg xmlns="http://www.w3.org/2000/svg" width="210" height="20" role="img"
 aria-label="mqcore contract: {text}">
<rect width="120" height="20" fill="#444"/><rect x="120" width="90" height="20" fill="{color}"/>
<g fill="#fff" font-family="Verdana,sans-serif" font-size="11" text-anchor="middle">
<text x="60" y="14">mqcore contract</text><text x="165" y="14">{text}</text></g>
<title>{backend}: {text}</title></svg>
"""
