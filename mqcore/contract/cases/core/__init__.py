"""Profile *core*: opening, declaring, publishing, receiving, closing.

Every backend must pass all of it.
"""
