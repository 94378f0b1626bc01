"""The same broker for programs without asyncio: every method blocks, and is one line.

    with Broker.connect("redis://localhost/0") as broker:
        broker.publish(orders, Order(id=1), priority=8)
        with broker.consume(orders) as deliveries:
            for delivery in deliveries:
                delivery.ack()

One message: the call is handed to an event loop in a daemon thread of the broker's own,
`mqcore.Broker` does there what it always does, and the caller waits for the ending. Nothing is
decided here, so both APIs act alike (G17); a test compares their signatures.

All of it may be used from several threads at once. Ctrl-C cancels the call that waits. Where an
event loop is running a call would stand still with all that lives in that loop, so it is refused:
use `mqcore.Broker` and `await` there, or another thread. Middleware runs in the broker's thread.
Close a broker, best by `with`: one that is forgotten keeps no program from ending, but what its
consumers hold then comes back as after a crash (G4). After `os.fork` connect a new one: threads
stay behind.
"""

from mqcore.sync.facade import Broker, Consumer, DeadLetters, Producer, Received

__all__ = ["Broker", "Consumer", "DeadLetters", "Producer", "Received"]
