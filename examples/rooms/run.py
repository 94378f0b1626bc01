"""The processes of the demo: the simulated cluster, workers, and the API, each on its own."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

LEASE = 4
"""Seconds until another worker takes over what a killed one has held. The default is 30."""


class Simulator:
    """The simulated cluster, as `simulator.py` serves it."""

    def __init__(self, places: dict[str, str], process: Process) -> None:
        """Made by `Rooms`."""
        self.process = process
        self.environment = {key: places[key] for key in places if key.isupper()}
        self._control = httpx.AsyncClient(base_url=places["control"], timeout=30)

    @classmethod
    async def start(cls, directory: Path) -> Self:
        """Start it; returns when it listens."""
        process = await _start("examples.rooms.simulator", str(directory), stdout=PIPE)
        line = await process.stdout.readline() if process.stdout else b""
        if not line:
            raise RuntimeError("the simulated cluster has not started; the reason is shown above")
        return cls(json.loads(line), process)

    async def scenario(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Set a scenario of fakepve."""
        await self._post("/scenario", {"name": name, "args": args, "kwargs": kwargs})

    async def fault(self, request: str, when: str, then: str) -> None:
        """Lose or hold the next request that matches, before or after its work is done."""
        await self._post("/fault", {"request": request, "when": when, "then": then})

    async def release(self) -> None:
        """Release what is held."""
        await self._post("/release", {})

    async def truth(self) -> dict[str, Any]:
        """Return what is really there."""
        answer = await self._control.get("/truth")
        found: dict[str, Any] = answer.json()
        return found

    async def reset(self) -> None:
        """Count from 0 again."""
        await self._post("/reset", {})

    async def stop(self) -> None:
        """End the process."""
        await self._control.aclose()
        await _stop(self.process)

    async def _post(self, path: str, content: dict[str, Any]) -> None:
        (await self._control.post(path, json=content)).raise_for_status()


class Service:
    """The service with a cluster of its own: simulator, API and workers.

    `url` is the broker, `database` where the service's table and its tasks are.
    """

    simulator: Simulator
    api: httpx.AsyncClient

    def __init__(
        self, directory: Path, url: str | None = None, database: str | None = None
    ) -> None:
        """Nothing is started yet."""
        self.directory = directory
        file = f"sqlite:///{directory.resolve() / 'rooms.db'}"
        self._environment = {
            **os.environ,
            "MQCORE_URL": url or file,
            "ROOMS_DATABASE": database or file,
            "PROXMOX_TIMEOUT": "60",  # the simulator holds answers for longer than the usual 10 s
            "ROOMS_WAIT": "0.5",  # and its time runs 20 times faster
        }
        self.workers: list[Process] = []
        self._started = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start the simulator and the API."""
        async with AsyncExitStack() as stack:
            self.simulator = await Simulator.start(self.directory)
            stack.push_async_callback(self.simulator.stop)
            self._environment |= self.simulator.environment

            socket = str(self.directory.resolve() / "api.sock")
            words = ["examples.rooms.api:api", "--uds", socket, "--log-level", "warning"]
            server = await _start("uvicorn", *words, env=self._environment)
            stack.push_async_callback(_stop, server)

            transport = httpx.AsyncHTTPTransport(uds=socket)
            self.api = httpx.AsyncClient(transport=transport, base_url="http://rooms", timeout=60)
            stack.push_async_callback(self.api.aclose)
            await self._until_it_answers(server)
            self._stack = stack.pop_all()
        return self

    async def _until_it_answers(self, server: Process) -> None:
        while server.returncode is None:
            try:
                await self.api.get("/rooms/0")
            except httpx.TransportError:
                await asyncio.sleep(0.1)
            else:
                return
        raise RuntimeError("the API has not started; the reason is shown above")

    async def start_worker(self) -> Process:
        """Start a worker in a process of its own."""
        words = ["worker", "examples.rooms.steps:app", "--lease", str(LEASE), "--json"]
        self._started += 1
        with (self.directory / f"worker-{self._started}.log").open("w") as log:
            worker = await _start("mqcore", *words, stdout=log, env=self._environment)
        self.workers.append(worker)
        return worker

    def check(self) -> None:
        """Raise when a worker has ended by itself."""
        if any(worker.returncode is not None for worker in self.workers):
            raise RuntimeError(f"a worker has ended by itself; see its log in {self.directory}")

    async def kill_workers(self) -> None:
        """Kill the workers without a warning."""
        for worker in self.workers:
            worker.kill()
            await worker.wait()
        self.workers.clear()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop all processes."""
        await asyncio.gather(*(_stop(worker) for worker in self.workers))
        await self._stack.aclose()


async def _start(module: str, *words: str, **options: Any) -> Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-m", module, *words, **options)


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
    await process.wait()
