"""Quix Streams over Kafka, one at a time: its batches are windows with state. Checkpoints as it has them, every 5 seconds."""

from plain import GROUP, HOST, PORT, SINK, SOURCE, label
from quixstreams import Application

app = Application(
    broker_address=f"{HOST}:{PORT}",
    consumer_group=GROUP,
    auto_offset_reset="earliest",
    auto_create_topics=False,
    loglevel="WARNING",
)
rows = app.dataframe(app.topic(SOURCE, value_deserializer="json"))
rows.apply(lambda row: {"predict": label(row)}).to_topic(app.topic(SINK, value_serializer="json"))
app.run()
