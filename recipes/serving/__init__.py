"""Serving: what answers requests, on an Inference Endpoint and on one's own machine."""
