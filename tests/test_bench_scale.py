"""bench/scale.py on tiny models: it runs what is missing, in processes of its own, and shows everything."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import scale

ROOT = Path(__file__).parent.parent
DONE = scale.Measured(ready=2.0, step=0.5, tokens=500.0, peak=1e9)


def line(cell: scale.Cell, found: scale.Measured = DONE) -> str:
    return json.dumps({"cell": dataclasses.asdict(cell), "measured": dataclasses.asdict(found)}) + "\n"


def test_only_missing_cells_are_run(saved: dict[str, Path], tmp_path: Path) -> None:
    recipe = {"encoder": {"name": str(saved["bert"])}, "language_model": {"name": str(saved["llama"])}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    cells = list(scale.cells(quick=True))
    missing = [cell for cell in cells if cell.way == "streamed"][:1]
    out = tmp_path / "out"
    out.mkdir()
    (out / "cells.jsonl").write_text("".join(line(cell) for cell in cells if cell not in missing), encoding="utf-8")
    command = [sys.executable, str(ROOT / "bench" / "scale.py"), "--quick", "--out", str(out)]
    done = subprocess.run(
        [*command, "--recipe", str(tmp_path / "tiny.yaml")], capture_output=True, text=True, check=True, timeout=300
    )
    assert [said for said in done.stderr.splitlines() if said[0].isdigit()] == ["2/10: records 1,000, streamed"]
    found = scale.known(out / "cells.jsonl")
    assert found.keys() == set(cells)
    assert all(found[cell] == DONE for cell in cells if cell not in missing)
    new = found[missing[0]]
    assert new.ready > 0
    assert new.step > 0
    assert new.tokens > 16
    assert new.peak > 50e6
    assert done.stdout.count("| records |") == 4
    assert (out / "table.md").read_text(encoding="utf-8").strip() == done.stdout.strip()
    assert {path.name for path in out.glob("*.png")} == {"size.png", "length.png", "processes.png"}


def test_a_full_run_reaches_the_sizes_it_is_for() -> None:
    cells = list(scale.cells(quick=False))
    assert {cell.value for cell in cells if cell.kind == "size"} >= {1_000, 50_000}
    assert max(cell.processes for cell in cells) == 4
    assert len(cells) == len(set(cells)) == 23
