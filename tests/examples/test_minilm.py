"""The sentence embedding example: right against PyTorch, whatever shares a row's batch and however it was sent."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import penstock
from examples.minilm.model import MiniLM, plan_buckets, to_padded

REFERENCE = json.loads(Path(__file__).with_name("minilm_reference.json").read_text())
TEXTS = [row["text"] for row in REFERENCE["rows"]]
WORDS = ["the", "gate", "feeds", "a", "turbine", "exactly", "as", "much", "water", "as", "its", "wheel", "can", "take"]
LENGTHS = st.lists(st.integers(2, 256), max_size=64)


def to_text(*texts: str | bytes) -> npt.NDArray[np.object_]:
    """Shape texts as the model takes them: an object array of bytes, shape (batch, 1)."""
    raw = [t if isinstance(t, bytes) else t.encode() for t in texts]
    return np.array(raw, dtype=object).reshape(-1, 1)


def to_token_ids(*rows: list[int]) -> npt.NDArray[np.int32]:
    """Shape ids as the model takes them: int32, right-padded with -1."""
    longest = max(1, *(len(row) for row in rows))
    return np.array([row + [-1] * (longest - len(row)) for row in rows], np.int32)


def make_texts(seed: int, count: int) -> list[str]:
    """Make texts of 0 to 60 words, short and long mixed."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(0, 61))) for _ in range(count)]


@pytest.mark.parametrize("row", REFERENCE["rows"], ids=[text[:24] for text in TEXTS])
def test_matches_pytorch(minilm: MiniLM, row: dict[str, Any]) -> None:
    """Each reference row alone: cosine >= 0.9999, no component off by more than 1e-4, the same number of tokens."""
    result = minilm(text=to_text(row["text"]))
    got, want = result["embedding"][0].astype(np.float64), np.array(row["embedding"])
    assert got @ want / np.linalg.norm(got) / np.linalg.norm(want) >= 0.9999
    assert np.abs(got - want).max() <= 1e-4
    assert result["token_count"].tolist() == [[row["tokens"]]]


def test_matches_pytorch_in_one_batch(minilm: MiniLM) -> None:
    """All reference rows in one call match as they do alone; datatypes and shapes are the declared ones."""
    result = minilm(text=to_text(*TEXTS))
    want = np.array([row["embedding"] for row in REFERENCE["rows"]])
    assert [result[name].dtype.name for name in ("embedding", "token_count")] == ["float32", "int64"]
    assert np.abs(result["embedding"] - want).max() <= 1e-4
    assert result["token_count"].tolist() == [[row["tokens"]] for row in REFERENCE["rows"]]


def test_rows_have_length_one(minilm: MiniLM) -> None:
    """Every embedding has length 1, whatever the text."""
    embedding = minilm(text=to_text(*make_texts(1, 8), "", "\x00", "🦆" * 300))["embedding"]
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("seed", [2, 3])
def test_neighbours_do_not_matter(minilm: MiniLM, seed: int) -> None:
    """A batch gives each text what it gets alone, to 1e-5."""
    texts = make_texts(seed, 16)
    alone = np.concatenate([minilm(text=to_text(text))["embedding"] for text in texts])
    np.testing.assert_allclose(minilm(text=to_text(*texts))["embedding"], alone, atol=1e-5)


def test_a_padded_row_is_as_good_as_alone(minilm: MiniLM) -> None:
    """The graph ignores padding: a short row padded to 256 tokens, outside any bucket, gives what it gives alone."""
    short, long = minilm.tokenize(to_text("a short text", "water " * 300))
    ids, mask = to_padded([short, long])
    (padded,) = minilm._session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})
    np.testing.assert_allclose(padded, minilm.embed([short, long]), atol=1e-5)


@pytest.mark.parametrize("seed", [4, 5])
def test_permuted_rows_permute_results(minilm: MiniLM, seed: int) -> None:
    """Results follow their rows: a permutation of the batch permutes embeddings and counts."""
    texts = make_texts(seed, 16)
    order = np.random.default_rng(seed).permutation(len(texts))
    straight = minilm(text=to_text(*texts))
    permuted = minilm(text=to_text(*(texts[i] for i in order)))
    np.testing.assert_allclose(permuted["embedding"], straight["embedding"][order], atol=1e-5)
    np.testing.assert_array_equal(permuted["token_count"], straight["token_count"][order])


@given(lengths=LENGTHS, run_tokens_max=st.sampled_from([1, 512, 16_384]))
def test_every_row_is_in_one_bucket(lengths: list[int], run_tokens_max: int) -> None:
    """Buckets share out all rows: each row in exactly one."""
    buckets = plan_buckets(lengths, run_tokens_max=run_tokens_max)
    assert sorted(row for bucket in buckets for row in bucket) == list(range(len(lengths)))


@given(lengths=LENGTHS, run_tokens_max=st.sampled_from([1, 512, 16_384]))
def test_padding_is_bounded(lengths: list[int], run_tokens_max: int) -> None:
    """No row is padded beyond max(own + 4, own * 1.25), and no run of several rows exceeds its token bound."""
    for bucket in plan_buckets(lengths, run_tokens_max=run_tokens_max):
        longest = max(lengths[row] for row in bucket)
        assert longest == lengths[bucket[0]]
        assert all(longest <= max(lengths[row] + 4, lengths[row] * 1.25) for row in bucket)
        assert len(bucket) == 1 or longest * len(bucket) <= run_tokens_max


def test_long_text_is_cut_off(minilm: MiniLM) -> None:
    """A text beyond 256 tokens counts 256 and embeds as its first 254 tokens do between [CLS] and [SEP]."""
    long, exact = "water " * 1_000, "water " * 254
    result = minilm(text=to_text(long, exact))
    assert result["token_count"].tolist() == [[256], [256]]
    np.testing.assert_allclose(result["embedding"][0], result["embedding"][1], atol=1e-5)


def test_token_ids_equal_text(minilm: MiniLM) -> None:
    """Ids without specials give what the text gives: same counts, same embeddings, also when cut off or empty."""
    texts = [*TEXTS, "water " * 300]
    rows = [minilm._tokenizer.encode(text).ids[1:-1] for text in texts]
    rows[-1] = [rows[-1][0]] * 300
    by_text, by_ids = minilm(text=to_text(*texts)), minilm(token_ids=to_token_ids(*rows))
    np.testing.assert_array_equal(by_ids["token_count"], by_text["token_count"])
    np.testing.assert_allclose(by_ids["embedding"], by_text["embedding"], atol=1e-5)


def test_a_row_of_padding_is_the_empty_text(minilm: MiniLM) -> None:
    """A row of nothing but -1 (or of no columns) is the empty text: two tokens."""
    want = minilm(text=to_text(""))["embedding"]
    for token_ids in (np.full((1, 3), -1, np.int32), np.empty((1, 0), np.int32)):
        result = minilm(token_ids=token_ids)
        assert result["token_count"].tolist() == [[2]]
        np.testing.assert_allclose(result["embedding"], want, atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "position"),
    [
        ([2054, 30_522], 1),
        ([-2], 0),
        ([2_147_483_647], 0),
        ([2054, -1, 2003], 2),
        ([-1, 2054], 1),
        ([0] * 299 + [-7], 299),
    ],
)
def test_bad_ids_name_their_row(minilm: MiniLM, bad: list[int], position: int) -> None:
    """An id outside the vocabulary, or one after padding, fails its own row, even beyond the cut."""
    with pytest.raises(penstock.InvalidInput, match=rf"ids from 0 to 30521.*position {position}$") as raised:
        minilm(token_ids=to_token_ids([0, 30_521], bad))
    assert raised.value.row == 1


@pytest.mark.parametrize("bad", [b"\xff", b"caf\xe9", b"ok \xed\xa0\x80"])
def test_text_that_is_not_utf8_names_its_row(minilm: MiniLM, bad: bytes) -> None:
    """Bytes that are not UTF-8 fail their own row."""
    with pytest.raises(penstock.InvalidInput, match="text: expected UTF-8, got byte 0x") as raised:
        minilm(text=to_text("fine", "fine", bad))
    assert raised.value.row == 2


def test_exactly_one_input(minilm: MiniLM) -> None:
    """Both inputs, or neither, are the caller's error, attributed to no row."""
    both: dict[str, Any] = {"text": to_text("a"), "token_ids": to_token_ids([5])}
    for inputs, got in (({}, "neither"), (both, "both")):
        with pytest.raises(penstock.InvalidInput, match=f"exactly one of the two, got {got}") as raised:
            minilm(**inputs)
        assert raised.value.row is None


@pytest.mark.parametrize("value", [-1, 1.5, "2", True])
def test_bad_thread_count_is_refused(value: Any) -> None:
    """`intra_op_threads` is a whole number >= 0."""
    with pytest.raises(ValueError, match="intra_op_threads: expected a whole number >= 0, got "):
        MiniLM(intra_op_threads=value)


def test_an_unbuilt_model_says_what_to_do(tmp_path: Path) -> None:
    """Beside a model file without its built files, loading fails with the cure."""
    copy = shutil.copy(str(sys.modules[MiniLM.__module__].__file__), str(tmp_path))
    with pytest.raises(FileNotFoundError, match="run `make setup`"):
        runpy.run_path(copy)["MiniLM"]().load()
