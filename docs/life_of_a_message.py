"""Draw the life of a message.

    python docs/life_of_a_message.py     # writes assets/life-of-a-message.svg

The states and steps inside a worker are those of `mqcore.consuming.states`; a step that has no
place here is an error. `STATES` and `ARROWS` say what else is drawn, and where.
`tests/docs/test_pictures.py` compares the arrows with the table and with the guarantees, and the
stored picture with what this script draws. The site shows the picture inside the page, where it
takes the page's colors; elsewhere it follows the reader's light or dark setting.
"""  # noqa: INP001 - a script beside the pages

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

from mqcore.consuming.states import TRANSITIONS

PICTURE = Path(__file__).parent / "assets" / "life-of-a-message.svg"
WIDTH, HEIGHT = 736, 372


class State(NamedTuple):
    """A box: where it is, and what is written in it."""

    x: int
    y: int
    width: int
    text: str
    note: str = ""
    kind: str = "state"


class Arrow(NamedTuple):
    """A line through these points, its label, and the guarantee that it keeps."""

    source: str
    target: str
    points: tuple[tuple[int, int], ...]
    label: str
    guarantee: str
    at: tuple[int, int]
    anchor: str = "middle"
    kind: str = "plain"


BOX = 44
"""The height of a box."""
STATES = {
    "publish": State(14, 136, 78, "publish", kind="start"),
    "delayed": State(152, 40, 112, "delayed", "waits until due"),
    "ready": State(152, 136, 112, "ready", "waits in the queue"),
    "quarantine": State(152, 220, 112, "quarantine", "runs alone"),
    "dead letter": State(152, 304, 112, "dead letter", "kept with reason", "dead"),
    "buffered": State(376, 136, 92, "buffered", "in a worker"),
    "running": State(496, 136, 92, "running", "the handler"),
    "settling": State(616, 136, 100, "settling", "broker answers"),
    "gone": State(606, 240, 70, "done", kind="done"),
}
PLACES: dict[tuple[str, str], tuple[tuple[tuple[int, int], ...], tuple[int, int], str, str]] = {
    ("buffered", "running"): (((468, 166), (496, 166)), (482, 190), "G6", "{step}"),
    ("running", "settling"): (((588, 166), (616, 166)), (602, 190), "G4", "{step}"),
    ("buffered", "settling"): (
        ((440, 136), (440, 122), (636, 122), (636, 136)),
        (538, 116),
        "G6",
        "{step} without a run: expired, unreadable",
    ),
}
"""Where the steps between two drawn states of a delivery are: line, label, guarantee, words."""


def steps_in_a_worker() -> list[Arrow]:
    """Return the arrows of the table between the states that are drawn."""
    arrows = []
    for (source, step), target in TRANSITIONS.items():
        if source.value in STATES and target.value in STATES:
            points, at, guarantee, words = PLACES[source.value, target.value]
            label = words.format(step=step.value)
            arrows.append(Arrow(source.value, target.value, points, label, guarantee, at))
    return arrows


ARROWS = (
    Arrow("publish", "ready", ((92, 158), (152, 158)), "arrives", "G1", (121, 150)),
    Arrow("publish", "delayed", ((53, 136), (53, 62), (152, 62)), "delay=", "G7", (98, 54)),
    Arrow("delayed", "ready", ((208, 84), (208, 136)), "due", "G7", (216, 114), "start"),
    Arrow("ready", "buffered", ((264, 148), (376, 148)), "receive", "G8", (318, 140)),
    Arrow("buffered", "ready", ((376, 170), (264, 170)), "release, takeover", "G5", (318, 186)),
    *steps_in_a_worker(),
    Arrow("settling", "gone", ((641, 180), (641, 240)), "ack", "G2", (634, 220), "end", "done"),
    Arrow(
        "settling",
        "delayed",
        ((690, 136), (690, 62), (264, 62)),
        "retry: after a wait in the broker, attempt + 1",
        "G10",
        (465, 54),
        kind="retry",
    ),
    Arrow(
        "settling",
        "dead letter",
        ((696, 180), (696, 326), (264, 326)),
        "dead letter: rejected, out of attempts, expired",
        "G11",
        (465, 344),
        kind="dead",
    ),
    Arrow(
        "dead letter",
        "ready",
        ((152, 326), (122, 326), (122, 170), (152, 170)),
        "redrive",
        "G11",
        (114, 262),
        "end",
        "redrive",
    ),
    Arrow(
        "running",
        "quarantine",
        ((532, 180), (532, 234), (264, 234)),
        "taken over a second time",
        "G4",
        (404, 227),
    ),
    Arrow(
        "quarantine",
        "running",
        ((264, 252), (556, 252), (556, 180)),
        "runs while nothing else does",
        "G4",
        (404, 268),
    ),
)
STYLE = """
.life { --ink: #1f2937; --soft: #64748b; --paper: #ffffff; --lane: #f1f5f9;
  --done: #15803d; --retry: #b45309; --dead: #b91c1c; --redrive: #0f766e; }
@media (prefers-color-scheme: dark) { .life { --ink: #e2e8f0; --soft: #94a3b8; --paper: #1e2129;
  --lane: #2b303b; --done: #4ade80; --retry: #fbbf24; --dead: #f87171; --redrive: #2dd4bf; } }
.life text { font: 13px system-ui, "Segoe UI", Roboto, sans-serif; fill: var(--ink); }
.life .lane { fill: var(--lane); }
.life .head, .life .note { font-size: 11px; fill: var(--soft); }
.life .name { font-weight: 600; }
.life rect.box { fill: var(--paper); stroke: var(--ink); stroke-width: 1.2; }
.life rect.start, .life rect.done { fill: none; stroke-dasharray: 4 3; }
.life rect.dead { stroke: var(--dead); }
.life rect.done { stroke: var(--done); }
.life path { fill: none; stroke: var(--ink); stroke-width: 1.4; }
.life text.label { font-size: 11.5px; }
.life .done-line { stroke: var(--done); }
.life .retry-line { stroke: var(--retry); }
.life .dead-line { stroke: var(--dead); }
.life .redrive-line { stroke: var(--redrive); }
.life text.done-label { fill: var(--done); }
.life text.retry-label { fill: var(--retry); }
.life text.dead-label { fill: var(--dead); }
.life text.redrive-label { fill: var(--redrive); }
.life path.head-of-arrow { stroke: none; fill: var(--ink); }
.life .head-of-arrow.done-head { fill: var(--done); }
.life .head-of-arrow.retry-head { fill: var(--retry); }
.life .head-of-arrow.dead-head { fill: var(--dead); }
.life .head-of-arrow.redrive-head { fill: var(--redrive); }
""".strip()
TITLE = "The life of a message"
DESCRIPTION = (
    "A published message waits in the queue, or is delayed first. A worker receives it and runs "
    "its handler. The message is then acknowledged, retried after a wait, or dead-lettered. A "
    "redrive sends a dead letter back to its queue."
)


def box(state: State) -> list[str]:
    """Return the elements of one state."""
    middle = state.x + state.width / 2
    radius = BOX / 2 if state.kind in ("start", "done") else 6
    height = state.y + (19 if state.note else 27)
    elements = [
        (
            f'<rect class="box {state.kind}" x="{state.x}" y="{state.y}" width="{state.width}" '
            f'height="{BOX}" rx="{radius:g}"/>'
        ),
        f'<text class="name" x="{middle:g}" y="{height}" text-anchor="middle">{state.text}</text>',
    ]
    if state.note:
        elements.append(
            f'<text class="note" x="{middle:g}" y="{state.y + 35}" text-anchor="middle">'
            f"{state.note}</text>"
        )
    return elements


def head(points: tuple[tuple[int, int], ...], kind: str) -> str:
    """Return the triangle at the end of a line."""
    (x0, y0), (x, y) = points[-2:]
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    back_x, back_y = x - 8 * dx, y - 8 * dy
    corners = f"M{x} {y}L{back_x - 4 * dy} {back_y + 4 * dx}L{back_x + 4 * dy} {back_y - 4 * dx}Z"
    return f'<path class="head-of-arrow {kind}-head" d="{corners}"/>'


def line(arrow: Arrow) -> list[str]:
    """Return the elements of one arrow: line, head and label."""
    way = "M" + "L".join(f"{x} {y}" for x, y in arrow.points)
    x, y = arrow.at
    return [
        f'<path class="{arrow.kind}-line" d="{way}"/>',
        head(arrow.points, arrow.kind),
        (
            f'<text class="label {arrow.kind}-label" x="{x}" y="{y}" text-anchor="{arrow.anchor}">'
            f"{escape(arrow.label)} <title>{arrow.guarantee}</title></text>"
        ),
    ]


def draw() -> str:
    """Return the picture as SVG."""
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="life" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'role="img" aria-labelledby="life-title life-text">'
        ),
        f'<title id="life-title">{TITLE}</title>',
        f'<desc id="life-text">{DESCRIPTION}</desc>',
        f"<style>\n{STYLE}\n</style>",
        '<rect class="lane" x="136" y="10" width="144" height="352" rx="8"/>',
        '<text class="head" x="208" y="27" text-anchor="middle">in the broker</text>',
        '<rect class="lane" x="360" y="72" width="372" height="126" rx="8"/>',
        '<text class="head" x="372" y="90">in a worker</text>',
    ]
    for arrow in ARROWS:
        parts += line(arrow)
    for state in STATES.values():
        parts += box(state)
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
