"""Settings: declared as dataclasses, read from files and the command line, stored with a run."""
