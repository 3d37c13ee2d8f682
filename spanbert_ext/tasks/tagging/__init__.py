"""Entities and other labelled spans of words: BIO and BILOU tagging, span scoring."""
