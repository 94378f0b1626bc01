"""The service's API: `uvicorn examples.rooms.api:api`.

POST   /template    make a template, and wait until it is ready
POST   /rooms       ask for a room: 202, and where to look for it
GET    /rooms/{id}  what has become of it; a template is found here too
DELETE /rooms/{id}  remove its machine, and stop making it if it is not ready
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.exc import IntegrityError, OperationalError

from examples.rooms import steps, tables
from examples.rooms.models import Machine, Priority, RoomCreate, State, TemplateCreate
from examples.rooms.tables import MachineRow
from mqcore import MqcoreError
from mqcore.tasks import ResultTimeout, TaskCancelled, TaskFailed

PATIENCE = 30.0
"""Seconds that `POST /template` waits for its template."""


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Hold one connection to the broker, and one to the database."""
    await tables.create_tables()
    async with steps.app.connect():
        yield
    await tables.engine.dispose()


api = FastAPI(title="Rooms", lifespan=lifespan)


@api.post("/template", status_code=201)
async def create_template(wanted: TemplateCreate, response: Response) -> Machine:
    """Make a template. Who waits for longer than 30 s gets 202, and looks for it later."""
    row = MachineRow(**wanted.model_dump(), priority=Priority.HIGH)
    async with tables.sessions.begin() as session:
        session.add(row)
    job = await steps.template_workflow(row).send()
    await tables.note(row.id, job=job.id)
    response.headers["Location"] = f"/rooms/{row.id}"
    try:
        await job.result(timeout=PATIENCE)
    except ResultTimeout:
        response.status_code = 202
    return Machine.model_validate(await tables.get(row.id))


@api.post("/rooms", status_code=202)
async def create_room(wanted: RoomCreate, response: Response) -> Machine:
    """Ask for a room. Its row is stored first, so the steps find what they are to make."""
    async with tables.sessions.begin() as session:
        template = await tables.find_template(session, wanted.template)
        if template is None:
            raise HTTPException(404, f"there is no template {wanted.template!r} that is ready")
        row = MachineRow(
            name=wanted.name,
            template=template.id,
            storage=template.storage,
            cores=wanted.cores or template.cores,
            memory=wanted.memory or template.memory,
            disk=template.disk,
            priority=wanted.priority,
        )
        session.add(row)
    job = await steps.room_workflow(row, template).send()
    await tables.note(row.id, job=job.id)
    response.headers["Location"] = f"/rooms/{row.id}"
    return Machine.model_validate(row)


@api.get("/rooms/{id}")
async def read_room(id: int) -> Machine:
    """Return where a room or a template is."""
    async with tables.sessions() as session:
        row = await session.get(MachineRow, id)
    if row is None:
        raise HTTPException(404, f"there is no room {id}")
    return Machine.model_validate(row)


@api.delete("/rooms/{id}", status_code=202)
async def delete_room(id: int) -> Machine:
    """Have the machine removed. It may be asked for at any time, and more than once."""
    async with tables.sessions.begin() as session:
        row = await session.get(MachineRow, id)
        if row is None:
            raise HTTPException(404, f"there is no room {id}")
        if row.state != State.REMOVED:
            row.state = State.REMOVING
    await steps.remove.send(id)
    return Machine.model_validate(row)


# What goes wrong, in HTTP

_STATUS = {
    "examples.rooms.proxmox.NotAllowed": 403,
    "examples.rooms.proxmox.WrongMachine": 409,
    "examples.rooms.proxmox.StorageFull": 507,
    "examples.rooms.proxmox.Refused": 400,
}


@api.exception_handler(TaskFailed)
async def task_failed(_: Request, error: TaskFailed) -> JSONResponse:
    """Map the error that the task has raised in its worker. Other errors are the cluster's."""
    status = 409 if isinstance(error, TaskCancelled) else _STATUS.get(error.type, 502)
    return JSONResponse({"detail": error.text or str(error)}, status)


@api.exception_handler(IntegrityError)
async def name_taken(_: Request, __: IntegrityError) -> JSONResponse:
    """A room that exists has the name."""
    return JSONResponse({"detail": "there is a room or a template with this name"}, 409)


@api.exception_handler(OperationalError)
@api.exception_handler(MqcoreError)
async def unavailable(_: Request, error: Exception) -> JSONResponse:
    """The database, or the broker, is away: nothing was stored."""
    return JSONResponse({"detail": str(error)}, 503)
