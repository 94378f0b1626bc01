"""The cases, a module for each profile.

Written against the seam, and through Broker and Worker where a guarantee lives there.
"""
