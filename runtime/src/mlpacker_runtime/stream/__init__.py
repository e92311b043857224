"""Streams: a pipeline's answers over a broker, at least once for every row.

The way of a message: `brokers` (poll) → `intake` (is it a repeat; its rows, by `payloads`) → a lane (`scoring`: rows to a batch,
the engine, an outcome per row) → `publishing` (answers and dead letters, confirmed) → `tracking` (the finished prefix) →
`brokers` (commit). Nothing is committed before it is confirmed, nothing is confirmed by guess. `job` ties them together;
`worker` is the process. Models are asked in stage workers at the end of a hop, never here: a row that kills one is found
by the survivor, and a slow model keeps no broker waiting.
"""
