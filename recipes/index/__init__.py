"""Index: embeddings, vocabulary, towers, the SID table and its refresh."""
