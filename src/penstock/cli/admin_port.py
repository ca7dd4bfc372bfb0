"""Asking a running server's admin port: one request, one JSON document. Waits for the answer, 10 s at most.

Not here: what is asked and what the answer means (`models.py`, `limits.py`).
"""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from penstock.core.errors import ConfigError, UpstreamError

__all__ = ["ADMIN_URL", "admin_error", "ask_admin"]

ADMIN_URL = "http://127.0.0.1:8002"
_TIMEOUT_S = 10.0


def ask_admin(url: str, target: str) -> tuple[int, Any]:
    """Return the status and the document that the admin port at `url` answers to `GET target`; None if it is not JSON.

    Raises:
        ConfigError: `url` is not http://HOST:PORT.
        UpstreamError: Nothing there answers. Start a server, or give the right URL.
    """
    wrong_url = ConfigError(f"--url: expected http://HOST:PORT, got {url!r}. Use e.g. {ADMIN_URL}.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise wrong_url from error
    if not host or parts.scheme != "http" or parts.query or parts.fragment or parts.username is not None:
        raise wrong_url
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}{target}")
        answer = connection.getresponse()
        status, body = answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise admin_error(url, f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
    try:
        return status, json.loads(body)
    except ValueError:
        return status, None


def admin_error(url: str, got: str) -> UpstreamError:
    """Return the error that says that no Penstock is at `url`, and what to do."""
    cure = "Start one with `penstock serve`, or give its admin port with --url (its ready line says where that is)."
    return UpstreamError(f"expected a Penstock admin port at {url}, got {got}. {cure}")
