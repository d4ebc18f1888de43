"""Ranking: the co-occurrence memory and the re-ranker."""
