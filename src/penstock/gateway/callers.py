"""Who asks, and on what terms: read from the headers of a request, once for all requests with the same head.

Not here: keys (`identity.py`), the terms' headers (`terms.py`), what a caller may take (`limiter.py`).
"""

from collections.abc import Mapping

from penstock.core.limits import Principal
from penstock.gateway.identity import Identifier, settle_terms
from penstock.gateway.terms import Terms, TermsReader

__all__ = ["Caller", "Callers"]


class Caller:
    """Who asks, and on what terms."""

    __slots__ = ("principal", "terms")

    def __init__(self, principal: Principal, terms: Terms) -> None:
        self.principal = principal
        self.terms = terms


class Callers:
    """Reads callers from headers.

    Args:
        identifier: Knows keys.
    """

    __slots__ = ("_identifier", "_terms")

    def __init__(self, identifier: Identifier) -> None:
        self._identifier = identifier
        self._terms = TermsReader()

    def read(self, headers: Mapping[bytes, bytes]) -> Caller:
        """Return who sends these headers, names in lower case.

        Raises:
            CallerError: 401 or 403: the key is missing, unknown, or not allowed this. 400: a header is wrong.
        """
        principal = self._identifier.identify(headers)
        return Caller(principal, settle_terms(principal, self._terms.read(headers)))
