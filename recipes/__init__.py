"""Recipes: a folder per stage, in the order a run walks them, and the scripts that run them."""
