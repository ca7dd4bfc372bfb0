"""Sentence embeddings by all-MiniLM-L6-v2: text or token ids in, unit-length vectors of 384 numbers out.

Rows of one batch are run in buckets of like length, so a short text never pays for a long neighbour. Not here: the
graph (`build.py`), which has pooling and normalisation inside.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from tokenizers import Tokenizer

import penstock

DIMENSIONS = 384
TOKENS_MAX = 256  # what the model was trained with, [CLS] and [SEP] included; the rest of a text is cut off

# A row is padded to at most max(its length + 4, its length * 1.25). On one CPU thread four tokens cost about 0.6 ms,
# and the separate run they save has a fixed cost of about 2 ms.
PADDING_TOKENS_MAX = 4
PADDING_RATIO_MAX = 0.25
# Tokens in one run. Measured per token on one CPU thread: flat from 256 to 512, about 20 % dearer at 2,000 and 50 % at
# 8,000, as activations (6 kB per token) outgrow a 2 MB second-level cache. On CUDA, where it was not measured, it only
# bounds memory: 64 texts of 256 tokens.
RUN_TOKENS_MAX = {"CPUExecutionProvider": 512, "CUDAExecutionProvider": 16_384}

Tokens = Sequence[int]
Float32 = npt.NDArray[np.float32]


def plan_buckets(lengths: Sequence[int], *, run_tokens_max: int) -> list[list[int]]:
    """Share out rows among runs, longest first, so that no row is padded beyond its bound.

    Args:
        lengths: Tokens in each row, >= 1.
        run_tokens_max: Most tokens in one run, padding included; a row longer than that runs alone.

    Returns:
        Row indices per run; each row is in exactly one. A run's first row is its longest, to which the
        others are padded.
    """
    buckets: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        own = lengths[row]
        padded_max = own + max(PADDING_TOKENS_MAX, int(own * PADDING_RATIO_MAX))
        if buckets:
            longest = lengths[buckets[-1][0]]
            if longest <= padded_max and longest * (len(buckets[-1]) + 1) <= run_tokens_max:
                buckets[-1].append(row)
                continue
        buckets.append([row])
    return buckets


def to_padded(rows: Sequence[Tokens]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return ids and mask, int64, shape (rows, longest): right-padded with id 0, which the mask marks 0."""
    longest = max(len(row) for row in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return ids, mask


@penstock.model(
    name="minilm",
    inputs=[
        penstock.Tensor("text", "BYTES", (-1, 1), optional=True),
        penstock.Tensor("token_ids", "INT32", (-1, -1), optional=True),
    ],
    outputs=[
        penstock.Tensor("embedding", "FP32", (-1, DIMENSIONS)),
        penstock.Tensor("token_count", "INT64", (-1, 1)),
    ],
    size_max=32,
    wait_ms_max=5.0,
    task="embedding",
    dimensions=(DIMENSIONS,),
    description="sentence embeddings by all-MiniLM-L6-v2; texts are cut off after 256 tokens",
)
class MiniLM:
    """One ONNX Runtime session and one tokenizer.

    Args:
        intra_op_threads: Threads that share one run; 0 means one for each core this process may use. On two cores a
            batch of 32 short texts takes 0.6 times as long with two threads as with one.

    Raises:
        ValueError: The option is not a whole number >= 0. Fix the model's `options`.
    """

    def __init__(self, *, intra_op_threads: int = 0) -> None:
        if not isinstance(intra_op_threads, int) or isinstance(intra_op_threads, bool) or intra_op_threads < 0:
            raise ValueError(f"intra_op_threads: expected a whole number >= 0, got {intra_op_threads!r}")
        self._intra_op_threads = intra_op_threads or len(os.sched_getaffinity(0))

    def load(self) -> None:
        """Read the tokenizer and the graph; CUDA is used where ONNX Runtime has it.

        Raises:
            FileNotFoundError: The files are not built. Run `make setup`.
        """
        folder = Path(__file__).resolve().parent
        for name in ("tokenizer.json", "model.onnx"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name}: expected a built model, got no file; run `make setup`")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(TOKENS_MAX)
        self._vocabulary_size = self._tokenizer.get_vocab_size()
        self._first, self._last = self._tokenizer.encode("").ids  # [CLS] and [SEP]
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._intra_op_threads
        options.inter_op_num_threads = 1
        # A thread that spins while it waits takes its core from the gateway.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        available = ort.get_available_providers()
        providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
        self._session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=providers)
        # The session says what it really got: a CUDA build on a machine without a GPU falls back to the CPU.
        self._run_tokens_max = RUN_TOKENS_MAX[self._session.get_providers()[0]]

    def __call__(
        self, text: npt.NDArray[Any] | None = None, token_ids: npt.NDArray[np.int32] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Embed a batch, given as exactly one of the two inputs.

        Args:
            text: `bytes` in UTF-8, object array of shape (batch, 1).
            token_ids: int32, shape (batch, tokens): ids without [CLS] and [SEP], which are added; rows shorter than
                the longest are padded on the right with -1.

        Returns:
            `embedding`, float32, shape (batch, 384), rows of length 1; and `token_count`, int64, shape (batch, 1): the
            tokens used, [CLS] and [SEP] included, at most 256.

        Raises:
            penstock.InvalidInput: Both inputs or neither; or, naming the row, text that is not UTF-8 or a bad id.
        """
        if text is not None and token_ids is None:
            rows = self.tokenize(text)
        elif token_ids is not None and text is None:
            rows = self.complete(token_ids)
        else:
            got = "neither" if text is None else "both"
            raise penstock.InvalidInput(f"text, token_ids: expected exactly one of the two, got {got}")
        counts = np.array([len(row) for row in rows], np.int64).reshape(-1, 1)
        return {"embedding": self.embed(rows), "token_count": counts}

    def tokenize(self, text: npt.NDArray[Any]) -> list[list[int]]:
        """Return each text's token ids, [CLS] and [SEP] included, at most 256.

        Args:
            text: `bytes` in UTF-8, object array of shape (batch, 1).

        Raises:
            penstock.InvalidInput: A text is not UTF-8; names the row.
        """
        decoded = []
        for row, raw in enumerate(text[:, 0]):
            try:
                decoded.append(raw.decode())
            except UnicodeDecodeError as error:
                message = f"text: expected UTF-8, got byte 0x{raw[error.start]:02x} at position {error.start}"
                raise penstock.InvalidInput(message, row=row) from error
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(decoded)]

    def complete(self, token_ids: npt.NDArray[np.int32]) -> list[list[int]]:
        """Return each row's ids without padding, between [CLS] and [SEP], at most 256 in all.

        Args:
            token_ids: int32, shape (batch, tokens), padded on the right with -1.

        Raises:
            penstock.InvalidInput: An id is not in the vocabulary, or padding comes before an id; names the row.
        """
        is_padding = token_ids == -1
        is_bad = ~is_padding & ((token_ids < 0) | (token_ids >= self._vocabulary_size))
        is_bad[:, 1:] |= is_padding[:, :-1] & ~is_padding[:, 1:]
        if is_bad.any():
            row, column = (int(index) for index in np.argwhere(is_bad)[0])
            expected = f"ids from 0 to {self._vocabulary_size - 1}, then only -1 as padding"
            message = f"token_ids: expected {expected}, got {token_ids[row, column]} at position {column}"
            raise penstock.InvalidInput(message, row=row)
        lengths = np.minimum((~is_padding).sum(axis=1), TOKENS_MAX - 2)
        pairs = zip(token_ids, lengths, strict=True)
        return [[self._first, *ids[:length].tolist(), self._last] for ids, length in pairs]

    def embed(self, rows: Sequence[Tokens]) -> Float32:
        """Embed tokenized texts, in buckets of like length.

        Args:
            rows: Token ids of each text, [CLS] and [SEP] included, 1 to 256 of them.

        Returns:
            float32, shape (len(rows), 384), in the order of `rows`; a row's result does not depend on its neighbours
            (to float32 rounding).
        """
        embeddings = np.empty((len(rows), DIMENSIONS), np.float32)
        for bucket in plan_buckets([len(row) for row in rows], run_tokens_max=self._run_tokens_max):
            ids, mask = to_padded([rows[row] for row in bucket])
            (embeddings[bucket],) = self._session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})
        return embeddings
