"""Commands to running workers, and their answers, through the broker.

    Control.send ─► mq.control.<worker> ─► ControlServer ─► Commands ─► the worker
    answers ◄────── mq.reply.… ◄───────────────┘

Each worker has a temporary queue for commands, bound to the fanout router `mq.control` where the
broker can bind it. No store of tasks is necessary. A command is executed at most once.
"""
