"""What the live server is, what survives on it, and what an operator should know.

The append-only file, and how often it is synced, decide what a confirmed message survives. CONFIG
answers all of it and is often denied. INFO answers half of it and may be denied too. Then the least
is assumed, or what the operator states.
"""

from collections.abc import Mapping

from redis.exceptions import ReadOnlyError, ResponseError

from mqcore.spi import Capabilities, Capability, ConfigurationError, Durability, Level, Support
from mqcore_redis.link import Answer
from mqcore_redis.options import Place, RedisOptions
from mqcore_redis.session import Session, raise_if_error

__all__ = ["RIGHTS", "denied", "probe"]

_OLDEST = (7, 0)
_CONFIG = (
    "appendonly",
    "appendfsync",
    "no-appendfsync-on-rewrite",
    "maxmemory",
    "maxmemory-policy",
)
_NEARLY_FULL = 0.8
_DENIED = ("permission", "can't run this command")
"""Texts of a server when a right is missing; the second comes from inside a script of 7.0."""
RIGHTS = (
    "~PREFIX:* +@read +@write +@scripting +@connection +time +info +config|get, in a "
    "cluster +cluster|slots"
)
Fields = Mapping[str, str]


async def probe(session: Session) -> Capabilities:
    """Return what the server can do.

    Raises `ConfigurationError` for a server that is too old, the driver's own exception for missing
    rights, and `ReadOnlyError` for a replica, which may become a master later.
    """
    place, cluster = session.place, session.place.kind == "cluster"
    infos, configs = await session.main.everywhere(("INFO",), ("CONFIG GET", *_CONFIG))
    nodes = [(_info(info), _config(config)) for info, config in zip(infos, configs, strict=True)]
    if any(info.get("role") == "slave" for info, _ in nodes):
        raise ReadOnlyError(
            f"the Redis at {place.shown} is a replica: connect to its master",
            status_code="READONLY",
        )
    if not cluster and any(info.get("cluster_enabled") == "1" for info, _ in nodes):
        raise ConfigurationError(
            f"the Redis at {place.shown} is a node of a cluster: use redis+cluster://"
        )
    server = _server(nodes[0][0])
    await session.run("probe", [f"{place.options.prefix}:probe"] if cluster else [])
    durability, why = min(
        (_durability(*node, place.options) for node in nodes), key=lambda found: found[0]
    )
    return Capabilities("redis", server, durability, _supports(place, durability, why))


def denied(error: ResponseError) -> bool:
    """Return whether the server says that a right is missing."""
    return any(words in str(error) for words in _DENIED)


def _server(info: Fields) -> str:
    product = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    version = info.get("valkey_version") or info.get("redis_version", "")
    if version and tuple(int(part) for part in info["redis_version"].split(".")[:2]) < _OLDEST:
        raise ConfigurationError(
            f"{product} {version} is too old: its scripts know no flags; 7.0 or later is needed"
        )
    return f"{product} {version}".strip()


def _supports(
    place: Place, durability: Durability, why: Mapping[str, str | bool]
) -> dict[Capability, Support]:
    native, options = Level.NATIVE, place.options
    several = place.kind == "cluster" and options.tag is None
    slots = {"across_slots": "publish, then ack"} if several else {}
    durable = native if durability >= Durability.PROCESS else Level.NONE
    return {
        Capability.DELAY: Support(native, {"granularity": 0.1, "max": options.max_delay}),
        Capability.PRIORITY: Support(native, {"levels": 11}),
        Capability.EXPIRY: Support(native, {"sweep": True}),
        Capability.DEDUP: Support(
            native, {"window": options.dedup_window, "size": options.dedup_size}
        ),
        Capability.ATOMIC_MOVE: Support(native, slots),
        Capability.LEASE: Support(native),
        Capability.DURABLE: Support(durable, why),
        Capability.ORDER: Support(native, {"release_in_place": True, "after_delay": "end"}),
        Capability.ROUTING: Support(Level.EMULATED),
        Capability.MAX_LENGTH: Support(native, {"modes": "reject,dead_letter"}),
        Capability.BROWSE: Support(native),
    }


def _durability(
    info: Fields, config: Fields, options: RedisOptions
) -> tuple[Durability, dict[str, str | bool]]:
    """Return what a confirmed message survives, and why.

    By CONFIG, by the part of it that INFO has, or as the operator states it.
    """
    facts = {
        "maxmemory": info.get("maxmemory", "0"),
        "maxmemory-policy": info.get("maxmemory_policy", "noeviction"),
        **({"appendonly": "yes" if info.get("aof_enabled") == "1" else "no"} if info else {}),
        **config,
    }
    durability = Durability.MEMORY
    if facts.get("appendonly") == "yes":
        pauses = config.get("no-appendfsync-on-rewrite") == "yes"
        always = config.get("appendfsync") == "always" and not pauses
        durability = Durability.MACHINE if always else Durability.PROCESS
    why: dict[str, str | bool] = {name: facts[name] for name in _CONFIG[:3] if name in facts}
    why["verified"] = bool(info or config)
    if options.assume_durability is not None and not config and facts.get("appendonly") != "no":
        durability = Durability.parse(options.assume_durability)
        why |= {"verified": False, "stated": options.assume_durability}
    if info or config:
        why["maxmemory_policy"] = facts["maxmemory-policy"]
    elif "stated" not in why:
        why["warning"] = (
            "neither CONFIG nor INFO may be asked: state what you know with assume_durability"
        )
    lossy, worth_knowing = _warnings(info, facts)
    if lossy or worth_knowing:
        why["warning"] = "; ".join((*lossy, *worth_knowing))
    return (Durability.MEMORY if lossy else durability), why


def _warnings(info: Fields, facts: Fields) -> tuple[list[str], list[str]]:
    """Return which settings lose messages while the server runs, and other warnings."""
    limit, policy = int(facts["maxmemory"]), facts["maxmemory-policy"]
    lossy, others = [], []
    if limit and policy != "noeviction":
        lossy.append(f"maxmemory-policy {policy} evicts messages: set noeviction")
    if info.get("aof_enabled") == "1" and info.get("aof_last_write_status", "ok") != "ok":
        lossy.append(
            "the append-only file could not be written: look at the disk and the server's log"
        )
    if facts.get("appendonly") == "no":
        others.append(
            "appendonly no: messages are lost with the server's process; set appendonly yes"
        )
    if limit and int(info.get("used_memory", 0)) > _NEARLY_FULL * limit:
        others.append(
            "used_memory is above 80 % of maxmemory: publishing will be refused when it is full"
        )
    return lossy, others


def _info(answer: Answer) -> dict[str, str]:
    """Return the fields of INFO, or nothing when it is denied. Raises other errors."""
    if isinstance(answer, bytes):
        lines = (line.partition(":") for line in answer.decode(errors="replace").splitlines())
        return {name: value for name, mark, value in lines if mark}
    return _parsed(answer)


def _config(answer: Answer) -> dict[str, str]:
    """Return the settings of CONFIG GET, or nothing when it is denied or disabled."""
    if isinstance(answer, list):
        words = [bytes(word).decode(errors="replace") for word in answer]
        found = dict(zip(words[::2], words[1::2], strict=True))
        return {name: found[name] for name in _CONFIG if name in found}
    return _parsed(answer)


def _parsed(answer: Answer) -> dict[str, str]:
    """Return what a cluster's client has parsed already; nothing for a refusal."""
    if isinstance(answer, ResponseError):
        return {}
    return {str(name): str(value) for name, value in raise_if_error(answer).items()}
