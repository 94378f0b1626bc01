"""One backend kept open, and the topology declared on it."""
