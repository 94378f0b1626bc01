"""Tasks on any broker: results, workflows and schedules, with one table that holds the truth.

`model` is what is stored, `transitions` is what may happen to it, and `store` is where it is
stored. A user's interface is built on these three and does not exist yet.
"""
