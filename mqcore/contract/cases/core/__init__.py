"""Profile *core*: opening, declaring, publishing, receiving, closing.

Every backend passes all of it.
"""
