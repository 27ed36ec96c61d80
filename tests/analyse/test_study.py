"""The frame: cells are kept at once and never made twice; the page says what made it."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from langbridge.analyse.figures import bars, drawable, lines, save, sheet
from langbridge.analyse.study import Cell, Page, Setting, Study, conduct, read_study
from langbridge.errors import DataError


class Squares(Study):
    """Squares of three numbers; stops in front of a number when it is told to."""

    name = "squares"
    question = "How large are squares?"
    stop_at = ""
    measured: list[str]

    def cells(self) -> list[str]:
        return ["1", "2", "3"]

    def measure(self, cell: str) -> Cell:
        if cell == self.stop_at:
            raise KeyboardInterrupt
        self.measured.append(cell)
        return {"square": int(cell) ** 2}

    def page(self, cells: Mapping[str, Cell]) -> Page:
        figure, (axes,) = sheet()
        bars(axes, {name: (cell["square"], 0.0, 10.0) for name, cell in cells.items()}, title="Squares", x="size")
        shown = ", ".join(str(cell["square"]) for cell in cells.values())
        return Page(method="m", result=shown, interval="none", limits="l", figures={"squares": (figure, "Sizes.")})


def squares(setting: Setting, stop_at: str = "") -> Squares:
    study = Squares(setting)
    study.stop_at, study.measured = stop_at, []
    return study


def test_an_interrupted_study_goes_on_with_the_next_cell(quick: Callable[..., Setting]) -> None:
    first = squares(quick(), stop_at="3")
    with pytest.raises(KeyboardInterrupt):
        conduct(first)
    assert first.measured == ["1", "2"]
    second = squares(quick(command="langbridge study squares"))
    page = conduct(second).read_text(encoding="utf-8")
    assert second.measured == ["3"]
    assert "1, 4, 9" in page
    assert "langbridge study squares" in page
    assert "torch" in page
    assert "Quick mode" in page
    third = squares(quick())
    conduct(third)
    assert third.measured == []


def test_processes_share_the_cells(quick: Callable[..., Setting]) -> None:
    """Another process, begun while this one is at the first cell, makes the others and leaves the page to this one."""
    first, second = squares(quick()), squares(quick())
    measure = first.measure

    def and_meanwhile(cell: str) -> Cell:
        if not second.measured:
            with pytest.raises(DataError, match="another process is still at 1"):
                conduct(second)
        return measure(cell)

    first.measure = and_meanwhile  # type: ignore[method-assign]
    page = conduct(first).read_text(encoding="utf-8")
    assert first.measured == ["1"]
    assert second.measured == ["2", "3"]
    assert "1, 4, 9" in page


def test_another_set_up_needs_another_folder(quick: Callable[..., Setting], tmp_path: Path) -> None:
    conduct(squares(quick()))
    with pytest.raises(DataError, match="sentences differ"):
        conduct(squares(quick(sentences=7)))
    (tmp_path / "out" / "result.json").write_text("[]")
    with pytest.raises(DataError, match="not the result of a study"):
        read_study(tmp_path / "out" / "result.json")


def test_set_ups_share_no_work_folder(quick: Callable[..., Setting], tmp_path: Path) -> None:
    """Another set-up in the same work folder was measured on the first one's states; processes of one set-up share."""
    first, again = squares(quick()), squares(quick())
    other = squares(quick(out=tmp_path / "other", sentences=7))
    for study in (first, again, other):
        conduct(study)
    assert first.setting.work == again.setting.work != other.setting.work
    assert first.setting.work.parent == other.setting.work.parent == tmp_path / "work"
    conduct(first)  # a second time: no folder in its folder
    assert first.setting.work == again.setting.work


def test_what_is_measured_so_far_has_a_page(quick: Callable[..., Setting]) -> None:
    study = squares(quick(), stop_at="2")
    study.ready = lambda cells: True  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        conduct(study)
    page = (study.setting.out / "README.md").read_text(encoding="utf-8")
    assert "2 of 3 cells are missing" in page


def test_figures_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        figure, (axes,) = sheet()
        lines(axes, {"a": ([1, 2], [3, 4]), "b": ([1, 2], [4, 3])}, title="T", x="x", y="y")
        save(figure, tmp_path / name / "figure")
    for kind in ("png", "svg"):
        assert (tmp_path / "one" / f"figure.{kind}").read_bytes() == (tmp_path / "two" / f"figure.{kind}").read_bytes()
    header = (tmp_path / "one" / "figure.png").read_bytes()[:24]
    assert header[1:4] == b"PNG"
    assert min(struct.unpack(">II", header[16:24])) > 300


def test_letters_without_a_glyph_are_known() -> None:
    assert drawable("Straße дом")
    assert not drawable("\U00010400")


def test_records_name_no_folder_of_this_machine(quick: Callable[..., Setting], tmp_path: Path) -> None:
    """The run's folder was written with its whole path."""
    study = squares(quick(data=tmp_path))
    conduct(study)
    kept = json.loads((study.setting.out / "result.json").read_text(encoding="utf-8"))
    assert kept["setup"]["data"] == tmp_path.name
    assert kept["setup"]["run"] == Path(study.setting.run).name
