"""Faults a user can expect, each with the exit code of the command that meets it.

The message says what happened, where (file, line, tensor or key), why it matters and what to do.
The command line prints it as one line without a traceback; library users catch the class.
"""


class SpanBertError(Exception):
    """Base of every expected fault; the command exits with `exit_code`."""

    exit_code = 70


class ConfigError(SpanBertError):
    """A setting is unknown, of the wrong type or impossible; found before any model is built."""

    exit_code = 2


class DataError(SpanBertError):
    """Input text, a corpus or a tokenizer cannot be used as it is."""

    exit_code = 65


class OutOfMemory(SpanBertError):
    """The memory of the host or of the device does not hold what the settings ask for."""

    exit_code = 71


class StorageError(SpanBertError):
    """A file or directory could not be read or written whole."""

    exit_code = 74


class Preempted(SpanBertError):
    """The run was asked to stop; its state is saved and the next start continues it."""

    exit_code = 75


class NumericsError(SpanBertError):
    """Training produced non-finite numbers and was stopped at the last good checkpoint, or a model
    gives such numbers for a text."""

    exit_code = 76


class RankLost(SpanBertError):
    """Another process of the run died or stopped answering; the next start continues."""

    exit_code = 75


class ReportedElsewhere(SpanBertError):
    """A fault that another process of the run reports; this one only ends with its exit code."""

    def __init__(self, exit_code: int):
        super().__init__(f"reported by another process, exit code {exit_code}")
        self.exit_code = exit_code
