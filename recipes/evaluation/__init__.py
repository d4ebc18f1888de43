"""Evaluation: metrics, baselines, and the report that a run ends with."""
