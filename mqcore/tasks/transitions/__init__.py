"""What may happen to a task: one set of transitions, which memory and SQL run as it is.

It is pure: it reads and writes rows through `Rows`, and knows no broker, clock or event loop. A
store that cannot run it inside its transaction (Redis) must act exactly as it does; the kit
`mqcore.contract.store` compares the two.
"""
