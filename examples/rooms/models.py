"""What users ask for and what they get: the models of the API."""

from enum import StrEnum
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Name: TypeAlias = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""A name that Proxmox takes: small letters, digits and hyphens."""


class Priority(StrEnum):
    """How urgent a room is."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"

    @property
    def level(self) -> int:
        """The priority of its messages: the higher number goes first (G8)."""
        return {"high": 9, "medium": 5, "low": 1}[self.value]


class TemplateCreate(BaseModel):
    """A machine that rooms are cloned from."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    storage: Name = "ceph-a"
    cores: int = Field(default=2, ge=1, le=64)
    memory: int = Field(default=2048, ge=256, le=262_144, description="MiB")
    disk: int = Field(default=8, ge=1, le=4096, description="GiB")


class RoomCreate(BaseModel):
    """A room for a class. Cores and memory are those of the template where they are not given."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    template: Name
    priority: Priority = Priority.MEDIUM
    cores: int | None = Field(default=None, ge=1, le=64)
    memory: int | None = Field(default=None, ge=256, le=262_144)


class State(StrEnum):
    """Where a template or a room is."""

    REQUESTED = "requested"
    CREATED = "created"
    CONFIGURED = "configured"
    READY = "ready"
    REMOVING = "removing"
    REMOVED = "removed"


class Machine(BaseModel):
    """A template or a room, as the API shows it. `error` says why it is being removed."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    vmid: int
    name: str
    state: State
    node: str | None
    storage: str
    cores: int
    memory: int
    priority: Priority
    error: str | None
