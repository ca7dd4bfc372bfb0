"""Reading the URL. What needs a server is tested live."""

import pytest

from penstock.core.errors import ConfigError
from penstock.load.discovery import parse_target


@pytest.mark.parametrize(
    ("url", "authority", "path"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", "/v2/models/m%20x/infer"),
        ("http://127.0.0.1:8000/", "127.0.0.1:8000", "/v2/models/m%20x/infer"),
        ("http://host/prefix/", "host:80", "/prefix/v2/models/m%20x/infer"),
        ("http://[::1]:9", "[::1]:9", "/v2/models/m%20x/infer"),
    ],
)
def test_good_urls(url: str, authority: str, path: str) -> None:
    """Host, port and prefix come from the URL; the model name is made safe for it."""
    target = parse_target(url, "m x")
    assert (target.authority, target.infer_path) == (authority, path)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "https://h", "http://", "http://h:x", "http://h:99999", "http://h/?q", "http://u@h"]
)
def test_bad_urls_say_what_was_expected(url: str) -> None:
    """A URL of another form is the operator's error."""
    with pytest.raises(ConfigError, match="URL: expected http://HOST:PORT, got"):
        parse_target(url, "m")


def test_an_empty_model_name_is_refused() -> None:
    """No name, no model."""
    with pytest.raises(ConfigError, match="--model: expected"):
        parse_target("http://h", "")
