"""The multi-process log: bytes in, rotating segments out. Knows nothing of events."""
