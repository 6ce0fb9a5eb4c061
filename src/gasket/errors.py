"""Every error that Gasket raises on purpose, outside the migrator (which has its own tree).

An exception's docstring is its message where none is given.

GasketError
├── SettingsError            a setting is missing or wrong: the process does not start
├── EmbeddedDatabaseError    the embedded PostgreSQL cannot run here
├── UnauthorizedError        401
├── InvalidInputError        400
├── NotFoundError            404
└── ConflictError            409
    ├── NameTakenError
    ├── InUseError
    ├── KeyStateError
    └── KeyLimitError
"""

from __future__ import annotations


class GasketError(Exception):
    """Gasket could not do what was asked."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class SettingsError(GasketError):
    """A setting is missing or wrong."""


class EmbeddedDatabaseError(GasketError):
    """The embedded PostgreSQL cannot run here; set DATABASE_URL to use a server of your own."""


class UnauthorizedError(GasketError):
    """This needs `Authorization: Bearer <admin token>` with a valid admin token."""


class InvalidInputError(GasketError):
    """The request's values are not valid."""


class NotFoundError(GasketError):
    """There is no such object."""


class ConflictError(GasketError):
    """The request conflicts with the state that things are in."""


class NameTakenError(ConflictError):
    """The name is taken."""


class InUseError(ConflictError):
    """The object is in use and cannot be deleted."""


class KeyStateError(ConflictError):
    """The key's state does not allow this."""


class KeyLimitError(ConflictError):
    """The user has as many active keys as the profile allows."""
