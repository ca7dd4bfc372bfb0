"""The error tree. The class says whose fault it was; the message says what was expected and what was got.

PenstockError
├── CallerError            4xx: the caller must change the request
│   ├── InvalidInput       400, may name the row at fault
│   └── NotFound           404
├── Overloaded             429/503: come back after `retry_after_us`
├── UpstreamError          502/504: something behind the gateway failed or was too slow
├── ConfigError            at start only: the operator must change a setting
└── Bug                    500: ours; please report it

Source of the status codes: RFC 9110 section 15.
"""

__all__ = [
    "Bug",
    "CallerError",
    "ConfigError",
    "InvalidInput",
    "NotFound",
    "Overloaded",
    "PenstockError",
    "UpstreamError",
]


class PenstockError(Exception):
    """Root of every error raised on purpose; `status` is the HTTP status it maps to."""

    status: int = 500

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if status is not None:
            self.status = status


class CallerError(PenstockError):
    """The request cannot succeed as sent. Change it; retrying unchanged is useless."""

    status = 400


class InvalidInput(CallerError):
    """An input is wrong. Models may raise it; with `row` only the request that owns that batch row fails.

    Args:
        message: What was expected and what was got, naming the tensor.
        row: Index into the batch given to the model, or None when it cannot be attributed.
    """

    def __init__(self, message: str, *, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class NotFound(CallerError):
    """No such route, model or version. List what exists before retrying."""

    status = 404


class Overloaded(PenstockError):
    """There is no room for the request now. Retry after `retry_after_us` microseconds."""

    status = 503

    def __init__(self, message: str, *, retry_after_us: int, status: int | None = None) -> None:
        super().__init__(message, status=status)
        self.retry_after_us = retry_after_us


class UpstreamError(PenstockError):
    """A replica or provider failed (502) or was too slow (504). A retry may succeed."""

    status = 502


class ConfigError(PenstockError):
    """A setting is wrong. Raised at start only; the message gives the path, what was expected and what was got."""


class Bug(PenstockError):
    """An invariant of ours does not hold. Nothing the caller does helps; please report it."""
