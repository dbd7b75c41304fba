"""Documents, encodings and token shards. No module here imports torch."""
