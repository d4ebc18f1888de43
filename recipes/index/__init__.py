"""Index: embeddings, vocabulary, towers, and the refresh of the SID table."""
