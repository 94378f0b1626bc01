"""The parts of examples/rooms that need no cluster."""

import asyncio
import threading
from collections.abc import Callable

import pytest

pytest.importorskip("proxmoxer")

from fastapi import Request

from examples.rooms import api, proxmox, steps, tables
from examples.rooms.models import Priority, RoomCreate, State
from examples.rooms.proxmox import Machine, ProxmoxError, Refused, StorageFull, Wait
from examples.rooms.tables import MachineRow
from mqcore import Postpone
from mqcore.tasks import State as TaskState
from mqcore.tasks import TaskCancelled, TaskFailed


def failed(*words: str) -> TaskFailed:
    return TaskFailed("7", TaskState.FAILED, *words)


@pytest.mark.parametrize(
    ("text", "status", "meaning"),
    [
        ("cluster not ready - no quorum?", 500, Wait),
        ("can't lock file '/var/lock/qemu-server/lock-1.conf' - got timeout", 500, Wait),
        ("VM is locked (backup)", 500, Wait),
        ("No route to host", 595, Wait),
        ("unable to create VM 10007: config file already exists", 500, Wait),
        ("Configuration file 'nodes/pve1/qemu-server/7.conf' does not exist", 500, Wait),
        ("unable to write to storage 'ceph-b': No space left on device", 500, StorageFull),
        ("Permission check failed (/vms/7, VM.Allocate)", 403, proxmox.NotAllowed),
        ("storage 'ceph-c' does not exist", 500, Refused),
        ("clone failed: rbd error", 500, ProxmoxError),
    ],
)
def test_what_an_answer_means_for_the_next_attempt(
    text: str, status: int, meaning: type[ProxmoxError]
) -> None:
    assert type(proxmox.error_of(text, status)) is meaning


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (failed("rejected", "examples.rooms.proxmox.StorageFull", "No space left"), 507, "No spa"),
        (failed("rejected", "examples.rooms.proxmox.NotAllowed", "not you"), 403, "not you"),
        (failed("retries_exhausted", "examples.rooms.proxmox.ProxmoxError", "rbd"), 502, "rbd"),
        (failed("retries_exhausted"), 502, "retries_exhausted"),
        (TaskCancelled("7", TaskState.CANCELLED, "it was deleted"), 409, "it was deleted"),
    ],
)
async def test_the_error_of_a_task_is_an_http_status(
    error: TaskFailed, status: int, text: str
) -> None:
    answer = await api.task_failed(Request({"type": "http"}), error)
    assert answer.status_code == status
    assert text in bytes(answer.body).decode()


def test_urgent_rooms_go_first() -> None:
    assert Priority.HIGH.level > Priority.MEDIUM.level > Priority.LOW.level
    assert RoomCreate(name="lab-1", template="linux").priority is Priority.MEDIUM


@pytest.mark.parametrize("name", ["", "Lab", "-lab", "lab-", "a_b", "x" * 64])
def test_a_name_that_proxmox_would_not_take_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        RoomCreate(name=name, template="linux")


async def test_a_cluster_that_cannot_answer_now_postpones_the_step() -> None:
    def away() -> None:
        raise Wait("no route to host")

    with pytest.raises(Postpone):
        await steps.ask(away)


async def test_a_step_that_is_cancelled_waits_for_the_answer_to_its_request() -> None:
    """Otherwise `remove` could look before the clone is there, and the machine would stay."""
    sent, go = threading.Event(), threading.Event()
    done: list[str] = []

    def clone() -> str:
        sent.set()
        go.wait(60)
        done.append("cloned")
        return "UPID"

    step = asyncio.create_task(steps.ask(clone))
    await asyncio.to_thread(sent.wait, 60)
    step.cancel()
    await asyncio.sleep(0)
    assert not step.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert done == ["cloned"]


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine | None], None]:
    """Say which machine the cluster has."""

    def place(machine: Machine | None) -> None:
        monkeypatch.setattr(proxmox, "find", lambda _vmid: machine)

    return place


async def test_a_machine_is_found_when_it_is_ours_and_not_locked(
    there: Callable[[Machine | None], None],
) -> None:
    row = MachineRow(id=7, name="lab-1")
    assert row.vmid == 10_007
    there(None)
    assert await steps.look(row) is None

    ours = Machine(10_007, "lab-1", "pve3", is_running=False, is_template=False, lock=None)
    there(ours)
    assert await steps.look(row) == ours

    there(Machine(10_007, "lab-1", "pve3", is_running=False, is_template=False, lock="clone"))
    with pytest.raises(Postpone):
        await steps.look(row)

    there(Machine(10_007, "mail", "pve3", is_running=True, is_template=False, lock=None))
    with pytest.raises(proxmox.WrongMachine, match="'mail' and should be 'lab-1'"):
        await steps.look(row)


async def test_a_step_of_a_room_that_is_not_wanted_any_more_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = MachineRow(id=7, name="lab-1", state=State.READY)

    async def get(_id: int) -> MachineRow:
        return row

    monkeypatch.setattr(tables, "get", get)
    assert await steps.wanted(7) is row
    row.state = State.REMOVING
    with pytest.raises(Postpone):
        await steps.wanted(7)
    row.state = State.REMOVED
    with pytest.raises(Refused, match="lab-1 has been removed"):
        await steps.wanted(7)
