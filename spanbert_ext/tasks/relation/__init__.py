"""Relation classification: what holds between two marked entities of a sentence."""
