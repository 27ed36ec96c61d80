"""A program that answers a file again and again, killed before each of its steps on the disk in turn, and looks.

python killed.py FOLDER    # prints how many steps there were; ends with an error where a line was lost or doubled
"""

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

from conftest import build
from langbridge.config import RoutingConfig
from langbridge.engine.transformers import TransformersEngine
from langbridge.generate import Sampling
from langbridge.offline.answerer import Answerer
from langbridge.offline.parts import entries
from langbridge.offline.run import Progress, Work, answer_files

LINES = ['{"prompt": "one", "id": 1}', '{"prompt": "and two"}', "broken", '{"prompt": "three!"}', '{"prompt": "four"}']
STEPS = {"write", "writelines", "truncate", "open", "replace", "rename", "unlink", "rmdir", "mkdir", "fsync", "chmod"}
PLACES = ("/langbridge/offline/", "/langbridge/files.py", "/pathlib.py", "/shutil.py")
MODEL = build()


def answered(folder: Path, dies_at: int | None) -> int | None:
    """Answer the file in a child; return how many lines it answered, None where it was killed."""
    child = os.fork()
    if not child:
        os._exit(run(folder, dies_at).lines)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WIFEXITED(status)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


def run(folder: Path, dies_at: int | None) -> Progress:
    seen = itertools.count()

    def step(frame: Any, event: str, called: Any) -> None:
        name = getattr(called, "__name__", "")
        here = any(place in frame.f_code.co_filename for place in PLACES)
        if event == "c_call" and name in STEPS and here and next(seen) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    work = Work(
        input=folder.parent / "in.jsonl",
        output=folder / "out.jsonl",
        merge=True,
        sampling=Sampling(max_new_tokens=3),
        made_by={},
        part_lines=3,
        on_bad="skip",
        at_a_time=2,
    )
    if dies_at is not None:
        sys.setprofile(step)
    made = lambda: Answerer(MODEL, TransformersEngine(MODEL), RoutingConfig(), reader="bridge")  # noqa: E731
    found = answer_files(work, made, lambda progress: None, lambda complaint: None)
    sys.setprofile(None)
    return found


def main(folder: Path) -> None:
    (folder / "in.jsonl").write_text("\n".join(LINES) + "\n")
    whole = folder / "whole"
    assert answered(whole, None) == 4
    wanted = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert sorted(wanted) == ["out.bad", "out.jsonl"]
    for step in itertools.count():
        place = folder / str(step)
        if answered(place, step) is not None:
            print(step)
            break
        parts = list(place.rglob("part-*.jsonl"))
        done = {f".{path.stem}." for path in parts}  # their journals may be there still, and count no more
        journals = [path for path in place.rglob("*.journal") if not path.name.startswith(tuple(done))]
        kept = sum(kind == "answer" for path in journals for _, kind, _ in entries(path))
        kept += sum(path.read_bytes().count(b"\n") for path in parts)
        again = answered(place, None)
        finished = (place / "out.jsonl").exists() and again == 4  # it was killed when all was done
        assert again == 4 - kept or finished, f"step {step}: {kept} answers were kept, {again} given again"
        found = {path.name: path.read_bytes() for path in place.iterdir()}
        assert found == wanted, f"step {step}: {found}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
