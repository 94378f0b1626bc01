"""The tasks of the service: each is one step that aims at a goal state.

A step looks first. Where the goal is reached, it returns. Where something is under way, it looks
again later. Otherwise it acts: it submits a task to Proxmox, stores the id of it, and looks
again later. "Later" is a delayed message (`Postpone`), so a worker never sleeps, and a step that
runs twice, after a crash or a lost answer, does no harm.

Run it on any broker: `mqcore worker examples.rooms.steps:app --url URL`.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import NoReturn, ParamSpec, TypeVar

from examples.rooms import proxmox, tables
from examples.rooms.models import State
from examples.rooms.proxmox import Machine, Refused, Wait, WrongMachine
from examples.rooms.tables import MachineRow
from mqcore import App, Broker, Postpone, RetryPolicy, exponential
from mqcore.tasks import Call, Failure, SendOptions, Slots, Tasks, Unique, UnknownTask

P = ParamSpec("P")
T = TypeVar("T")


@asynccontextmanager
async def lifespan(_: Broker) -> AsyncIterator[None]:
    """Have the service's table before a worker consumes."""
    await tables.create_tables()
    yield


tasks = Tasks("rooms", store=tables.DATABASE, default="rooms")
app = App("rooms", tasks=[tasks], lifespan=lifespan)

# A task of Proxmox that fails is submitted again, five times in all. What Proxmox would refuse
# again is not. Waiting costs no attempt, and ends after an hour: then the step is a dead letter.
RETRY = RetryPolicy(5, exponential(2, cap=60), max_age=3600, give_up_on=(Refused,))
KEEP_ON = replace(RETRY, give_up_on=())
WAIT = float(os.environ.get("ROOMS_WAIT", "5"))
"""Seconds until a step looks again: at what is under way, or at a cluster that is away."""

_threads = ThreadPoolExecutor(32, "proxmox")


@tasks.task(retry=RETRY, timeout=60)
async def make_template(id: int) -> int:
    """Goal: the template exists."""
    row = await wanted(id)
    await see_to_end(row)
    machine = await look(row)
    if machine is None:
        node = await choose_node(row)
        options = {"cores": row.cores, "memory": row.memory}
        await submit(
            row, proxmox.create, row.vmid, row.name, node, row.storage, row.disk, **options
        )
    if not machine.is_template:
        await submit(row, proxmox.make_template, machine)
    await tables.note(id, node=machine.node, state=State.READY)
    return id


@tasks.task(retry=RETRY, timeout=60, slots=Slots(2, by=("storage",), keep=True))
async def clone(id: int, template: int, storage: str) -> int:
    """Goal: the room has a machine.

    At most two are cloned to one storage at a time: the step keeps its slot while it waits.
    """
    row = await wanted(id)
    await see_to_end(row)
    machine = await look(row)
    if machine is None:
        source = await look(await tables.get(template))
        if source is None:
            raise Refused(f"room {row.name}: its template does not exist any more")
        node = await choose_node(row)
        await submit(row, proxmox.clone, source, row.vmid, row.name, node, storage)
    await tables.note(id, node=machine.node, state=State.CREATED)
    return id


@tasks.task(retry=RETRY, timeout=60)
async def configure(id: int) -> int:
    """Goal: the room's machine has the cores and the memory that were asked for."""
    row = await wanted(id)
    machine = await look(row)
    if machine is None:
        raise Refused(f"room {row.name}: machine {row.vmid} has been removed")
    options = {"cores": row.cores, "memory": row.memory, "tags": "rooms"}
    if not await ask(proxmox.is_configured, machine, options):
        await ask(proxmox.configure, machine, options)
    await tables.note(id, state=State.CONFIGURED)
    return id


@tasks.task(retry=RETRY, timeout=60)
async def start(id: int) -> int:
    """Goal: the room's machine runs."""
    row = await wanted(id)
    await see_to_end(row)
    machine = await look(row)
    if machine is None:
        raise Refused(f"room {row.name}: machine {row.vmid} has been removed")
    if not machine.is_running:
        await submit(row, proxmox.start, machine)
    await tables.note(id, state=State.READY)
    return id


@tasks.task(retry=KEEP_ON, timeout=60)
async def give_up(failure: Failure, id: int) -> None:
    """Have a machine removed that could not be made, and store why."""
    await tables.note(id, state=State.REMOVING, error=failure.reason)
    await remove.send(id)


@tasks.task(retry=KEEP_ON, timeout=60, unique=Unique(by=("id",)))
async def remove(id: int) -> int:
    """Goal: there is no machine. A user asks for it, or a room could not be made.

    It begins when no step is running any more: one that was cancelled may still be waiting for the
    answer to its last request. It is tried again even if Proxmox refuses, because what has failed
    may be the last task of such a step.
    """
    row = await tables.get(id)
    await stop_making(row)
    await see_to_end(row)
    try:
        machine = await look(row)
    except WrongMachine:
        machine = None
    if machine is not None and machine.is_running:
        await submit(row, proxmox.stop, machine)
    if machine is not None:
        await submit(row, proxmox.destroy, machine)
    await tables.note(id, node=None, state=State.REMOVED)
    return id


# What the steps are made of


async def ask(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Ask Proxmox, in a thread. When it cannot answer now, the step is postponed.

    A request cannot be taken back. So a step that is cancelled waits for the answer: what comes
    after it, such as `remove`, sees what the request has done.
    """
    loop = asyncio.get_running_loop()
    answer = loop.run_in_executor(_threads, partial(function, *args, **kwargs))
    try:
        return await asyncio.shield(answer)
    except asyncio.CancelledError:
        await asyncio.wait([answer])
        raise
    except Wait as error:
        raise Postpone(WAIT) from error


async def wanted(id: int) -> MachineRow:
    """Return the row of a machine that is to be there."""
    row = await tables.get(id)
    if row.state is State.REMOVING:  # `remove` cancels this step soon
        raise Postpone(WAIT)
    if row.state is State.REMOVED:  # the step was redriven too late
        raise Refused(f"{row.name} has been removed")
    return row


async def look(row: MachineRow) -> Machine | None:
    """Return the row's machine, None if there is none. While it is locked, the step waits."""
    machine = await ask(proxmox.find, row.vmid)
    if machine is None:
        return None
    if machine.name != row.name:
        raise WrongMachine(f"machine {row.vmid} is {machine.name!r} and should be {row.name!r}")
    if machine.lock is not None:
        raise Postpone(WAIT)
    return machine


async def choose_node(row: MachineRow) -> str:
    """Return where the machine is to run: the nodes that are online take turns."""
    nodes = await ask(proxmox.online_nodes)
    if not nodes:
        raise Postpone(WAIT)
    return nodes[row.id % len(nodes)]


async def submit(
    row: MachineRow, function: Callable[P, str], *args: P.args, **kwargs: P.kwargs
) -> NoReturn:
    """Start a task of Proxmox, store its id, and look again later."""
    upid = await ask(function, *args, **kwargs)
    await tables.note(row.id, upid=upid)
    raise Postpone(WAIT)


async def see_to_end(row: MachineRow) -> None:
    """Go on when the task of Proxmox that was submitted has ended. Raises what it failed with."""
    if row.upid is None:
        return
    status = await ask(proxmox.exit_status, row.upid)
    if status is None:
        raise Postpone(WAIT)
    await tables.note(row.id, upid=None)
    if status != "OK":
        error = proxmox.error_of(status)
        raise Postpone(WAIT) if isinstance(error, Wait) else error


async def stop_making(row: MachineRow) -> None:
    """Cancel the workflow that makes the machine, and go on when it has ended."""
    if row.job is None or row.error is not None:  # there is none, or its steps have ended
        return
    job = tasks.job(row.job)
    with suppress(UnknownTask):  # it was removed from the store, a day after its end
        await job.cancel("the machine is being removed")
        if not (await job.state()).has_ended:
            raise Postpone(WAIT)


# The workflows


def template_workflow(row: MachineRow) -> Call[int]:
    """Return what makes a template."""
    urgency: SendOptions = {"priority": row.priority.level}
    steps = make_template.using(**urgency).s(row.id)
    return steps.on_error(give_up.using(**urgency).step(row.id))


def room_workflow(row: MachineRow, template: MachineRow) -> Call[int]:
    """Return what makes a room from a template."""
    urgency: SendOptions = {"priority": row.priority.level}
    steps = (
        clone.using(**urgency).s(row.id, template.id, template.storage)
        | configure.using(**urgency).step()
        | start.using(**urgency).step()
    )
    return steps.on_error(give_up.using(**urgency).step(row.id))
