"""A Proxmox cluster to try the service on: fakepve, with an adapter before it that loses answers.

It is a process of its own: `python -m examples.rooms.simulator DIR`. Its first line of output is
JSON and says where the cluster and its certificate are, and where scenarios are set:

    POST /scenario  {"name": "lose_quorum", "args": []}     any scenario of fakepve
    POST /fault     {"request": "POST .*/clone .*10007", "when": "after", "then": "hold"}
    POST /release                                           release all that is held
    POST /reset                                             count from 0 again
    GET  /truth                                             what is really there

A fault takes the next request that matches: `before` the cluster gets it or `after` it has done the
work, the adapter loses it (`lose`), or holds it (`hold`) until it is released, and loses it then.
"""

import asyncio
import json
import logging
import re
import ssl
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, ClientSession, TCPConnector, web
from fakepve import FakePve
from fakepve.certs import make_cert
from yarl import URL

HOST = "127.0.0.1"
NODES = [f"pve{number}" for number in range(1, 11)]
STORAGES = ["ceph-a", "ceph-b"]
TOKEN = ("root@pam!rooms", "3b7b6c1e-5d0f-4a53-9f6e-2d8f4d9a7c10")
SCENARIOS = {
    "backup",
    "fail",
    "flaky_network",
    "lose_quorum",
    "regain_quorum",
    "set_node_offline",
    "set_space",
}


@dataclass
class Fault:
    """What happens to one request."""

    request: str
    when: str
    then: str


@dataclass
class Simulator:
    """The cluster, and what an outside observer knows of it."""

    pve: FakePve
    faults: list[Fault] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    most_clones: Counter[str] = field(default_factory=Counter)
    tasks_before: int = 0

    # The adapter

    async def forward(self, request: web.Request) -> web.Response:
        """Pass a request on, and its answer back; or lose one of them."""
        body = await request.read()
        line = f"{request.method} {request.raw_path} {body.decode()}"
        fault = next((each for each in self.faults if re.match(each.request, line)), None)
        if fault is not None:
            self.faults.remove(fault)
        if fault is not None and fault.when == "before":
            return await self._lose(request, line, fault)

        url = URL(f"{self.pve.url}{request.raw_path}", encoded=True)
        headers = {name: request.headers[name] for name in _PASSED if name in request.headers}
        try:
            async with (
                ClientSession(connector=TCPConnector(ssl=False)) as client,
                client.request(request.method, url, data=body, headers=headers) as answer,
            ):
                content = await answer.read()
        except ClientError:
            return _no_answer(request)
        self._count_clones()
        if fault is not None:
            return await self._lose(request, line, fault)
        return web.Response(
            status=answer.status,
            reason=answer.reason,
            body=content,
            headers={"Content-Type": answer.headers["Content-Type"]},
        )

    async def _lose(self, request: web.Request, line: str, fault: Fault) -> web.Response:
        if fault.then == "hold":
            self.held.append(line)
            await self.released.wait()
        return _no_answer(request)

    def _count_clones(self) -> None:
        running = Counter(
            str(vm.config.get("scsi0", "")).partition(":")[0]
            for vm in self.pve.vms
            if vm.lock == "clone"
        )
        for storage, number in running.items():
            self.most_clones[storage] = max(self.most_clones[storage], number)

    # The control

    async def scenario(self, request: web.Request) -> web.Response:
        """Set a scenario."""
        wanted = await request.json()
        name, args, kwargs = wanted["name"], wanted.get("args", []), wanted.get("kwargs", {})
        if name not in SCENARIOS:
            raise web.HTTPBadRequest(reason=f"there is no scenario {name!r}")
        if name == "set_space":
            storage, space = args
            self.pve.storages[storage]["avail"] = space
        else:
            done = getattr(self.pve, name)(*args, **kwargs)
            if asyncio.iscoroutine(done):
                await done
        return web.json_response({})

    async def fault(self, request: web.Request) -> web.Response:
        """Add a fault."""
        self.released.clear()
        self.faults.append(Fault(**await request.json()))
        return web.json_response({})

    async def release(self, _: web.Request) -> web.Response:
        """Release what is held."""
        self.released.set()
        self.held.clear()
        return web.json_response({})

    async def reset(self, _: web.Request) -> web.Response:
        """Count from 0 again."""
        self.most_clones.clear()
        self.tasks_before = len(self.pve.tasklog)
        return web.json_response({})

    async def truth(self, _: web.Request) -> web.Response:
        """Return what is really there."""
        machines = [
            {
                "vmid": vm.vmid,
                "name": vm.name,
                "node": vm.node,
                "status": vm.status,
                "is_template": bool(vm.template),
                "cores": vm.config.get("cores"),
            }
            for vm in self.pve.vms
        ]
        return web.json_response(
            {
                "machines": machines,
                "held": self.held,
                "most_clones": self.most_clones,
                "clones": sum(
                    task["type"] == "qmclone" for task in self.pve.tasklog[self.tasks_before :]
                ),
            }
        )


_PASSED = ("Authorization", "Content-Type", "Accept")


def _no_answer(request: web.Request) -> web.Response:
    """Close the connection in place of an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def cluster() -> FakePve:
    """Return ten nodes with two storages; a clone takes ten seconds of Proxmox."""
    pve = FakePve(host=HOST, port=0)
    pve.time_scale = 0.05
    pve.nodes.clear()
    for node in NODES:
        pve.add_node(node)
    for storage in STORAGES:
        pve.add_ceph_storage(storage, pool=storage)
    pve.ceph_slow(10)
    pve.apitokens[TOKEN[0]] = TOKEN[1]
    return pve


async def serve(directory: str) -> None:
    """Run until the process is ended."""
    certificate, key, _ = make_cert(directory, hosts=(HOST,))
    pve = cluster()
    await pve.start(certificate, key)
    simulator = Simulator(pve)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    adapter, control = web.Application(), web.Application()
    adapter.router.add_route("*", "/{tail:.*}", simulator.forward)
    control.router.add_post("/scenario", simulator.scenario)
    control.router.add_post("/fault", simulator.fault)
    control.router.add_post("/release", simulator.release)
    control.router.add_post("/reset", simulator.reset)
    control.router.add_get("/truth", simulator.truth)

    places = {
        "PROXMOX_HOST": f"{HOST}:{await _listen(adapter, context)}",
        "PROXMOX_TOKEN": f"rooms={TOKEN[1]}",
        "PROXMOX_CA": certificate,
        "control": f"http://{HOST}:{await _listen(control, None)}",
    }
    print(json.dumps(places), flush=True)
    await asyncio.Event().wait()


async def _listen(application: web.Application, context: ssl.SSLContext | None) -> int:
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0, ssl_context=context).start()
    port: Any = runner.addresses[0][1]
    return int(port)


if __name__ == "__main__":
    logging.getLogger("aiohttp.server").setLevel(
        logging.CRITICAL
    )  # connections are lost on purpose
    asyncio.run(serve(sys.argv[1]))
