"""From audio and shards to batches."""
