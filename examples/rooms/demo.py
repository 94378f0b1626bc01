"""Run the rooms service end to end against a simulated cluster, and print what happened.

Each scenario asks for rooms while something goes wrong, waits until each has come to its end, and
compares what users were told with the machines that are really there. Exits 0 when every room has
exactly the machines it should have, 1 when one has not, 2 when the run was not possible.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from examples.rooms.run import Service

LONG = 120.0
"""Seconds after which a room is given up."""
OUTAGE = 3.0
"""Seconds that the cluster is away in some scenarios."""
SLOTS = 2
"""How many clones there may be at once on one storage."""
CORES = 4
VMID = 10_000
"""What is added to the id of a room to get that of its machine."""


@dataclass
class Result:
    """What came of a scenario."""

    name: str
    rooms: int = 0
    ready: int = 0
    removed: int = 0
    machines: int = 0
    clones: int = 0
    at_once: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Stage:
    """One scenario while it runs."""

    def __init__(self, service: Service, result: Result) -> None:
        self.service = service
        self.simulator = service.simulator
        self.result = result
        self.rooms: dict[str, int] = {}

    async def ask(self, count: int, template: str = "linux", priority: str = "medium") -> list[int]:
        """Ask for rooms; returns their ids."""
        asked = []
        for _ in range(count):
            name = f"{self.result.name.replace(' ', '-')}-{len(self.rooms) + 1}"
            wanted = {"name": name, "template": template, "priority": priority, "cores": CORES}
            answer = await self.service.api.post("/rooms", json=wanted)
            answer.raise_for_status()
            self.rooms[name] = answer.json()["id"]
            asked.append(self.rooms[name])
        return asked

    async def until(self, reached: Callable[[], Awaitable[bool]], what: str) -> bool:
        """Wait until something is so; notes it as wrong after two minutes."""
        end = time.monotonic() + LONG
        while not await reached():
            if time.monotonic() > end:
                self.result.wrong.append(f"{what} did not happen within {LONG:.0f} s")
                return False
            self.service.check()
            await asyncio.sleep(0.1)
        return True

    async def until_held(self, count: int) -> None:
        """Wait until the simulator holds so many requests."""

        async def reached() -> bool:
            return len((await self.simulator.truth())["held"]) == count

        await self.until(reached, f"holding {count} requests")

    async def until_known(self, id: int) -> None:
        """Wait until a room or a template was asked for."""

        async def reached() -> bool:
            return "id" in await self.read(id)

        await self.until(reached, f"asking for {id}")

    async def until_all(self, state: str, ids: Sequence[int] | None = None) -> None:
        """Wait until the rooms are ready, or removed."""
        for id in self.rooms.values() if ids is None else ids:

            async def reached(id: int = id) -> bool:
                return bool((await self.read(id))["state"] == state)

            await self.until(reached, f"room {id} {state}")

    async def read(self, id: int) -> dict[str, Any]:
        """Return a room as its user sees it."""
        found: dict[str, Any] = (await self.service.api.get(f"/rooms/{id}")).json()
        return found

    async def compare(self) -> None:
        """Compare what users see with what is there."""
        truth = await self.simulator.truth()
        self.result.rooms = len(self.rooms)
        self.result.clones = truth["clones"]
        self.result.at_once = max(truth["most_clones"].values(), default=0)
        for name, id in self.rooms.items():
            room = await self.read(id)
            mine = [machine for machine in truth["machines"] if machine["vmid"] == room["vmid"]]
            self.result.machines += len(mine)
            if room["state"] == "ready":
                self.result.ready += 1
                if [_described(each) for each in mine] not in (
                    [f"{name} running"],
                    [f"{name} waits"],
                ):
                    self.result.wrong.append(f"{name} is ready, and there is {mine}")
            elif room["state"] == "removed":
                self.result.removed += 1
                if mine:
                    self.result.wrong.append(f"{name} was removed, and there is {mine}")
            else:
                self.result.wrong.append(f"{name} is still {room['state']}")
        if self.result.at_once > SLOTS:
            self.result.wrong.append(f"{self.result.at_once} clones at once on one storage")


def _described(machine: dict[str, Any]) -> str:
    """Return whether a machine runs, or waits as a template, with the cores that were asked for."""
    if int(machine["cores"] or 0) != CORES:
        return "not configured"
    return f"{machine['name']} {'waits' if machine['is_template'] else machine['status']}"


async def quiet_day(stage: Stage) -> None:
    """Twelve rooms, two storages. The urgent ones are asked for last."""
    await stage.service.kill_workers()
    for priority in ("low", "medium", "high"):
        await stage.ask(2, "linux", priority)
        await stage.ask(2, "windows", priority)
    await stage.service.start_worker()
    await stage.service.start_worker()
    await stage.until_all("ready")
    order = [machine["name"] for machine in (await stage.simulator.truth())["machines"]]
    first, last = [f"quiet-day-{n}" for n in range(9, 13)], [f"quiet-day-{n}" for n in range(1, 5)]
    if max(map(order.index, first)) > min(map(order.index, last)):
        stage.result.wrong.append("a room of low priority was made before one of high priority")


async def flaky_network(stage: Stage) -> None:
    """One request in five gets no answer."""
    await stage.simulator.scenario("flaky_network", drop_rate=0.2, seed=1)
    await stage.ask(4)
    await stage.until_all("ready")
    await stage.simulator.scenario("flaky_network")


async def locks(stage: Stage) -> None:
    """The template is being backed up, and two machines are locked."""
    await stage.simulator.scenario("backup", VMID + 1, secs=60)
    lock = "can't lock file '/var/lock/qemu-server/lock-1.conf' - got timeout"
    await stage.simulator.scenario("fail", "PUT", "/config", 500, lock, times=2)
    await stage.ask(4)
    await stage.until_all("ready")


async def lost_quorum(stage: Stage) -> None:
    """The cluster loses its quorum for some seconds."""
    await stage.simulator.scenario("lose_quorum")
    await stage.ask(4)
    await asyncio.sleep(OUTAGE)
    await stage.simulator.scenario("regain_quorum")
    await stage.until_all("ready")


async def node_offline(stage: Stage) -> None:
    """One node is away, and for some seconds that of the template."""
    await stage.simulator.scenario("set_node_offline", "pve5")
    template = await stage.read(1)
    await stage.simulator.scenario("set_node_offline", template["node"])
    await stage.ask(4)
    await asyncio.sleep(OUTAGE)
    await stage.simulator.scenario("set_node_offline", template["node"], offline=False)
    await stage.until_all("ready")
    await stage.simulator.scenario("set_node_offline", "pve5", offline=False)


async def storage_full(stage: Stage) -> None:
    """There is no space: rooms are given up, and users are told why."""
    await stage.simulator.scenario("set_space", "ceph-b", 0)
    ids = await stage.ask(2, "windows")
    await stage.until_all("removed")
    for id in ids:
        if "No space left" not in ((await stage.read(id))["error"] or ""):
            stage.result.wrong.append(f"room {id} does not say that the storage is full")
    wanted = {"name": "full", "storage": "ceph-b"}
    status = (await stage.service.api.post("/template", json=wanted)).status_code
    if status != HTTPStatus.INSUFFICIENT_STORAGE:
        stage.result.wrong.append(f"POST /template has answered {status}, not 507")
    await stage.simulator.scenario("set_space", "ceph-b", 10**13)


async def lost_answers(stage: Stage) -> None:
    """A clone, a configuration and a start are done; no answer comes."""
    await stage.simulator.fault("POST .*/clone ", "after", "lose")
    await stage.simulator.fault("PUT .*/config ", "after", "lose")
    await stage.simulator.fault("POST .*/status/start ", "after", "lose")
    await stage.ask(3)
    await stage.until_all("ready")


async def cancelled(stage: Stage) -> None:
    """Rooms are deleted while cloned, while started, and when ready."""
    await stage.simulator.fault("POST .*/clone .*name=cancelled-1", "after", "hold")
    [cloning] = await stage.ask(1)
    starting = cloning + 1
    await stage.simulator.fault(f"POST .*/{VMID + starting}/status/start", "after", "hold")
    _, ready = await stage.ask(2)
    await stage.until_all("ready", [ready])
    await stage.until_held(2)
    for id in (cloning, starting, ready):
        await stage.service.api.delete(f"/rooms/{id}")
    await stage.simulator.release()
    await stage.until_all("removed")


async def killed_workers(stage: Stage) -> None:
    """Workers are killed in each step, before and after its request."""
    stopping, destroying = doomed = await stage.ask(2)
    await stage.until_all("ready", doomed)
    template = destroying + 1
    moments = [
        ("POST .*/qemu/{}/template", "after"),
        ("POST .*/clone .*newid={}", "before"),
        ("POST .*/clone .*newid={}", "after"),
        ("PUT .*/qemu/{}/config", "before"),
        ("PUT .*/qemu/{}/config", "after"),
        ("POST .*/qemu/{}/status/start", "before"),
        ("POST .*/qemu/{}/status/start", "after"),
        ("GET .*qmstart.+{}", "before"),  # it asks how the start has ended
    ]
    for vmid, (request, when) in enumerate(moments, VMID + template):
        await stage.simulator.fault(request.format(vmid), when, "hold")
    wanted = {"name": "killed-template", "cores": CORES}
    made = asyncio.create_task(stage.service.api.post("/template", json=wanted))
    await stage.until_known(template)
    # Who is held during a clone keeps its slot, so the two are on a storage of their own.
    ids = await stage.ask(2, "windows") + await stage.ask(len(moments) - 3)

    await stage.simulator.fault(f"POST .*/qemu/{VMID + stopping}/status/stop", "after", "hold")
    await stage.simulator.fault(f"DELETE .*/qemu/{VMID + destroying}", "after", "hold")
    for id in doomed:
        await stage.service.api.delete(f"/rooms/{id}")

    await stage.until_held(len(moments) + len(doomed))
    await stage.service.kill_workers()
    await stage.simulator.release()
    await stage.service.start_worker()
    await stage.service.start_worker()
    await stage.until_all("ready", ids)
    await stage.until_all("removed", doomed)
    stage.rooms["killed-template"] = template
    await stage.until_all("ready", [template])
    if not (answer := await made).is_success:
        stage.result.wrong.append(f"POST /template has answered {answer.status_code}")


async def mistakes(stage: Stage) -> None:
    """Wrong requests get 404, 409 or 422, and change nothing."""
    [id] = await stage.ask(1)
    api, room = stage.service.api, {"name": "mistakes-1", "template": "linux"}
    answers = {
        "the name of a room that exists": await api.post("/rooms", json=room),
        "an unknown template": await api.post("/rooms", json=room | {"template": "plan9"}),
        "a name in capitals": await api.post("/rooms", json=room | {"name": "LAB"}),
        "an unknown priority": await api.post("/rooms", json=room | {"priority": "now"}),
        "an unknown room": await api.delete(f"/rooms/{id + 1000}"),
    }
    for (what, answer), status in zip(answers.items(), (409, 404, 422, 422, 404), strict=True):
        if answer.status_code != status:
            stage.result.wrong.append(f"{what}: answer {answer.status_code}, not {status}")
    await stage.until_all("ready")


SCENARIOS = {
    scenario.__name__.replace("_", "-"): scenario
    for scenario in (
        quiet_day,
        flaky_network,
        locks,
        lost_quorum,
        node_offline,
        storage_full,
        lost_answers,
        cancelled,
        killed_workers,
        mistakes,
    )
}


async def play(service: Service, name: str) -> Result:
    """Run a scenario."""
    stage = Stage(service, Result(name))
    await service.simulator.reset()
    began = time.monotonic()
    await SCENARIOS[name](stage)
    stage.result.seconds = time.monotonic() - began
    await stage.compare()
    return stage.result


async def run(args: argparse.Namespace, directory: Path, console: Console) -> list[Result]:
    """Run all scenarios that were chosen, one after the other."""
    console.print(f"ten nodes, two storages, two workers; logs in {directory}", highlight=False)
    async with Service(directory, args.url, args.database) as service:
        await service.start_worker()
        await service.start_worker()
        stage = Stage(service, Result("templates"))
        for id, (name, storage) in enumerate([("linux", "ceph-a"), ("windows", "ceph-b")], 1):
            answer = await service.api.post("/template", json={"name": name, "storage": storage})
            answer.raise_for_status()
            await stage.until_all("ready", [id])
        results = []
        for name in args.only or SCENARIOS:
            console.print(f"{name:<15}", (SCENARIOS[name].__doc__ or "").strip(), highlight=False)
            results.append(await play(service, name))
        return results


def table(results: Sequence[Result]) -> Table:
    """Return the results as a table."""
    found = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    found.add_column("scenario", no_wrap=True)
    for column in ("rooms", "ready", "removed", "machines", "clones", "at once", "s"):
        found.add_column(column, justify="right")
    found.add_column("")
    for each in results:
        numbers = (each.rooms, each.ready, each.removed, each.machines, each.clones, each.at_once)
        verdict = "[red]wrong" if each.wrong else "[green]ok"
        found.add_row(each.name, *map(str, numbers), f"{each.seconds:.0f}", verdict)
    return found


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("--url", help="the broker; by default an SQLite file")
    parser.add_argument("--database", help="for the rooms and the tasks; by default the same file")
    parser.add_argument("--out", type=Path, help="where logs and result.json go")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="SCENARIO")
    args = parser.parse_args()

    console = Console()
    directory = args.out or Path(tempfile.mkdtemp(prefix="rooms-"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        results = asyncio.run(run(args, directory, console))
    except RuntimeError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    console.print(table(results))
    for each in results:
        for text in each.wrong:
            console.print(f"{each.name}: {text}", markup=False)
    (directory / "result.json").write_text(json.dumps([asdict(each) for each in results], indent=1))
    return 1 if any(each.wrong for each in results) else 0


if __name__ == "__main__":
    sys.exit(main())
