"""Publishing a model: a Python file, a directory, a configuration; and how a mistake in each is told."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.live.serving import EXAMPLES, Server, infer_body, make_server, open_server

pytestmark = pytest.mark.live

TWO_MODELS = """
import numpy as np
import penstock

X = penstock.Tensor("x", "FP32", (-1, 2))

@penstock.model(inputs=[X], outputs=[penstock.Tensor("y", "FP32", (-1, 2))], name="twice", version="3")
class Twice:
    def load(self):
        self.factor = np.float32(2)
    def __call__(self, x):
        return {"y": x * self.factor}

@penstock.model(inputs=[X], outputs=[penstock.Tensor("n", "INT64", (-1,))])
class Count:
    def __call__(self, x):
        return np.full(len(x), x.shape[1])
"""
UNLOADABLE = TWO_MODELS.replace("self.factor = np.float32(2)", 'raise OSError("no such weights: w.bin")')


@contextmanager
def started(target: Path, *options: str) -> Iterator[Server]:
    """Start a server that is expected to fail."""
    server = make_server(target, *options)
    try:
        yield server.start()
    finally:
        server.end()


def test_a_python_file(tmp_path: Path) -> None:
    """`penstock serve my_model.py` serves each class it declares, under its name and version."""
    file = tmp_path / "my_model.py"
    file.write_text(TWO_MODELS)
    with open_server(file) as server, server.caller() as caller:
        body = infer_body("x", "FP32", [[1, 2], [3, 4]])
        assert caller.infer("twice", body).data("y") == [2, 4, 6, 8]
        assert caller.infer("count", body).data("n") == [2, 2]
        assert caller.infer("twice", body, version="3").json()["model_version"] == "3"
        assert caller.infer("count", body, version="1").status == 200


def test_a_version_that_is_not_served(tmp_path: Path) -> None:
    """Each route with a version answers for that version alone: 404 for another, naming what is served."""
    file = tmp_path / "my_model.py"
    file.write_text(TWO_MODELS)
    with open_server(file) as server, server.caller() as caller:
        for suffix in ("", "/ready", "/config", "/stats"):
            assert caller.call("GET", f"/v2/models/twice/versions/3{suffix}").status == 200, suffix
            answer = caller.call("GET", f"/v2/models/twice/versions/1{suffix}")
            assert answer.status == 404, suffix
            assert "twice (version 3)" in answer.json()["error"]
        answer = caller.infer("twice", b"{}", version="1")
        assert answer.status == 404
        assert "no such model: 'twice' version 1" in answer.json()["error"]
        assert caller.infer("twice", b"{}", version="latest").status == 400
        assert caller.call("GET", "/v2/models/twice").json()["versions"] == ["3"]


def test_a_directory(tmp_path: Path) -> None:
    """A directory with model.toml and an ONNX file is a model, with the name and version it says."""
    directory = tmp_path / "anything"
    directory.mkdir()
    shutil.copy(EXAMPLES / "digits/model.onnx", directory)
    published = (EXAMPLES / "digits/model.toml").read_text()
    published = published.replace('name = "digits"', 'name = "numbers"').replace('version = "1"', 'version = "12"')
    (directory / "model.toml").write_text(published)
    pixels = np.random.default_rng(3).integers(0, 17, (2, 64)).astype(np.float32)
    session = ort.InferenceSession(str(directory / "model.onnx"), providers=["CPUExecutionProvider"])
    with open_server(directory) as server, server.caller() as caller:
        answer = caller.infer("numbers", infer_body("pixels", "FP32", pixels.tolist()), version="12")
        assert answer.data("label") == session.run(["label"], {"pixels": pixels})[0].tolist()
        metadata = caller.call("GET", "/v2/models/numbers").json()
        assert (metadata["versions"], metadata["platform"]) == (["12"], "onnx_onnxruntime")


def test_a_configuration(tmp_path: Path) -> None:
    """A configuration names models and changes what they were published with."""
    (tmp_path / "my_model.py").write_text(TWO_MODELS)
    config = tmp_path / "penstock.toml"
    config.write_text(
        '[models.doubled]\npath = "my_model.py"\nclass = "Twice"\nbatching.size_max = 2\nreplicas.min = 2\n'
    )
    with open_server(config) as server, server.caller() as caller:
        assert caller.infer("doubled", infer_body("x", "FP32", [[1, 2]])).data("y") == [2, 4]
        answer = caller.infer("doubled", infer_body("x", "FP32", [[1, 2]] * 3))
        assert answer.status == 400
        assert "expected at most 2 rows in one request, got 3" in answer.json()["error"]
        assert len(server.replica_pids("doubled")) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nhtpp = '127.0.0.1:1'\n[models.m]\npath = 'm.py'", r"server\.htpp.*did you mean.*http"),
        ("[models.m]\npath = 'm.py'\nreplicas.min = 'two'", r"models\.m\.replicas\.min: .*got \"two\""),
        ("[models.m]\npath = 'nowhere.py'", r"models\.m\.path: .*nowhere\.py"),
        ("[models.m", "expected TOML"),
        ("", r"at least one \[models\.NAME\]"),
    ],
)
def test_a_wrong_configuration(tmp_path: Path, text: str, message: str) -> None:
    """A mistake in the configuration ends the start with status 2 and says where it is and what was expected."""
    (tmp_path / "m.py").write_text(TWO_MODELS)
    config = tmp_path / "penstock.toml"
    config.write_text(text)
    with started(config) as server:
        assert server.wait_exit() == 2
        assert re.search(message, server.log(), re.IGNORECASE), server.log()
        assert "Traceback" not in server.log()


def test_exposure_is_meant(tmp_path: Path) -> None:
    """A port that other machines can reach is refused with status 2 until the operator allows callers without names."""
    file = tmp_path / "my_model.py"
    file.write_text(TWO_MODELS)
    with started(file, "--http", "0.0.0.0:0") as server:
        assert server.wait_exit() == 2
        assert "server.allow_anonymous" in server.log()


@pytest.mark.parametrize("target", ["nothing.toml", "nothing.py", "notes.txt"])
def test_nothing_to_serve(tmp_path: Path, target: str) -> None:
    """What is not a configuration, a Python file or a directory is refused with status 2 and told what it may be."""
    (tmp_path / "notes.txt").write_bytes(b"\xff\x00 not text")
    with started(tmp_path / target) as server:
        assert server.wait_exit() == 2
        assert target in server.log()
        assert "Traceback" not in server.log()


def test_a_file_without_models(tmp_path: Path) -> None:
    """A Python file that declares no model, or that does not run, ends the start with status 2 and the reason."""
    for source, message in (("x = 1\n", "@penstock.model"), ("import no_such_module\n", "no_such_module")):
        file = tmp_path / "my_model.py"
        file.write_text(source)
        with started(file) as server:
            assert server.wait_exit() == 2
            assert message in server.log()


def test_a_model_that_cannot_load(tmp_path: Path) -> None:
    """A model whose load() raises ends the start with status 1 and says why; nothing was ever ready."""
    file = tmp_path / "my_model.py"
    file.write_text(UNLOADABLE)
    with started(file) as server:
        assert server.wait_exit() == 1
        assert "cannot start: twice" in server.log()
        assert "OSError: no such weights: w.bin" in server.log()
        assert server.head is not None
        assert server.head.stdout is not None
        assert server.head.stdout.read() == ""
