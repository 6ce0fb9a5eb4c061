"""The errors of a start and of `/api`; the migrator and the gateway have error trees of their own.

An exception's docstring is its default message. The numbers are the HTTP status with which `gasket.http` answers.

GasketError
├── SettingsError            a setting is missing or wrong: the process does not start
├── EmbeddedDatabaseError    the embedded PostgreSQL cannot run here
├── UnauthorizedError        401
├── ForbiddenError           403
├── CsrfError                403
├── GuessingError            429
├── SignInError              400
├── InvalidInputError        400
├── NotFoundError            404
├── ConflictError            409
│   ├── NameTakenError
│   ├── InUseError
│   ├── KeyStateError
│   └── KeyLimitError
└── UnavailableError         503, the client should try again
    ├── DatabaseAwayError
    ├── DatabaseBusyError
    ├── SchemaNotReadyError
    └── IdentityProviderAwayError
"""

from __future__ import annotations

import math


class GasketError(Exception):
    """Gasket could not do this."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class SettingsError(GasketError):
    """A setting is missing or wrong."""


class EmbeddedDatabaseError(GasketError):
    """The embedded PostgreSQL cannot run here; set DATABASE_URL to use a server of your own."""


class UnauthorizedError(GasketError):
    """This needs `Authorization: Bearer <token>` with a valid token, or a session."""


class ForbiddenError(GasketError):
    """This role may not do this."""


class CsrfError(GasketError):
    """A session needs its CSRF token to change something: load the page again, and send the form from there."""


class GuessingError(GasketError):
    """Too many wrong credentials came from this address. A right one is taken at any time."""

    def __init__(self, wait: float = 60.0) -> None:
        super().__init__()
        self.wait = wait
        self.headers = {"Retry-After": str(math.ceil(wait))}


class SignInError(GasketError):
    """The sign-in did not succeed; begin it again."""


class InvalidInputError(GasketError):
    """The request's values are not valid."""

    def __init__(self, message: str | None = None, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class NotFoundError(GasketError):
    """There is no such object."""


class ConflictError(GasketError):
    """The request conflicts with the present state."""


class NameTakenError(ConflictError):
    """The name is taken."""


class InUseError(ConflictError):
    """The object is in use and cannot be deleted."""


class KeyStateError(ConflictError):
    """The key's state does not allow this."""


class KeyLimitError(ConflictError):
    """The user has as many active keys as the profile allows."""


class UnavailableError(GasketError):
    """Gasket cannot answer now; try again soon."""


class DatabaseAwayError(UnavailableError):
    """The database cannot be reached; nothing was changed, try again soon."""


class DatabaseBusyError(UnavailableError):
    """The database is too busy to answer; nothing was changed, try again soon."""


class SchemaNotReadyError(UnavailableError):
    """The schema is being changed, or was taken back, and lacks what this release needs; nothing was changed."""


class IdentityProviderAwayError(UnavailableError):
    """The identity provider cannot be asked; try again soon."""
