"""The first command of the README: `make serve`, from this checkout to right answers, with no other step."""

import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import tritonclient.http as triton

ROOT = Path(__file__).parents[2]


def test_make_serve_goes_all_the_way() -> None:
    """It installs and builds what is missing, says ready, answers a real client, and ends well when told to."""
    # Under `make test` this make must not think that it is a part of that one.
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    with tempfile.TemporaryDirectory(prefix="penstock-") as state:
        command = ["make", "--silent", "serve", f"ARGS=--http 127.0.0.1:0 --admin 127.0.0.1:0 --state {state}"]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                assert process.stdout is not None
                lines = (re.match(r"ready http=http://(\S+)", line) for line in process.stdout)
                ready = next(filter(None, lines), None)
                assert ready is not None, "make serve ended without a ready line"
                with triton.InferenceServerClient(ready[1]) as client:
                    tensor = triton.InferInput("x", [1, 8], "FP32")
                    tensor.set_data_from_numpy(np.arange(8, dtype=np.float32)[None])
                    assert client.infer("sum", [tensor]).as_numpy("y").tolist() == [[28.0]]
                os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
                process.wait(40)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
