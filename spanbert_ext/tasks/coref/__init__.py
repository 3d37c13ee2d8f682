"""Coreference resolution: who or what the mentions of a document refer to."""
