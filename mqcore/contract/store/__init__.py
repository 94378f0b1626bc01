"""The contract of a task store: tests that it does what `mqcore.tasks.store.seam` promises.

`cases` are single statements. `equality` makes the same random changes in a store and in the one in
memory. `explorer` runs random workflows in random orders, with crashes and lost messages.
"""
