"""The full tables of the embedded pair: xcopa, sib200 and transfer over all languages, the plain LM beside.

    python studies/benchmarks.py --data DATA                          # hours; stop and start it at will
    python studies/benchmarks.py --data DATA --run runs/sib200 --task sib200 --name topics
    python studies/benchmarks.py --data DATA --quick                  # two languages, four items: does it run?

DATA holds xcopa/, sib200/ and tatoeba/. Answers are kept in `--work`/<name> as they come (tens of MB, not for the
repository); the results go to `--out`/<name>: JSON with intervals, tables in Markdown, and one page. The development
languages, on which choices were made, are part of the tables and marked in the transfer result by their absence.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from langbridge.data.parallel import read_parallel
from langbridge.evaluate.report import write_report
from langbridge.evaluate.result import read_results
from langbridge.evaluate.tables import markdown_tables
from langbridge.evaluate.tasks import open_task
from langbridge.evaluate_commands import evaluate
from langbridge.files import write_text
from langbridge.languages import DEVELOPMENT
from langbridge.pretrained import quiet

HERE = Path(__file__).parent
TASKS = ("xcopa", "sib200", "transfer")


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", default="embedded")
    parser.add_argument("--name", help="of the folder of results; default: that of the run")
    parser.add_argument("--task", type=lambda text: text.split(","), default=list(TASKS), metavar="TASK,...")
    parser.add_argument("--baseline", default="plain", help="beside the bridge, with commas")
    parser.add_argument("--limit", type=int, help="items of each language; default: all")
    parser.add_argument("--sentences", type=int, default=200, help="transfer: pairs of each language")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; default: the run's")
    parser.add_argument("--out", type=Path, default=HERE / "benchmarks")
    parser.add_argument("--work", type=Path, default=Path("runs") / "benchmarks")
    parser.add_argument("--quick", action="store_true")
    read = parser.parse_args(arguments)
    if unknown := [name for name in read.task if name not in TASKS]:
        parser.error(f"no task {unknown[0]!r} here; known: {', '.join(TASKS)}")
    if read.quick:
        read.limit = read.sentences = 4
        read.out = read.work / "quick-results"
    read.name = read.name or Path(read.run).name
    return read


def languages(task: str, read: argparse.Namespace) -> str:
    """Return the languages of a task: all; for transfer all but those on which choices were made."""
    if task == "transfer":
        known = [code for code in read_parallel(read.data / "tatoeba").sources if code not in DEVELOPMENT]
    else:
        known = open_task(task, read.data).languages()
    return ",".join(known[:2] if read.quick else known)


def main(arguments: Sequence[str] | None = None) -> None:
    """Go on with each task, and write its result and all tables after it."""
    read = options(arguments)
    quiet()
    work, out = read.work / read.name, read.out / read.name
    for task in read.task:
        if task != "transfer" or not (work / "transfer.json").is_file():  # benchmarks know themselves what is done
            evaluate(
                read.run,
                task,
                data=read.data,
                languages=languages(task, read),
                limit=read.sentences if task == "transfer" else read.limit,
                render=0,
                out=work,
                batch_size=read.batch_size,
                dtype=read.dtype,
                baseline=read.baseline,
            )
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(work / f"{task}.json", out / f"{task}.json")
        found = read_results([out])
        write_text(out / "tables.md", markdown_tables(found))
        write_report(found, out / "report.html", title=f"Benchmarks: {read.name}")


if __name__ == "__main__":
    main()
