"""Errors that are for people: one line with what, where and what to do."""


class UserError(Exception):
    """Something the user can mend: one line saying what is wrong, where, and what to do."""

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A recipe key, value or combination that is not possible; exit code 2 (misuse)."""

    exit_code = 2
