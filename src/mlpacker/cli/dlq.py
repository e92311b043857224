"""`mlpacker dlq`."""
