"""The command line: one file for each verb that is more than a call, and what a user sees."""

from spanbert_ext.cli.command import main

__all__ = ["main"]
