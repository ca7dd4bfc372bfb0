"""The clients people already have, against both real models: tritonclient, openai-python and curl get right answers.

Right means: digits equals onnxruntime run directly on the same file; minilm equals reference embeddings from PyTorch.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import openai
import pytest
import tritonclient.http as triton
from openai import OpenAI
from tokenizers import Tokenizer

from tests.live.serving import EXAMPLES, Server

pytestmark = pytest.mark.live

ROWS = 5
# The model's own bound against its reference, and what float32 may lose on top of it in another batch size.
EMBEDDING_ERROR_MAX = 1e-4
PROBABILITY_ERROR_MAX = 1e-5

Float32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def client(quickstart: Server) -> Iterator[Any]:
    """A tritonclient."""
    with triton.InferenceServerClient(quickstart.http.removeprefix("http://")) as made:
        yield made


@pytest.fixture(scope="module")
def ai(quickstart: Server) -> Iterator[OpenAI]:
    """An openai-python client that does not hide a failure behind a retry."""
    with OpenAI(base_url=f"{quickstart.http}/v1", api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def pixels() -> Float32:
    """Five made-up images, float32, shape (5, 64): intensities 0 to 16."""
    return np.random.default_rng(7).integers(0, 17, (ROWS, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(pixels: Float32) -> tuple[Any, Any]:
    """What onnxruntime itself says of them: labels (5,) and probabilities (5, 10)."""
    session = ort.InferenceSession(str(EXAMPLES / "digits/model.onnx"), providers=["CPUExecutionProvider"])
    label, probabilities = session.run(["label", "probabilities"], {"pixels": pixels})
    return label, probabilities


@pytest.fixture(scope="module")
def reference() -> list[dict[str, Any]]:
    """Texts with their tokens and embeddings."""
    document = json.loads((Path(__file__).parents[1] / "examples/minilm_reference.json").read_text())
    return list(document["rows"])


def assert_digits(label: Any, probabilities: Any, expected: tuple[Any, Any]) -> None:
    """Fail unless an answer equals what onnxruntime says."""
    np.testing.assert_array_equal(label, expected[0])
    np.testing.assert_allclose(probabilities, expected[1], atol=PROBABILITY_ERROR_MAX)


def assert_embeddings(embeddings: Any, rows: list[dict[str, Any]]) -> None:
    """Fail unless embeddings equal the reference."""
    np.testing.assert_allclose(np.array(embeddings), [row["embedding"] for row in rows], atol=EMBEDDING_ERROR_MAX)


# -- tritonclient ---------------------------------------------------------------------------------------------------


def triton_digits(pixels: Float32, *, binary_in: bool, binary_out: bool) -> tuple[list[Any], list[Any]]:
    """Return the tensors of a tritonclient request to digits."""
    tensor = triton.InferInput("pixels", list(pixels.shape), "FP32")
    tensor.set_data_from_numpy(pixels, binary_data=binary_in)
    names = ("label", "probabilities")
    return [tensor], [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
def test_tritonclient_digits(
    client: Any, pixels: Float32, expected: tuple[Any, Any], binary_in: bool, binary_out: bool
) -> None:
    """Binary and JSON tensors, in each direction, give the same right answer."""
    inputs, outputs = triton_digits(pixels, binary_in=binary_in, binary_out=binary_out)
    result = client.infer("digits", inputs, outputs=outputs, request_id="seven")
    assert_digits(result.as_numpy("label"), result.as_numpy("probabilities"), expected)
    assert result.get_response()["id"] == "seven"
    assert ("parameters" in result.get_output("label")) is binary_out


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritonclient_compression(client: Any, pixels: Float32, expected: tuple[Any, Any], algorithm: str) -> None:
    """A compressed request and a compressed response carry the same tensors."""
    inputs, outputs = triton_digits(pixels, binary_in=True, binary_out=True)
    result = client.infer(
        "digits",
        inputs,
        outputs=outputs,
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert_digits(result.as_numpy("label"), result.as_numpy("probabilities"), expected)


def test_tritonclient_parameters(client: Any, pixels: Float32, expected: tuple[Any, Any]) -> None:
    """Priority, timeout, a version and a choice of outputs are understood."""
    inputs, outputs = triton_digits(pixels, binary_in=True, binary_out=True)
    result = client.infer(
        "digits",
        inputs,
        model_version="1",
        outputs=outputs[:1],
        priority=1,
        timeout=20_000_000,
        parameters={"note": "x"},
    )
    np.testing.assert_array_equal(result.as_numpy("label"), expected[0])
    assert result.as_numpy("probabilities") is None


def test_tritonclient_text(client: Any, reference: list[dict[str, Any]]) -> None:
    """Texts travel as BYTES, in binary and in JSON, and come back as reference embeddings."""
    rows = reference[:4]
    texts = np.array([[row["text"].encode()] for row in rows], dtype=np.object_)
    for binary in (True, False):
        tensor = triton.InferInput("text", [len(rows), 1], "BYTES")
        tensor.set_data_from_numpy(texts, binary_data=binary)
        result = client.infer("minilm", [tensor])
        assert_embeddings(result.as_numpy("embedding"), rows)
        assert result.as_numpy("token_count")[:, 0].tolist() == [row["tokens"] for row in rows]


def test_tritonclient_asynchronous(client: Any, pixels: Float32, expected: tuple[Any, Any]) -> None:
    """Requests sent from a pool, each a row, come back each with its own row."""
    sent = []
    for row in range(ROWS):
        inputs, outputs = triton_digits(pixels[row : row + 1], binary_in=True, binary_out=True)
        sent.append(client.async_infer("digits", inputs, outputs=outputs))
    labels = [int(request.get_result().as_numpy("label")[0]) for request in sent]
    assert labels == expected[0].tolist()


def test_tritonclient_asks_about_the_server(client: Any) -> None:
    """Health, metadata, configuration, index and statistics answer in the form tritonclient expects."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata()["name"] == "penstock"
    metadata = client.get_model_metadata("digits")
    assert metadata["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": [-1, 64]}]
    assert client.get_model_config("digits")["max_batch_size"] == 64
    index = {(m["name"], m["version"], m["state"]) for m in client.get_model_repository_index()}
    assert index == {(name, "1", "READY") for name in ("digits", "minilm", "sum", "emulated")}
    assert {m["name"] for m in client.get_inference_statistics()["model_stats"]} == {m[0] for m in index}
    assert client.get_inference_statistics("sum")["model_stats"][0]["version"] == "1"


def test_tritonclient_reads_an_error(client: Any, pixels: Float32) -> None:
    """An error reaches the caller with its status and in words: the tensor, expected and got."""
    inputs, _ = triton_digits(pixels[:, :8].copy(), binary_in=True, binary_out=True)
    with pytest.raises(triton.InferenceServerException, match=r"pixels.*expected shape \[-1,64\], got \[5,8\]"):
        client.infer("digits", inputs)
    with pytest.raises(triton.InferenceServerException, match="no such model: 'nothing'") as caught:
        client.infer("nothing", inputs)
    assert caught.value.status() == "404"


# -- openai ---------------------------------------------------------------------------------------------------------


def test_openai_embeds(ai: OpenAI, reference: list[dict[str, Any]]) -> None:
    """One text and many, as base64 (which openai-python asks for unasked) and as numbers, with real token counts."""
    one = ai.embeddings.create(model="minilm", input=reference[0]["text"])
    assert_embeddings([one.data[0].embedding], reference[:1])
    assert one.usage.prompt_tokens == one.usage.total_tokens == reference[0]["tokens"]
    rows = [row for row in reference if row["text"]]  # OpenAI's API takes no empty text
    many = ai.embeddings.create(model="minilm", input=[row["text"] for row in rows], encoding_format="float")
    assert_embeddings([item.embedding for item in many.data], rows)
    assert [item.index for item in many.data] == list(range(len(rows)))
    assert many.usage.prompt_tokens == sum(row["tokens"] for row in rows)
    assert many.model == "minilm"


def test_openai_embeds_tokens(ai: OpenAI, reference: list[dict[str, Any]]) -> None:
    """Token lists, one and many, give the embeddings of the texts they are the tokens of."""
    tokenizer = Tokenizer.from_file(str(EXAMPLES / "minilm/tokenizer.json"))
    tokenizer.no_padding()
    rows = reference[:3]
    tokens = [tokenizer.encode(row["text"], add_special_tokens=False).ids for row in rows]
    assert_embeddings([item.embedding for item in ai.embeddings.create(model="minilm", input=tokens).data], rows)
    assert_embeddings([ai.embeddings.create(model="minilm", input=tokens[0]).data[0].embedding], rows[:1])


def test_openai_dimensions(ai: OpenAI, reference: list[dict[str, Any]]) -> None:
    """The model's own length can be asked for; another is an error that names what can."""
    same = ai.embeddings.create(model="minilm", input=reference[0]["text"], dimensions=384)
    assert_embeddings([same.data[0].embedding], reference[:1])
    with pytest.raises(openai.BadRequestError, match="dimensions: expected 384") as caught:
        ai.embeddings.create(model="minilm", input="x", dimensions=128)
    assert caught.value.param == "dimensions"


def test_openai_reads_an_error(ai: OpenAI) -> None:
    """What cannot be embedded raises the class that openai-python has for it."""
    with pytest.raises(openai.NotFoundError) as caught:
        ai.embeddings.create(model="nothing", input="x")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="does not embed"):
        ai.embeddings.create(model="digits", input="x")
    with pytest.raises(openai.BadRequestError, match="non-empty"):
        ai.embeddings.create(model="minilm", input="")


def test_openai_lists_models(ai: OpenAI) -> None:
    """The list and each model in it can be read."""
    assert sorted(m.id for m in ai.models.list()) == ["digits", "emulated", "minilm", "sum"]
    assert ai.models.retrieve("minilm").owned_by == "penstock"


# -- curl -----------------------------------------------------------------------------------------------------------


def curl(url: str, *options: str, data: bytes | None = None) -> bytes:
    """Run curl; fail unless it succeeds and the status is 2xx."""
    command = ["curl", "--silent", "--show-error", "--fail", "--max-time", "30", *options, url]
    if data is not None:
        command += ["--data-binary", "@-"]
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=40)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl_digits(quickstart: Server, pixels: Float32, expected: tuple[Any, Any]) -> None:
    """JSON by hand, nested, gets the right answer; compression is negotiated."""
    document = {"inputs": [{"name": "pixels", "shape": [ROWS, 64], "datatype": "FP32", "data": pixels.tolist()}]}
    url = f"{quickstart.http}/v2/models/digits/infer"
    answer = json.loads(curl(url, "--compressed", data=json.dumps(document).encode()))
    data = {output["name"]: output["data"] for output in answer["outputs"]}
    assert_digits(data["label"], np.reshape(data["probabilities"], (ROWS, 10)), expected)


def test_curl_raw_binary(quickstart: Server, pixels: Float32, expected: tuple[Any, Any]) -> None:
    """The raw-binary form: the body is the tensor and nothing else; labels and probabilities end the answer."""
    url = f"{quickstart.http}/v2/models/digits/infer"
    headers = ("-H", "Inference-Header-Content-Length: 0", "-H", "Content-Type: application/octet-stream")
    body = curl(url, *headers, data=pixels.tobytes())
    probabilities = np.frombuffer(body[-ROWS * 10 * 4 :], "<f4").reshape(ROWS, 10)
    label = np.frombuffer(body[: -ROWS * 10 * 4][-ROWS * 8 :], "<i8")
    assert_digits(label, probabilities, expected)


def test_curl_minilm(quickstart: Server, reference: list[dict[str, Any]]) -> None:
    """A text through both protocols, in chunks and with Expect, gets the reference embedding."""
    texts = {"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [reference[0]["text"]]}]}
    url = f"{quickstart.http}/v2/models/minilm/infer"
    answer = json.loads(curl(url, "-H", "Transfer-Encoding: chunked", data=json.dumps(texts).encode()))
    data = {output["name"]: output["data"] for output in answer["outputs"]}
    assert_embeddings([data["embedding"]], reference[:1])
    document = {"model": "minilm", "input": [reference[0]["text"]]}
    url = f"{quickstart.http}/v1/embeddings"
    answer = json.loads(curl(url, "-H", "Expect: 100-continue", data=json.dumps(document).encode()))
    assert_embeddings([answer["data"][0]["embedding"]], reference[:1])
    assert answer["usage"]["prompt_tokens"] == reference[0]["tokens"]
