"""The errors that a start and `/api` raise on purpose; the migrator and the gateway have trees of their own.

An exception's docstring is its message where none is given. The numbers are the HTTP status that
`gasket.http` answers with.

GasketError
├── SettingsError            a setting is missing or wrong: the process does not start
├── EmbeddedDatabaseError    the embedded PostgreSQL cannot run here
├── UnauthorizedError        401
├── InvalidInputError        400
├── NotFoundError            404
├── ConflictError            409
│   ├── NameTakenError
│   ├── InUseError
│   ├── KeyStateError
│   └── KeyLimitError
└── UnavailableError         503, worth trying again
    ├── DatabaseAwayError
    └── DatabaseBusyError
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

    def __init__(self, message: str | None = None, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


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


class UnavailableError(GasketError):
    """Gasket cannot answer at this moment; try again soon."""


class DatabaseAwayError(UnavailableError):
    """The database cannot be reached; nothing was changed, try again soon."""


class DatabaseBusyError(UnavailableError):
    """The database is too busy to answer; nothing was changed, try again soon."""
