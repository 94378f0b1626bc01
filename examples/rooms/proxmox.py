"""What the service asks of Proxmox, and what can go wrong there.

The functions block, as proxmoxer does: `steps.py` calls them in threads. None of them waits for a
task of Proxmox, and none repeats a request. `PROXMOX_HOST`, `PROXMOX_USER`, `PROXMOX_TOKEN`
(`name=value`) and `PROXMOX_CA` (a file) say where the cluster is, and `PROXMOX_TIMEOUT` how many
seconds an answer may take.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import requests
from proxmoxer import ProxmoxAPI, ResourceException

P = ParamSpec("P")
T = TypeVar("T")


class ProxmoxError(Exception):
    """A request, or a task of Proxmox, has failed. Another attempt may succeed."""


class Wait(ProxmoxError):
    """The cluster cannot do it now, or it is unknown whether it has. Look again later."""


class Refused(ProxmoxError):
    """The cluster will refuse it again. Another attempt would not help."""


class StorageFull(Refused):
    """The storage has no space left."""


class NotAllowed(Refused):
    """The token may not do it."""


class WrongMachine(Refused):
    """A machine has the id, and is not the one of this service."""


_MEANINGS: list[tuple[str, type[ProxmoxError]]] = [
    ("no quorum", Wait),
    ("can't lock file", Wait),
    ("is locked", Wait),
    ("already exists", Wait),  # ours: the request before it was slower than its answer
    ("Configuration file", Wait),  # it moves to another node just now
    ("No space left", StorageFull),
    ("Permission check failed", NotAllowed),
    ("authentication failure", NotAllowed),
    ("does not exist", Refused),
    ("Parameter verification failed", Refused),
]


def error_of(text: str, status: int = 500) -> ProxmoxError:
    """Return what an answer, or the exit status of a task, means for the next attempt."""
    if status in range(595, 600):  # between the nodes: whether it was done is unknown
        return Wait(text)
    for words, meaning in _MEANINGS:
        if words in text:
            return meaning(text)
    return ProxmoxError(text)


def _translated(function: Callable[P, T]) -> Callable[P, T]:
    """Raise errors of this module instead of those of proxmoxer and requests."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except ResourceException as error:
            raise error_of(
                f"{error.content} {error.errors or ''}".strip(), error.status_code
            ) from error
        except requests.RequestException as error:  # no answer: it may have been done all the same
            raise Wait(f"no answer from Proxmox: {error}") from error

    return call


@dataclass(frozen=True)
class Machine:
    """A machine as Proxmox has it."""

    vmid: int
    name: str
    node: str
    is_running: bool
    is_template: bool
    lock: str | None


_local = threading.local()


def _api() -> Any:
    """Return the client of this thread: a session of requests belongs to one thread."""
    if not hasattr(_local, "api"):
        name, _, value = os.environ["PROXMOX_TOKEN"].partition("=")
        _local.api = ProxmoxAPI(
            os.environ["PROXMOX_HOST"],
            user=os.environ.get("PROXMOX_USER", "root@pam"),
            token_name=name,
            token_value=value,
            verify_ssl=os.environ.get("PROXMOX_CA") or True,
            timeout=float(os.environ.get("PROXMOX_TIMEOUT", "10")),
        )
    return _local.api


def _of(machine: Machine) -> Any:
    return _api().nodes(machine.node).qemu(machine.vmid)


# Looking


@_translated
def find(vmid: int) -> Machine | None:
    """Return the machine with this id, or None."""
    entries = _api().cluster.resources.get(type="vm")
    node = next((entry["node"] for entry in entries if entry["vmid"] == vmid), None)
    if node is None:
        return None
    # The list of the cluster is some seconds old; the node itself knows what is now.
    now = _api().nodes(node).qemu(vmid).status.current.get()
    return Machine(
        vmid,
        now["name"],
        node,
        now["status"] == "running",
        bool(now.get("template")),
        now.get("lock"),
    )


@_translated
def online_nodes() -> list[str]:
    """Return the names of the nodes that are online."""
    entries = _api().cluster.resources.get(type="node")
    return sorted(entry["node"] for entry in entries if entry["status"] == "online")


@_translated
def exit_status(upid: str) -> str | None:
    """Return how a task of Proxmox has ended, `OK` or an error; None while it runs."""
    node = upid.split(":")[1]
    task = _api().nodes(node).tasks(upid).status.get()
    return None if task["status"] == "running" else str(task["exitstatus"])


@_translated
def is_configured(machine: Machine, options: dict[str, Any]) -> bool:
    """Whether the machine has these options already."""
    found = _of(machine).config.get()
    return all(str(found.get(key)) == str(value) for key, value in options.items())


# Acting. What returns a text has started a task of Proxmox, and returns its id.


@_translated
def create(vmid: int, name: str, node: str, storage: str, disk: int, **options: Any) -> str:
    """Create a machine with a new disk of so many GiB."""
    upid: str = (
        _api().nodes(node).qemu.post(vmid=vmid, name=name, scsi0=f"{storage}:{disk}", **options)
    )
    return upid


@_translated
def make_template(machine: Machine) -> str:
    """Turn a machine into a template."""
    upid: str = _of(machine).template.post()
    return upid


@_translated
def clone(template: Machine, vmid: int, name: str, node: str, storage: str) -> str:
    """Copy a template to another node."""
    upid: str = _of(template).clone.post(
        newid=vmid, name=name, target=node, storage=storage, full=1
    )
    return upid


@_translated
def configure(machine: Machine, options: dict[str, Any]) -> None:
    """Set options. Proxmox does that at once, without a task."""
    _of(machine).config.put(**options)


@_translated
def start(machine: Machine) -> str:
    """Switch a machine on."""
    upid: str = _of(machine).status.start.post()
    return upid


@_translated
def stop(machine: Machine) -> str:
    """Switch a machine off."""
    upid: str = _of(machine).status.stop.post()
    return upid


@_translated
def destroy(machine: Machine) -> str:
    """Remove a machine with its disks."""
    upid: str = _of(machine).delete()
    return upid
