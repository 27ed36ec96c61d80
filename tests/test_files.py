"""Writing all or nothing."""

import threading
from pathlib import Path

import pytest

from langbridge.files import new_folder, replacing, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_as_utf8_and_parents_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "note.txt"
    write_text(path, "நன்றி\n")
    assert path.read_bytes() == "நன்றி\n".encode()
    assert names(path.parent) == ["note.txt"]


def test_text_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("a much longer old content")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["note.txt"]


def test_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of it, then a lone surrogate: \ud800")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_interrupted_replacement_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["weights.bin"]


def test_old_file_is_whole_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == path.parent  # the last step must be a rename within one file system
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_interrupted_first_write_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with replacing(tmp_path / "weights.bin") as temporary:
            temporary.write_bytes(b"half")
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        write_half()
    assert names(tmp_path) == []


def test_files_and_folders_are_readable_by_everyone(tmp_path: Path) -> None:
    """Temporary files are born private; a shared model folder must not stay so."""
    write_text(tmp_path / "note.txt", "text")
    with new_folder(tmp_path / "model") as unfinished:
        write_text(unfinished / "config.json", "{}")
    assert (tmp_path / "note.txt").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "model" / "config.json").stat().st_mode & 0o777 == 0o644


def test_folder_appears_only_when_finished(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "toy"
    with new_folder(folder) as unfinished:
        (unfinished / "config.json").write_text("{}")
        (unfinished / "deep").mkdir()
        assert not folder.exists()
    assert names(folder) == ["config.json", "deep"]
    assert names(folder.parent) == ["toy"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_interrupted_folder_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fill_half() -> None:
        with new_folder(tmp_path / "toy") as unfinished:
            (unfinished / "config.json").write_text("{")
            raise error

    with pytest.raises(error):
        fill_half()
    assert names(tmp_path) == []


def test_another_process_finished_the_folder_first(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    with new_folder(folder) as unfinished:
        (unfinished / "config.json").write_text("ours")
        folder.mkdir()  # while we work, the other process finishes
        (folder / "config.json").write_text("theirs")
    assert (folder / "config.json").read_text() == "theirs"
    assert names(tmp_path) == ["toy"]


def test_folder_in_place_of_a_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "toy"
    path.write_text("not a folder")

    def fill() -> None:
        with new_folder(path) as unfinished:
            (unfinished / "config.json").write_text("{}")

    with pytest.raises(OSError, match="toy"):
        fill()
    assert path.read_text() == "not a folder"
    assert names(tmp_path) == ["toy"]


def test_of_many_writers_one_wins_and_its_folder_is_whole(tmp_path: Path) -> None:
    folder, together, errors = tmp_path / "toy", threading.Barrier(4), []

    def write(writer: int) -> None:
        try:
            with new_folder(folder) as unfinished:
                for i in range(3):
                    (unfinished / f"{i}.txt").write_text(str(writer))
                together.wait(timeout=30)
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not errors
    assert names(tmp_path) == ["toy"]
    assert names(folder) == ["0.txt", "1.txt", "2.txt"]
    assert len({(folder / name).read_text() for name in names(folder)}) == 1
