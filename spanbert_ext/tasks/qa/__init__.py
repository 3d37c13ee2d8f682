"""Extractive question answering: SQuAD 1.1, SQuAD 2.0 and the five MRQA sets."""
