"""Tuning: tasks and their wordings, examples, the model that is built, the trainer."""
