"""Errors for users: one line that says what is wrong, where, and what to do."""


class UserError(Exception):
    """An error that the user can fix; its message is one line."""

    exit_code = 1


class ConfigError(UserError):
    """An invalid key, value or combination of values; exit code 2 (misuse)."""

    exit_code = 2
