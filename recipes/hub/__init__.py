"""Hub: what may leave, the model card, publishing."""
