"""The delivery kit: whether a stream loses rows, tried on a real broker with faults, and judged by a ledger."""
