"""Random workflows in random orders, with crashes, duplicates and lost messages.

Senders, workers, relays and the others are step machines. Between any two steps another one may go
on, and each may die. A schedule follows from its seed alone, so a failure can be repeated.
"""
