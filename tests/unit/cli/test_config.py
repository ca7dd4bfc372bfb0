"""Configuration: every mistake is named with key, value and expectation; what is right becomes the nouns of core."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.cli.config import (
    ServeConfig,
    check_exposure,
    config_schema,
    load_config,
    load_target,
    with_overrides,
)
from penstock.cli.config_sections import Address, parse_address
from penstock.core.errors import ConfigError
from penstock.core.models import Batching

ROOT = Path(__file__).parents[3]
MODEL_TOML = """
name = "digits"
version = "3"
description = "handwritten digits"
[batching]
size_max = 16
wait_ms_max = 1.5
[onnx]
intra_op_threads = 2
[[inputs]]
name = "pixels"
datatype = "FP32"
shape = [-1, 64]
finite = true
[[outputs]]
name = "label"
datatype = "INT64"
shape = [-1]
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with one Python model and one ONNX model."""
    (tmp_path / "sum.py").touch()
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "model.toml").write_text(MODEL_TOML)
    (tmp_path / "digits" / "model.onnx").touch()
    return tmp_path


def load(home: Path, text: str) -> ServeConfig:
    """Load `text` as a configuration."""
    (home / "penstock.toml").write_text(text)
    return load_config(home / "penstock.toml")


def complain(home: Path, text: str) -> str:
    """Return what loading `text` complains of, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(home, text)
    return caught.value.message.replace(f"{home}/", "")


SUM = '[models.sum]\npath = "sum.py"\n'
DIGITS = '[models.digits]\npath = "digits"\n'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = ", "expected TOML, got: Invalid value (at end of document)"),
        ("", "models: expected at least one [models.NAME] section, got none"),
        ("[sever]", "sever: unknown key; did you mean server?"),
        ("[server]\nhtpp = 1", "server.htpp: unknown key; did you mean http?"),
        ('[server]\nhttp = "8000"', "server.http: expected host:port with a port of 0-65535, e.g. 127.0.0.1:8000, got"),
        ('[server]\nhttp = "a:70000"', 'expected host:port with a port of 0-65535, e.g. 127.0.0.1:8000, got "a:70000"'),
        ('[server]\ngateways = "2"', 'server.gateways: expected an integer, got "2"'),
        ("[server]\ngateways = 0", "server.gateways: expected at least 1, got 0"),
        ("[server]\naccess_log = 1", "server.access_log: expected true or false, got 1"),
        ("[server]\ndrain_s = -1", "server.drain_s: expected at least 0, got -1"),
        ("[server]\ndrain_s = nan", "server.drain_s: expected a finite number, got NaN"),
        ("[server]\nlimits = 3", "server.limits: expected a table, got 3"),
        ("[server.limits]\nheader_timeout_ms = 0", "server.limits.header_timeout_ms: expected more than 0, got 0"),
        ("[models.sum]", "models.sum.path: expected a value, the key is required"),
        ('[models."a/b"]\npath = "sum.py"', "expected a name of letters, digits, '.', '_' and '-', got \"a/b\""),
        (
            SUM + "[models.sum.batching]\nsise_max = 8",
            "models.sum.batching.sise_max: unknown key; did you mean size_max?",
        ),
        (
            SUM + "[models.sum.batching]\nzzz = 8",
            "zzz: unknown key; expected one of policy, mode, size_max, wait_ms_max, eager",
        ),
        (
            SUM + '[models.sum.batching]\npolicy = "fair"',
            "models.sum.batching.policy: expected 'deadline', 'size_or_timeout' or 'adaptive', got \"fair\"",
        ),
        (
            SUM + '[models.sum.batching]\nmode = "fast"',
            "models.sum.batching.mode: expected 'latency', 'throughput' or 'fair', got \"fast\"",
        ),
        (
            SUM + '[models.sum.batching]\nwait_ms_max = 0\npolicy = "deadline"',
            'batching.wait_ms_max: expected only with policy = "size_or_timeout", not with "deadline", got 0',
        ),
        (
            SUM + '[models.sum.batching]\npolicy = "adaptive"\neager = false',
            'batching.eager: expected only with policy = "size_or_timeout", not with "adaptive", got false',
        ),
        (SUM + "[models.sum.batching]\neager = 1", "models.sum.batching.eager: expected true or false, got 1"),
        (SUM + "slo_ms = 0", "models.sum.slo_ms: expected more than 0, got 0"),
        (SUM + "slo_ms = 86400001", "models.sum.slo_ms: expected at most 86400000, got 86400001"),
        (
            SUM + "slo_ms = 50.5\ntimeout_ms = 50",
            "models.sum.slo_ms: expected at most timeout_ms, which is 50, got 50.5",
        ),
        (SUM + "weights = { a = 0 }", "models.sum.weights.a: expected at least 0.001, got 0"),
        (SUM + "weights = { a = -1.5 }", "models.sum.weights.a: expected at least 0.001, got -1.5"),
        (SUM + "weights = { a = inf }", "models.sum.weights.a: expected a finite number, got Infinity"),
        (SUM + "weights = { a = nan }", "models.sum.weights.a: expected a finite number, got NaN"),
        (SUM + "weights = { a = 1001 }", "models.sum.weights.a: expected at most 1000, got 1001"),
        (SUM + "weights = { a = true }", "models.sum.weights.a: expected a number, got true"),
        (SUM + 'weights = { "a b" = 1 }', "expected a name of 1 to 64 letters, digits, '.', '_' and '-', got \"a b\""),
        (SUM + f"weights = {{ {'a' * 65} = 1 }}", "expected a name of 1 to 64 letters, digits, '.', '_' and '-', got"),
        (SUM + "weights = [1]", "models.sum.weights: expected a table, got [1]"),
        (
            SUM + "[models.sum.replicas]\nmin = 0",
            "models.sum.replicas.min: expected at least 1, got 0",
        ),
        (SUM + 'version = "2"', "models.sum.version: expected only with an ONNX model"),
        (SUM + "[models.sum.onnx]\nintra_op_threads = 2", "models.sum.onnx: expected only with an ONNX model"),
        (SUM + 'runtime = "onnx"', "models.sum.path: 'sum.py': expected a .onnx file or a directory with model.toml"),
        (DIGITS + 'class = "A"', "models.digits.class: expected only with a .py file"),
        (DIGITS + "options = { a = 1 }", "models.digits.options: expected only with a .py file"),
        (DIGITS + 'version = "one"', 'models.digits.version: expected a string of digits, e.g. "1", got "one"'),
        ('[models.a]\npath = "gone.py"', "models.a.path: 'gone.py': expected a file, got nothing at gone.py"),
        ('[models.a]\npath = "gone"', "models.a.path: 'gone': expected a file or directory, got nothing at gone"),
        ('[models.a]\npath = "."', "models.a.path: '.': expected model.toml in"),
        ('[models.a]\npath = "penstock.toml"', "expected a .py file, a .onnx file or a directory with model.toml"),
    ],
)
def test_a_mistake_is_named(home: Path, text: str, complaint: str) -> None:
    """The message has the key, what was expected and what was got, or the key that was probably meant."""
    assert complaint in complain(home, text)


def test_all_mistakes_are_reported_at_once(home: Path) -> None:
    """One run tells everything there is to change, in every file."""
    (home / "digits" / "model.toml").write_text(
        MODEL_TOML.replace("FP32", "FLOAT").replace("size_max = 16", "size_max = 0")
    )
    said = complain(home, DIGITS + SUM + 'version = "1"\n[models.a]\npath = "gone"\n')
    assert "penstock.toml: 2 settings are wrong" in said
    assert "models.sum.version" in said
    assert "models.a.path" in said
    assert "digits/model.toml: 1 setting is wrong" in said
    assert "batching.size_max: expected at least 1, got 0" in said


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("FP32", "FLOAT", "inputs[0]: tensor 'pixels': expected a datatype of BOOL"),
        ("[-1, 64]", "[-1, 0]", "inputs[0]: tensor 'pixels': expected dimensions >= 1 or -1, got [-1, 0]"),
        ("[-1, 64]", '"64"', 'inputs[0].shape: expected an array, got "64"'),
        ("[-1, 64]", "[-1, 6.5]", "inputs[0].shape[1]: expected an integer, got 6.5"),
        ('name = "digits"', 'nam = "digits"', "nam: unknown key; did you mean name?"),
        ('version = "3"', 'runtime = "torch"', "runtime: expected 'onnx', got \"torch\""),
        ('version = "3"', 'task = "embedding"', "task 'embedding': expected an input 'text' and an output 'embedding'"),
        ("finite", "finit", "inputs[0].finit: unknown key; did you mean finite?"),
        ('version = "3"', "slo_ms = -1", "slo_ms: expected more than 0, got -1"),
        (
            "[batching]",
            '[batching]\npolicy = "deadline"',
            'batching.wait_ms_max: expected only with policy = "size_or_timeout", not with "deadline", got 1.5',
        ),
    ],
)
def test_a_mistake_in_model_toml_is_named(home: Path, old: str, new: str, complaint: str) -> None:
    """model.toml is checked like penstock.toml, and its tensors like those of a decorated class."""
    (home / "digits" / "model.toml").write_text(MODEL_TOML.replace(old, new, 1))
    said = complain(home, DIGITS)
    assert said.startswith("digits/model.toml: ")
    assert complaint in said


def test_an_onnx_directory_becomes_a_source(home: Path) -> None:
    """The spec comes from model.toml, the name from the table, the changes from the section; paths are absolute."""
    text = (
        '[models.numbers]\npath = "digits"\ntimeout_ms = 200\nversion = "4"\n'
        "[models.numbers.batching]\nsize_max = 8\n[models.numbers.replicas]\nmin = 2\n"
    )
    (source,) = load(home, text).sources
    assert source.spec is not None
    assert (source.path, source.runtime) == (str(home / "digits" / "model.onnx"), "onnx")
    assert (source.spec.name, source.spec.version, source.spec.platform) == ("numbers", "4", "onnx_onnxruntime")
    assert source.options == {"intra_op_threads": 2}
    assert source.replicas_min == 2
    assert source.spec.inputs[0].finite
    applied = source.overrides.apply(source.spec)
    assert (applied.batching.size_max, applied.batching.wait_us_max, applied.timeout_us) == (8, 1_500, 200_000)


def test_what_is_published_about_scheduling_can_be_overridden(home: Path) -> None:
    """Policy, mode and SLO of model.toml hold until a section says otherwise; unsaid, the policy is `deadline`."""
    file = home / "digits" / "model.toml"
    (source,) = load(home, DIGITS).sources
    assert source.spec is not None
    assert (source.spec.batching.policy, source.spec.batching.mode, source.spec.slo_us) == ("deadline", "latency", 0)
    scheduling = 'slo_ms = 30\n[batching]\npolicy = "size_or_timeout"\nmode = "throughput"\neager = false'
    file.write_text(MODEL_TOML.replace("[batching]", scheduling))
    (source,) = load(home, DIGITS).sources
    assert source.spec is not None
    published = source.overrides.apply(source.spec)
    expected = Batching("size_or_timeout", "throughput", 16, 1_500, eager=False)
    assert (published.batching, published.slo_us, published.weights) == (expected, 30_000, ())
    text = 'slo_ms = 0.0001\nbatching = { policy = "adaptive", mode = "fair" }\nweights = { b = 2, "a.1" = 0.5 }\n'
    (source,) = load(home, DIGITS + text).sources
    assert source.spec is not None
    changed = source.overrides.apply(source.spec)
    assert changed.batching == replace(expected, policy="adaptive", mode="fair")
    assert (changed.slo_us, changed.weights) == (1, (("a.1", 0.5), ("b", 2.0)))


@pytest.mark.parametrize(
    "text",
    [
        "slo_ms = 50\ntimeout_ms = 50",
        'batching = { policy = "size_or_timeout", wait_ms_max = 0, eager = false }',
        "batching = { wait_ms_max = 60000, eager = true }",
        "slo_ms = 86400000",
        'weights = { a = 0.001, "A-b_c.9" = 1000, ' + "x" * 64 + " = 1 }",
    ],
)
def test_the_bounds_themselves_are_allowed(home: Path, text: str) -> None:
    """What stands on a bound is inside it, and no policy chosen allows the settings of any."""
    assert load(home, SUM + text + "\n").sources


def test_a_python_section_becomes_a_source(home: Path) -> None:
    """Options and class go to the replica; the spec stays with the class."""
    text = SUM + 'class = "Sum"\noptions = { scale = 2.5 }\n[models.sum.queue]\nrequests_max = 9\n'
    (source,) = load(home, text).sources
    assert (source.path, source.runtime, source.attribute) == (str(home / "sum.py"), "python", "Sum")
    assert (source.options, source.spec, source.overrides.requests_max) == ({"scale": 2.5}, None, 9)


def test_the_server_section_is_converted_to_inner_units(home: Path) -> None:
    """Seconds and milliseconds become µs; the state directory is relative to the file."""
    config = load(home, '[server]\nstate = "s"\ndrain_s = 0.5\n[server.limits]\nidle_timeout_ms = 7\n' + SUM)
    assert (config.state, config.drain_us, config.http_limits.idle_timeout_us) == (home / "s", 500_000, 7_000)
    assert (
        ServeConfig(state=config.state, drain_us=500_000, http_limits=config.http_limits, sources=config.sources)
        == config
    )


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:80", Address("127.0.0.1", 80)), ("[::1]:0", Address("::1", 0)), ("a.b:65535", Address("a.b", 65535))],
)
def test_an_address_round_trips(text: str, address: Address) -> None:
    """Parsing and writing an address are inverse."""
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["", "80", ":80", "a:", "a:-1", "a:65536", "::1:80", "a:٣", "a:1 "])
def test_what_is_no_address_is_refused(text: str) -> None:
    """An address without a host or a decimal port in range does not parse."""
    with pytest.raises(ValueError, match="expected host:port"):
        parse_address(text)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("::1", True),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_beyond_loopback_only_if_allowed(host: str, allowed: bool) -> None:
    """A port that other machines can reach needs allow_anonymous, whichever of the two it is."""
    for config in (ServeConfig(http=Address(host, 1)), ServeConfig(admin=Address(host, 1))):
        if allowed:
            check_exposure(config)
        else:
            with pytest.raises(ConfigError, match=r"allow_anonymous = true"):
                check_exposure(config)
    check_exposure(ServeConfig(http=Address(host, 1), allow_anonymous=True))


def test_the_command_line_overrides_the_file() -> None:
    """Options given replace settings, options left out do not, and a wrong one is named."""
    config = ServeConfig(gateways=3)
    changed = with_overrides(config, http="127.0.0.1:1", admin=None, gateways=None, state=Path("relative"))
    assert (changed.http.port, changed.admin, changed.gateways) == (1, config.admin, 3)
    assert changed.state == Path("relative").resolve()
    with pytest.raises(ConfigError, match=r"--http: expected host:port .* got 'x'"):
        with_overrides(config, http="x", admin=None, gateways=None, state=None)
    with pytest.raises(ConfigError, match=r"--gateways: expected 1-256, got 0"):
        with_overrides(config, http=None, admin=None, gateways=0, state=None)


def test_a_model_directory_is_served_as_it_is(home: Path) -> None:
    """A directory with model.toml, or that file, is a whole configuration."""
    for target in (home / "digits", home / "digits" / "model.toml"):
        (source,) = load_target(str(target)).sources
        assert (source.name, source.path) == ("digits", str(home / "digits" / "model.onnx"))


@pytest.mark.parametrize(
    ("target", "got"), [("gone.toml", "nothing of that name"), ("/dev/null", "a file of another kind")]
)
def test_what_cannot_be_served_is_refused(home: Path, target: str, got: str) -> None:
    """Anything else than the three kinds of target is refused with what was expected."""
    with pytest.raises(ConfigError, match=rf"expected a penstock.toml, a .py file .* got {got}"):
        load_target(target)


PYTHON_MODEL = """
import penstock
print("noise on stdout")
def tensor(name): return penstock.Tensor(name, "FP32", [-1])
@penstock.model(inputs=[tensor("x")], outputs=[tensor("y")], version="5")
class Twice:
    def __call__(self, x): return 2 * x
@penstock.model(inputs=[tensor("x")], outputs=[tensor("y")], name="half")
class Half(Twice): pass
Alias = Half
"""


def test_the_models_of_a_python_file_are_discovered(home: Path) -> None:
    """Every decorated class of a file becomes a source, once, whatever the file prints."""
    file = home / "mine.py"
    file.write_text(PYTHON_MODEL)
    sources = load_target(str(file)).sources
    assert [(s.name, s.attribute, s.path, s.replicas_min) for s in sources] == [
        ("twice", "Twice", str(file), 1),
        ("half", "Half", str(file), 1),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1", "expected at least one class decorated with @penstock.model, got none"),
        ("\nimport nowhere_to_be_found", r"ModuleNotFoundError: No module named 'nowhere_to_be_found' \(line 2\)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os; os._exit(3)", "the interpreter died"),
        (PYTHON_MODEL.replace('name="half"', 'name="twice"'), "expected models with distinct names, got twice"),
    ],
)
def test_a_python_file_without_usable_models_is_refused(home: Path, text: str, complaint: str) -> None:
    """A file that cannot be imported, or declares nothing to serve, is refused with the reason and the line."""
    file = home / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_target(str(file))


def test_the_published_schema_is_current() -> None:
    """docs/config.schema.json is what the code accepts: `python -m penstock.cli.config > docs/config.schema.json`."""
    assert json.loads((ROOT / "docs" / "config.schema.json").read_text()) == config_schema()


def test_bad_usage_exits_2_with_a_message(tmp_path: Path) -> None:
    """A configuration that is wrong ends the command with status 2, a message on stderr and nothing on stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cli.main", "serve", "gone.toml"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("penstock: gone.toml: expected a penstock.toml")
