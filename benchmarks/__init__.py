"""Benchmarks: one command per published figure, one JSON per result."""
