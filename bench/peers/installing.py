"""One throwaway virtual environment per system, built from pinned requirements and reused while they stay the same."""

import subprocess
from pathlib import Path

from bench.history import ROOT

_FOLDER = Path(__file__).parent
_INSTALL_S_MAX = 1200.0


def install(name: str, *, python: str, work: Path, folder: Path = _FOLDER) -> Path:
    """Return the `bin` directory of the system's environment under `work`, building it if need be.

    What it needs is in `requirements.txt` of its own folder under `folder`. Penstock is installed from this source
    tree, editable, so that its environment follows the tree.

    Raises:
        RuntimeError: an installation failed; the message is its last line.
    """
    requirements = folder / name / "requirements.txt"
    if name == "penstock":
        constraints = ROOT / "constraints.txt"
        arguments, pins = ["-c", str(constraints), "-e", str(ROOT)], constraints.read_text(encoding="utf-8")
    else:
        arguments, pins = ["-r", str(requirements)], requirements.read_text(encoding="utf-8")
    environment = work / name / "venv"
    installed = work / name / "installed.txt"
    if not installed.exists() or installed.read_text(encoding="utf-8") != pins:
        installed.unlink(missing_ok=True)
        _run([python, "-m", "venv", "--clear", str(environment)])
        _run([str(environment / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *arguments])
        installed.write_text(pins, encoding="utf-8")
    return environment / "bin"


def read_version(bin_: Path, package: str) -> str:
    """Return the installed version of a distribution.

    Raises:
        RuntimeError: it is not installed there.
    """
    program = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    return _run([str(bin_ / "python"), "-c", program, package]).strip()


def _run(command: list[str]) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_S_MAX)
    except OSError as error:
        raise RuntimeError(f"cannot run {command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{' '.join(command[:3])} took longer than {_INSTALL_S_MAX:.0f} s") from error
    if run.returncode != 0:
        said = (run.stderr.strip() or run.stdout.strip()).splitlines()
        raise RuntimeError(f"{' '.join(command[:3])}: {said[-1] if said else f'status {run.returncode}'}")
    return run.stdout
