"""GLUE: nine tasks that judge a sentence or a pair of sentences (paper section 4.1)."""
