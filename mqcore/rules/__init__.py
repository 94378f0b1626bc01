"""What is decided. Pure: no asyncio, no sockets, no threads."""
