"""Real brokers of a test's own: on loopback, on free ports, with their data in a folder of the test's."""
