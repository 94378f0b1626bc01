"""The task store in a database: `sqlite://` and `postgresql://`, in the file of a queue or another.

`sqlite` and `postgres` register the stores. `store` is the seam of `mqcore.tasks`: it gathers what
one turn of the event loop has to change, and runs it on a thread. `rows` has the rows of one
transaction, `columns` what is in a row, and `statements` the statements that both databases read.

Only a process with tasks imports this package.
"""
