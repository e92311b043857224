"""Strict documents that a person writes: read with file, line and path in each error, and published as a JSON Schema.

`document` reads YAML into nodes that know where they stand. `kinds` says what a node may be; one declaration both reads
it and describes it in the schema, so that the two can't differ.
"""
