"""How a message comes in: receiving, leases, isolation, and the pull API."""
