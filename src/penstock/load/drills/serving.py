"""A `penstock serve` of a drill's own: on free loopback ports, in a temporary directory, in a process group of its own.

Whatever happens, leaving the `with` ends every process. Not here: which command that is (handed in), load
(`loading.py`).
"""

import contextlib
import http.client
import json
import os
import select
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from penstock.core.errors import UpstreamError
from penstock.core.ports import Clock
from penstock.load.drills import emulated_device

__all__ = ["DeviceModel", "ServedFleet", "write_config"]

READY_TIMEOUT_US = 60_000_000  # loading an emulated device takes half a second here
STOP_TIMEOUT_S = 10.0  # its longest drain is a batch; then it is killed
_ADMIN_TIMEOUT_S = 5.0
_LOG_EXCERPT_BYTES = 2_000


class DeviceModel:
    """A model to serve: an emulated device with its SLO. Further keys go into its section as they are."""

    def __init__(
        self, name: str, *, beta_ms: float, alpha_ms: float, size_max: int, slo_ms: float, batching: str = ""
    ) -> None:
        self.name = name
        self.beta_ms = beta_ms
        self.alpha_ms = alpha_ms
        self.size_max = size_max
        self.slo_ms = slo_ms
        self.batching = batching

    @property
    def rows_per_s_max(self) -> float:
        """Return what the device does in full batches, rows per second."""
        return self.size_max * 1e3 / (self.beta_ms + self.alpha_ms * self.size_max)

    @property
    def slo_us(self) -> int:
        """Return the SLO in µs."""
        return round(self.slo_ms * 1e3)

    def describe(self) -> str:
        """Return the device in words, for reports."""
        device = emulated_device.describe(self.beta_ms, self.alpha_ms)
        return f"{device}, {self.size_max} rows at most; SLO {self.slo_ms:g} ms"

    def section(self) -> str:
        """Return its section of a penstock.toml."""
        path = json.dumps(str(Path(emulated_device.__file__).resolve()))
        return (
            f"[models.{self.name}]\npath = {path}\nclass = {json.dumps(emulated_device.EmulatedDevice.__name__)}\n"
            f"slo_ms = {self.slo_ms}\noptions = {{ beta_ms = {self.beta_ms}, alpha_ms = {self.alpha_ms} }}\n"
            f"batching = {{ size_max = {self.size_max}{self.batching} }}\n"
        )


def write_config(models: Sequence[DeviceModel], file: Path, sections: str = "") -> None:
    """Write a penstock.toml that serves the models, with further sections as they are."""
    file.write_text("\n".join([*(model.section() for model in models), sections]), encoding="utf-8")


class ServedFleet:
    """One `penstock serve`. `with` it: entering waits until it is ready, leaving ends all of its processes.

    Args:
        command: Starts it; the configuration and options are appended.
        models: What it serves.
        now_us: The clock.
        gateways: How many.
        sections: Returns further sections of its penstock.toml, given the folder that it runs in.
        environment: Variables added to its environment.

    Attributes:
        http, admin: URLs of its ports.
        folder: Where its files are; removed at the end.
    """

    def __init__(
        self,
        command: Sequence[str],
        models: Sequence[DeviceModel],
        now_us: Clock,
        *,
        gateways: int = 1,
        sections: Callable[[Path], str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.http = ""
        self.admin = ""
        self.folder = Path()
        self._command = list(command)
        self._models = list(models)
        self._now_us = now_us
        self._gateways = gateways
        self._sections = sections
        self._environment = {**os.environ, **(environment or {})}
        self._head: subprocess.Popen[bytes] | None = None
        self._ended = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Start it and wait for its ready line.

        Raises:
            UpstreamError: It ended or was not ready in time; the message ends with what it wrote to stderr.
        """
        with contextlib.ExitStack() as stack:
            # A short path: the sockets in it must fit 107 bytes.
            made = tempfile.TemporaryDirectory(prefix="ps-drill-", ignore_cleanup_errors=True)
            self.folder = Path(stack.enter_context(made))
            sections = "" if self._sections is None else self._sections(self.folder)
            write_config(self._models, self.folder / "penstock.toml", sections)
            self._start_head(stack, "127.0.0.1:0")
            self._ended = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        """End it in good order if it can, else at once; nothing of it is left."""
        self._ended.close()

    def kill_head(self) -> None:
        """Kill the head alone: its gateways and replicas go on."""
        assert self._head is not None
        self._head.kill()
        self._head.wait()

    def start_next_head(self) -> None:
        """Start a head in the place of one that was killed and wait until it has adopted what runs.

        Raises:
            UpstreamError: As when entering.
        """
        self._start_head(self._ended, urlsplit(self.http).netloc)

    def _start_head(self, stack: contextlib.ExitStack, address: str) -> None:
        log = stack.enter_context((self.folder / "stderr").open("a+b"))
        options = ["--http", address, "--admin", "127.0.0.1:0", "--state", str(self.folder / "state"), "--json"]
        # A group of its own: a Ctrl-C is the drill's to handle, and one signal ends all that is left.
        self._head = subprocess.Popen(
            [*self._command, str(self.folder / "penstock.toml"), *options, "--gateways", str(self._gateways)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0,
            env=self._environment,
        )
        stack.callback(_end, self._head)
        line = self._wait_line(self._head)
        if line is None:
            log.seek(0)
            said = log.read()[-_LOG_EXCERPT_BYTES:].decode(errors="replace").strip()
            raise UpstreamError(f"penstock serve: expected it to get ready, got exit or silence:\n{said}")
        ready = json.loads(line)
        self.http, self.admin = ready["http"], ready["admin"]

    def _wait_line(self, process: subprocess.Popen[bytes]) -> bytes | None:
        """Return the first line of its stdout, None if it ended or took too long."""
        assert process.stdout is not None
        until_us = self._now_us() + READY_TIMEOUT_US
        data = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while (left_us := until_us - self._now_us()) > 0:
                if not selector.select(left_us / 1e6):
                    continue
                piece = os.read(process.stdout.fileno(), 4_096)
                data += piece
                if b"\n" in data:
                    return data.partition(b"\n")[0]
                if not piece:
                    return None
        return None

    def wait_reports(self) -> None:
        """Wait until what has happened so far is in the status: gateways report every 0.5 s, so twice that."""
        select.select((), (), (), 1.0)

    def fetch_model_status(self, name: str) -> dict[str, Any]:
        """Return a model's part of the admin port's status document.

        Raises:
            UpstreamError: The admin port does not answer, or not with such a document.
        """
        return self._fetch_part("models", name)

    def fetch_gateway_pid(self, index: int) -> int | None:
        """Return the process id of a gateway, None while it is not ready. Raises UpstreamError likewise."""
        gateway = self._fetch_part("gateways", f"gateway-{index}")
        return int(gateway["pid"]) if gateway.get("ready") and gateway.get("pid") else None

    def _fetch_part(self, kind: str, name: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection(urlsplit(self.admin).netloc, timeout=_ADMIN_TIMEOUT_S)
        try:
            connection.request("GET", "/api/status")
            document = json.loads(connection.getresponse().read())
            return next(dict(part) for part in document[kind] if part["name"] == name)
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, StopIteration) as fault:
            raise UpstreamError(f"admin port: expected the status of {name!r}, got {fault!r}") from fault
        finally:
            connection.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a head to stop and wait; then kill whatever is left of its group."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pass  # killed below, with its children
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing of it is left, as it should be
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
