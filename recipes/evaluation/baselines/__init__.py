"""Baselines: a file each, from a split to ranked lists."""
