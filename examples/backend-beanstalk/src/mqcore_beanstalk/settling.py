"""What an owner does with its leases: settle them, renew them, or give them back.

Every one of these locks the jobs first. Locked jobs must not be left so, and are not: each function
ends every lock that it has taken, and a connection that is lost ends them all.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from mqcore.spi import (
    DONE,
    STALE,
    STORED,
    ConnectionLost,
    ErrorKind,
    Failed,
    Move,
    Outcome,
    Outgoing,
    Release,
    Settled,
    Settlement,
    Stored,
    Unknown,
)
from mqcore_beanstalk import claims
from mqcore_beanstalk.jobs import Claim
from mqcore_beanstalk.protocol import Connection

__all__ = ["give_back", "renew", "settle"]

Store = Callable[[Sequence[Outgoing]], Awaitable[Sequence[Outcome]]]


async def settle(
    connection: Connection, batch: Sequence[Settlement], store: Store
) -> list[Settled]:
    """Settle leases, whichever instance has claimed them; an outcome for each, in their order.

    `store` publishes the successors of Moves, and does not raise: their sources are locked then.
    """
    asked = [Claim.of(item.receipt) for item in batch]
    mine, busy = await claims.lock(connection, [claim for claim in asked if claim is not None])

    results: list[Settled] = [STALE] * len(batch)
    locked: list[tuple[int, Settlement, Claim]] = []
    for place, (item, claim) in enumerate(zip(batch, asked, strict=True)):
        if claim is not None and claim in busy:
            text = f"job {claim.job} is still ours, but another connection has locked it"
            results[place] = Failed(ErrorKind.TRANSIENT, text)
        elif claim is not None and claim in mine:
            mine.discard(claim)  # a second settlement of the same claim is stale
            locked.append((place, item, claim))

    moves = [item.to for _, item, _ in locked if isinstance(item, Move)]
    stored = iter(await store(moves) if moves else ())
    commands: list[bytes] = []
    for place, item, claim in locked:
        outcome = next(stored) if isinstance(item, Move) else STORED
        # G3: a Move whose successor is not certainly stored keeps its source.
        results[place] = DONE if isinstance(outcome, Stored) else outcome
        commands.append(_end(item, claim, is_stored=isinstance(outcome, Stored)))

    try:
        replies = await connection.ask(*commands)
    except ConnectionLost as error:  # the commands may have been written, and done
        for place, _, _ in locked:
            results[place] = Unknown(str(error), error)
        return results
    for (place, _, _), reply in zip(locked, replies, strict=True):
        if reply.word not in ("DELETED", "RELEASED"):
            results[place] = STALE  # the lock itself has ended: this connection was silent too long
    return results


def _end(item: Settlement, claim: Claim, *, is_stored: bool) -> bytes:
    """Return the command that ends the lock on a job."""
    if not is_stored:
        # Still leased. The owner's next renewal sets the length again.
        return claims.release(claim.job, claim.leased, claims.TTR)
    if isinstance(item, Release):
        return claims.release(claim.job, claim.released)
    return claims.delete(claim.job)


async def renew(connection: Connection, receipts: Sequence[bytes], lease: float) -> list[bool]:
    """Extend leases to `lease` seconds from now; False for one that is lost."""
    asked = [Claim.of(receipt) for receipt in receipts]
    mine, busy = await claims.lock(connection, [claim for claim in asked if claim is not None])

    held = list(mine)
    renewed = dict(zip(held, await claims.lease(connection, held, lease), strict=True))
    # Locked with our token: a settlement or another renewal of the same claim is under way.
    renewed |= dict.fromkeys(busy, True)
    return [claim is not None and renewed.get(claim, False) for claim in asked]


async def give_back(connection: Connection, ended: Mapping[Claim, int]) -> None:
    """Let leases end now. The jobs get these priority numbers."""
    mine, _ = await claims.lock(connection, ended)
    await connection.ask(*(claims.release(claim.job, ended[claim]) for claim in mine))
