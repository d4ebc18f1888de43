"""Data: read and check the two tables, split them, generate the embedded data set."""
