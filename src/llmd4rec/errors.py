"""Errors a person can act on: what is wrong, where, and what to do about it.

Everything that can go wrong because of a file, a setting, the network or the disk is raised as a subclass of
:class:`LLMD4RecError`. The command line prints the message and the remedy and exits with :attr:`exit_code`;
anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations


class LLMD4RecError(Exception):
    """Base of all errors meant for the user.

    Args:
        what: one sentence that names the file, row, field or setting that is wrong.
        remedy: one sentence that says what to do next.
    """

    exit_code = 2

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n  {self.remedy}" if self.remedy else self.what


class DataError(LLMD4RecError):
    """An input file, a frame or a prepared folder cannot be used as it is."""


class ConfigError(LLMD4RecError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class FetchError(LLMD4RecError):
    """A download failed from every origin, or its checksum does not match."""


class ModelError(LLMD4RecError):
    """A language model or encoder cannot be loaded or does not fit the task."""


class RunError(LLMD4RecError):
    """A run folder is missing, damaged, in use, or belongs to other data."""


class Diverged(RunError):
    """A training has diverged; with the same settings it would do so again."""
