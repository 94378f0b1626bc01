"""The service's own table: one row for each template and each room.

The row exists before its machine does, and its number gives the machine's id in Proxmox. So a step
that runs again asks for the same machine, and Proxmox refuses a second one.

`ROOMS_DATABASE` names the database: `sqlite:///rooms.db` or `postgresql://user@host/rooms`. The
tasks are stored there too.
"""

import os
from enum import StrEnum
from typing import Any

from sqlalchemy import Enum, Index, String, select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateIndex, CreateTable

from examples.rooms.models import Priority, State
from mqcore_sql import share

DATABASE = os.environ.get("ROOMS_DATABASE", "sqlite:///rooms.db")

FIRST_VMID = 10_000
"""The machines of this service have the ids above this one."""


class Table(DeclarativeBase):
    """A table of the service."""


def _words(kind: type[StrEnum]) -> Enum:
    """Return the type of a column that holds one of some words."""
    return Enum(kind, native_enum=False, length=16, values_callable=list)


class MachineRow(Table):
    """A template or a room. `template` is the one that a room is cloned from.

    `upid` is the task of Proxmox that a step has submitted and not yet seen to end. `job` is the
    workflow that makes the machine.
    """

    __tablename__ = "machines"
    __table_args__ = ({"sqlite_autoincrement": True},)  # a number is never given twice

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(63))
    template: Mapped[int | None]
    storage: Mapped[str]
    cores: Mapped[int]
    memory: Mapped[int]
    disk: Mapped[int]
    priority: Mapped[Priority] = mapped_column(_words(Priority), default=Priority.MEDIUM)
    state: Mapped[State] = mapped_column(_words(State), default=State.REQUESTED)
    node: Mapped[str | None]
    upid: Mapped[str | None]
    job: Mapped[str | None]
    error: Mapped[str | None]

    @property
    def vmid(self) -> int:
        """The id of its machine in Proxmox."""
        return FIRST_VMID + self.id


_exists = MachineRow.state != State.REMOVED
_one_of_a_name = Index(
    "machines_name", MachineRow.name, unique=True, sqlite_where=_exists, postgresql_where=_exists
)

_driver = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
_scheme, _, _place = DATABASE.partition("://")
engine = create_async_engine(f"{_driver[_scheme]}://{_place}")
if _scheme == "sqlite":
    share(engine)  # the tasks are in the same file: all take turns
sessions = async_sessionmaker(engine, expire_on_commit=False)


async def create_tables() -> None:
    """Create what is missing."""
    async with engine.begin() as connection:
        for table in Table.metadata.sorted_tables:
            await connection.execute(CreateTable(table, if_not_exists=True))
        await connection.execute(CreateIndex(_one_of_a_name, if_not_exists=True))


async def get(id: int) -> MachineRow:
    """Return a row."""
    async with sessions() as session:
        return await session.get_one(MachineRow, id)


async def note(id: int, **values: Any) -> None:
    """Store what has become of a machine."""
    async with sessions.begin() as session:
        await session.execute(update(MachineRow).where(MachineRow.id == id).values(**values))


async def find_template(session: AsyncSession, name: str) -> MachineRow | None:
    """Return the template with this name, if it is ready."""
    chosen = select(MachineRow).where(
        MachineRow.name == name, MachineRow.template.is_(None), MachineRow.state == State.READY
    )
    return (await session.scalars(chosen)).one_or_none()
