"""Weights of other people: reading and writing them, and the report on what was loaded."""
