"""Schedules: when a task is sent by itself, and the scheduler that sends it.

`triggers` says when, `definition` is what the store keeps of a schedule, `due` decides what happens
at a moment, `scheduler` makes it happen, and `manage` lists and changes schedules.
"""
