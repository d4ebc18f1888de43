"""TTDS: the part that travels to the Hub."""
