"""Limits in configuration: every mistake is named with its key, and what is right becomes limits of `core`."""

import json
from pathlib import Path

import msgspec
import pytest

from penstock.cli.config import ServeConfig, check_exposure, load_config, with_overrides
from penstock.cli.config_sections import Address
from penstock.core.errors import ConfigError
from penstock.core.limits import ConcurrencyLimit, Cost, Failover, Level, Limit, LimitSettings, RateLimit, Unreachable

MODELS = '[models.sum]\npath = "sum.py"\n[models.digits]\npath = "sum.py"\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with one Python model."""
    (tmp_path / "sum.py").touch()
    return tmp_path


def load(home: Path, text: str) -> ServeConfig:
    """Load `text`, with two models, as a configuration."""
    (home / "penstock.toml").write_text(MODELS + text)
    return load_config(home / "penstock.toml")


def complain(home: Path, text: str) -> list[str]:
    """Return what loading `text` complains of, one string per mistake."""
    with pytest.raises(ConfigError) as caught:
        load(home, text)
    return [line.strip() for line in caught.value.message.split("\n")[1:]]


def limit(home: Path, keys: str) -> Limit:
    """Load one limit, at the level of users."""
    (found,) = load(home, f'[limits.a]\nlevel = "user"\n{keys}\n').limits.limits
    return found


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ('rate = "100/s"', (100, 1_000_000, 100, Cost.REQUESTS)),
        ('rate = "100/s"\nburst = 200', (100, 1_000_000, 200, Cost.REQUESTS)),
        ('rate = "100/s burst 200"\ncost = "rows"', (100, 1_000_000, 200, Cost.ROWS)),
        ('rate = "1000 tokens/min burst 5000"', (1_000, 60_000_000, 5_000, Cost.TOKENS)),
        ('tokens = 5\nper = "500ms"', (5, 500_000, 5, Cost.REQUESTS)),
        ('tokens = 5\nper = "1 h"\nburst = 1\ncost = "tokens"', (5, 3_600_000_000, 1, Cost.TOKENS)),
        ('tokens = 1\nper = "1d"', (1, 86_400_000_000, 1, Cost.REQUESTS)),
        ('tokens = 7\nper = "1m"', (7, 60_000_000, 7, Cost.REQUESTS)),
    ],
)
def test_either_form_of_a_rate_becomes_the_same_limit(
    home: Path, keys: str, expected: tuple[int, int, int, Cost]
) -> None:
    """Text, or tokens and per; the burst is one period's tokens unless given."""
    assert limit(home, keys) == RateLimit("a", Level.USER, *expected)


def test_every_setting_of_a_limit_arrives(home: Path) -> None:
    """Level, models, what to do without the authority and after its loss, and the split are as written."""
    text = (
        '[limits.a]\nlevel = "tenant"\nrate = "9/s"\nmodels = ["digits"]\nunreachable = "closed"\nfailover = "hard"\n'
        'split = 3\n[limits.b]\nlevel = "global"\nconcurrent = 4\nunreachable = "open"\nslot_ttl_s = 2.5\n'
    )
    rate = RateLimit(
        "a", Level.TENANT, 9, 1_000_000, 9, Cost.REQUESTS, ("digits",), Unreachable.CLOSED, Failover.HARD, 3
    )
    slots = ConcurrencyLimit("b", Level.GLOBAL, 4, (), Unreachable.OPEN, 2_500_000)
    assert load(home, text).limits.limits == (rate, slots)


def test_tiers_redis_and_limiting_arrive(home: Path) -> None:
    """Tiers keep their limits, times become µs, the log's path is absolute, and so nothing said is lost on the way."""
    text = (
        '[limits.a]\nlevel = "user"\nrate = "1/s"\n[tiers.pro]\nlimits = ["a"]\n[tiers.free]\nlimits = []\n'
        '[redis]\nurl = "redis://127.0.0.1:6379"\nprefix = "x"\neviction = "warn"\nlag_s_max = 0.5\n'
        '[limiting]\ndeadline_ms = 5.5\nlease_ms = 250\ndecision_log = "decisions.ndjson"\n'
    )
    settings = load(home, text).limits
    assert settings == LimitSettings(
        limits=(RateLimit("a", Level.USER, 1, 1_000_000, 1),),
        tiers=(("pro", ("a",)), ("free", ())),
        deadline_us=5_500,
        lease_us=250_000,
        redis="redis://127.0.0.1:6379",
        prefix="x",
        eviction="warn",
        lag_us_max=500_000,
        decision_log=str(home / "decisions.ndjson"),
    )
    assert [found.name for found in settings.of("pro", "sum")] == ["a"]
    assert settings.of("free", "sum") == settings.of("", "sum") == ()


def test_settings_survive_the_way_to_a_gateway(home: Path) -> None:
    """Both kinds of limits come out of JSON as what they were."""
    text = '[limits.a]\nlevel = "user"\nrate = "1/s"\n[limits.b]\nlevel = "model"\nconcurrent = 2\nmodels = ["sum"]\n'
    settings = load(home, text).limits
    assert len(settings.limits) == 2
    assert msgspec.json.decode(msgspec.json.encode(settings), type=LimitSettings) == settings


def test_without_sections_nothing_is_limited_and_nobody_needs_a_key(home: Path) -> None:
    """The defaults of the file are those of the code."""
    config = load(home, "")
    assert (config.limits, config.requires_key) == (LimitSettings(), False)
    assert load(home, "[identity]\nrequired = true\n").requires_key


HUGE = 10**12 + 1
INEXACT = (
    "expected numbers that can be counted exactly below 2^53; use a shorter per, a smaller burst, or tokens that divide"
    " the period"
)


@pytest.mark.parametrize(
    ("keys", "complaints"),
    [
        ("", ['limits.a: expected rate, e.g. "100/s", or tokens and per, or concurrent; got none of them']),
        ('rate = "0/s"', ["limits.a.rate: expected a whole number of 1 to 1,000,000,000,000, got '0'"]),
        ('rate = "-5/s"', ["limits.a.rate: expected a whole number of 1 to 1,000,000,000,000, got '-5'"]),
        (f'rate = "{HUGE}/s"', [f"limits.a.rate: expected a whole number of 1 to 1,000,000,000,000, got '{HUGE}'"]),
        (
            'rate = "5/week"',
            ["limits.a.rate: period: expected a time in one of us, ms, s, min, h, d, such as s or 10s, got 'week'"],
        ),
        (
            'rate = "fast"',
            ["limits.a.rate: expected a rate such as 100/s, 500 rows/min or 1000 tokens/min burst 5000, got 'fast'"],
        ),
        ("rate = 100", ["limits.a.rate: expected a string, got 100"]),
        ('tokens = 0\nper = "1s"', ["limits.a.tokens: expected at least 1, got 0"]),
        ('tokens = -1\nper = "1s"', ["limits.a.tokens: expected at least 1, got -1"]),
        (f'tokens = {HUGE}\nper = "1s"', [f"limits.a.tokens: expected at most 1e+12, got {HUGE}"]),
        ('tokens = 1.5\nper = "1s"', ["limits.a.tokens: expected an integer, got 1.5"]),
        (
            'tokens = 1\nper = "1 week"',
            ["limits.a.per: expected a time in one of us, ms, s, min, h, d, such as s or 10s, got '1week'"],
        ),
        ('tokens = 1\nper = ""', ["limits.a.per: expected a period such as 1s, 500ms or 1d, got ''"]),
        (
            'tokens = 1\nper = "1s burst 5"',
            ["limits.a.per: expected a time in one of us, ms, s, min, h, d, such as s or 10s, got '1sburst5'"],
        ),
        ('tokens = 1\nper = "0s"', ["limits.a.per: expected a whole number of 1 to 31,622,400,000,000, got '0'"]),
        ('tokens = 1\nper = "9999d"', ["limits.a.per: expected at most 366 days, got '9999d'"]),
        ("tokens = 1", ["limits.a.per: expected a value, because there is tokens; the two go together"]),
        ('per = "1s"', ["limits.a.tokens: expected a value, because there is per; the two go together"]),
        ('rate = "1/s"\nburst = 0', ["limits.a.burst: expected at least 1, got 0"]),
        (
            'rate = "1/s burst 2"\nburst = 2',
            ["limits.a.burst: expected only where rate does not say it, got both; rate is '1/s burst 2'"],
        ),
        (
            'rate = "1 row/s"\ncost = "tokens"\ntokens = 5\nper = "1s"',
            [
                "limits.a.tokens: expected only where rate does not say it, got both; rate is '1 row/s'",
                "limits.a.per: expected only where rate does not say it, got both; rate is '1 row/s'",
                "limits.a.cost: expected only where rate does not say it, got both; rate is '1 row/s'",
            ],
        ),
        (
            'rate = "1/s"\ncost = "token"',
            ["limits.a.cost: expected 'requests', 'rows' or 'tokens', got \"token\""],
        ),
        ('rate = "5/s"\nsplit = 6', ["limits.a.split: expected at most burst (5), got 6"]),
        (
            'rate = "7/366d burst 1000000"',
            [f"limits.a: 7 tokens per 31622400000000 µs with burst 1000000: {INEXACT}"],
        ),
        (
            'rate = "1/s"\nunreachable = "maybe"\nfailover = "fast"',
            [
                "limits.a.unreachable: expected 'closed', 'open' or 'local_share', got \"maybe\"",
                "limits.a.failover: expected 'soft' or 'hard', got \"fast\"",
            ],
        ),
        (
            'rate = "1/s"\nmodels = ["sum", "gone"]',
            ["limits.a.models[1]: expected the name of a [models.NAME] section (there is sum, digits), got 'gone'"],
        ),
        ('rate = "1/s"\nslot_ttl_s = 5', ["limits.a.slot_ttl_s: expected only with concurrent"]),
        ("concurrent = 0", ["limits.a.concurrent: expected at least 1, got 0"]),
        ("concurrent = 1\nslot_ttl_s = 0", ["limits.a.slot_ttl_s: expected at least 1, got 0"]),
        (
            'concurrent = 1\nrate = "1/s"\nburst = 5\nfailover = "soft"',
            [
                f"limits.a.{key}: expected only without concurrent, which limits no rate"
                for key in ("rate", "burst", "failover")
            ],
        ),
        ('rate = "1/s"\nbrust = 5', ["limits.a.brust: unknown key; did you mean burst?"]),
    ],
)
def test_a_mistake_in_a_limit_is_named(home: Path, keys: str, complaints: list[str]) -> None:
    """Each mistake is told once, with its key, what was expected and what was got."""
    assert complain(home, f'[limits.a]\nlevel = "user"\n{keys}\n') == complaints


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            '[limits.a]\nlevel = "team"\nrate = "1/s"',
            "limits.a.level: expected 'user', 'tenant', 'model' or 'global', got \"team\"",
        ),
        ('[limits.a]\nrate = "1/s"', "limits.a.level: expected a value, the key is required"),
        (
            '[limits."a b"]\nlevel = "user"\nrate = "1/s"',
            "limits.a b: expected a name of letters, digits, '.', '_' and '-', got \"a b\"",
        ),
        (
            '[tiers.pro]\nlimits = ["gone"]',
            "tiers.pro.limits[0]: expected the name of a [limits.NAME] section (there is none), got 'gone'",
        ),
        ("[tiers.pro]\n", "tiers.pro.limits: expected a value, the key is required"),
        ('[redis]\nurl = "localhost"', "redis.url: expected a URL that begins with redis://"),
        (
            '[redis]\nurl = "env:PENSTOCK_NO_SUCH_VARIABLE"',
            "redis.url: expected a URL in the environment variable PENSTOCK_NO_SUCH_VARIABLE, got nothing",
        ),
        ('[redis]\nprefix = "a:b"', "redis.prefix: expected a name of 1 to 64 letters"),
        ('[redis]\neviction = "ignore"', "redis.eviction: expected 'refuse' or 'warn', got \"ignore\""),
        ("[redis]\nlag_s_max = -1", "redis.lag_s_max: expected at least 0, got -1"),
        ("[limiting]\ndeadline_ms = 0.5", "limiting.deadline_ms: expected at least 1, got 0.5"),
        ("[limiting]\ndeadline_ms = 1001", "limiting.deadline_ms: expected at most 1000, got 1001"),
        ("[limiting]\nlease_ms = 2001", "limiting.lease_ms: expected at most 2000, got 2001"),
        (
            '[limiting]\ndecision_log = "gone/log"',
            "limiting.decision_log: expected a file in a directory that exists, got 'gone/log'",
        ),
        (
            '[limiting]\ndecision_log = "."',
            "limiting.decision_log: expected a file in a directory that exists, got '.'",
        ),
        ("[identity]\nrequired = 1", "identity.required: expected true or false, got 1"),
    ],
)
def test_a_mistake_around_limits_is_named(home: Path, text: str, complaint: str) -> None:
    """Levels, names, tiers, Redis and limiting are checked like the rest."""
    (said,) = complain(home, text + "\n")
    assert said.startswith(complaint)


def test_a_password_in_the_file_is_refused_and_not_repeated(home: Path) -> None:
    """The complaint names the key and the way out."""
    (said,) = complain(home, '[redis]\nurl = "redis://:hunter2@127.0.0.1"\n')
    assert said.startswith("redis.url: expected no password here")
    assert '"env:PENSTOCK_REDIS_URL"' in said
    assert "hunter2" not in said


def test_all_mistakes_are_reported_at_once(home: Path) -> None:
    """Mistakes in limits, tiers, Redis and models come in one message."""
    text = (
        '[limits.a]\nlevel = "user"\nrate = "0/s"\n[limits.b]\nlevel = "user"\n'
        'models = ["gone"]\nrate = "1/day burst"\n[tiers.pro]\nlimits = ["a", "c"]\n[redis]\nurl = "env:"\n'
        '[models.bad]\npath = "gone.py"\n'
    )
    assert [line.partition(": ")[0] for line in complain(home, text)] == [
        "models.bad.path",
        "limits.a.rate",
        "limits.b.models[0]",
        "limits.b.rate",
        "tiers.pro.limits[1]",
        "redis.url",
    ]


def test_the_url_of_a_variable_stays_in_the_environment(home: Path) -> None:
    """What gateways are told, and so every argument list, has the variable's name and not what it holds."""
    variable = "PATH"  # is set wherever tests run, and is no URL: the complaint shows that it was looked up
    assert complain(home, f'[redis]\nurl = "env:{variable}"\n')[0].startswith(
        f"redis.url: expected a URL in the environment variable {variable} that begins with"
    )
    config = with_overrides(
        ServeConfig(), http=None, admin=None, gateways=None, state=None, redis="redis://127.0.0.1:6379/3"
    )
    assert json.loads(msgspec.json.encode(config.limits))["redis"] == "redis://127.0.0.1:6379/3"


def test_the_command_line_names_another_redis() -> None:
    """--redis replaces redis.url alone; one that is wrong, or has a password, is refused by the option's name."""
    config = ServeConfig(limits=LimitSettings(redis="redis://a", prefix="x"))

    def override(redis: str | None) -> ServeConfig:
        return with_overrides(config, http=None, admin=None, gateways=None, state=None, redis=redis)

    assert override(None) == config
    assert override("redis://b").limits == LimitSettings(redis="redis://b", prefix="x")
    with pytest.raises(ConfigError, match=r"^--redis: expected a URL that begins with redis://"):
        override("b")
    with pytest.raises(ConfigError, match=r"^--redis: expected no password here"):
        override("redis://:hunter2@b")


def test_who_requires_keys_may_be_reached_from_elsewhere() -> None:
    """With keys required the inference port may be beyond loopback; the admin port, which asks for none, may not."""
    outside = Address("10.0.0.1", 1)
    check_exposure(ServeConfig(http=outside, requires_key=True))
    with pytest.raises(
        ConfigError, match=r"server.http = .* identity.required = true .* server.allow_anonymous = true"
    ):
        check_exposure(ServeConfig(http=outside))
    with pytest.raises(ConfigError, match=r"^server.admin = 10.0.0.1:1: expected a loopback address"):
        check_exposure(ServeConfig(admin=outside, requires_key=True))
