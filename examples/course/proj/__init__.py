"""The project of the course on task queues: see the page README.md beside it."""
