"""The cases: a module or a folder for each profile.

They call the backend interface, and Broker and Worker where core keeps the guarantee.
"""
