"""The Ray Data pipeline on a local Ray with two workers: `make test-vllm` installs Ray; elsewhere this is skipped."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TEMPLATE
from langbridge.checkpoint import LangBridge
from langbridge.config import Recipe
from langbridge.generate import BridgedGenerator, Sampling

ROOT = Path(__file__).parents[2]
START = """
import sys
import ray
import ray_generate
ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR")  # of them two for the workers
ray_generate.main(sys.argv[1:])
"""
PROMPTS = [f"number {number}" for number in range(12)]


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed here: `make test-vllm` does")
def test_two_workers_answer_every_line(saved: dict[str, Path], tmp_path: Path) -> None:
    fields = {
        "encoder": {"name": str(saved["bert"])},
        "language_model": {"name": str(saved["llama"])},
        "prompt": {"template": TEMPLATE},
    }
    model = LangBridge.from_recipe(Recipe.of(fields, "test"))
    model.save_pretrained(tmp_path / "run")
    for number in range(2):
        lines = [json.dumps({"prompt": one, "n": 1.5}) for one in PROMPTS[number::2]]
        (tmp_path / "in" / str(number)).mkdir(parents=True)
        (tmp_path / "in" / str(number) / "x.jsonl").write_text("\n".join(lines) + "\n\n" + '{"prompt": 5}\n')
    arguments = [str(tmp_path / name) for name in ("run", "in", "out")]
    command = [sys.executable, "-c", START, *arguments, "--workers", "2", "--rows", "1", "--max-new-tokens", "4"]
    path = os.pathsep.join([str(ROOT / "examples"), str(ROOT / "src")])
    found = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=900, check=False
    )
    assert found.returncode == 0, found.stderr[-3000:]
    records = [json.loads(line) for file in (tmp_path / "out").iterdir() for line in file.read_text().splitlines()]
    bad = [record for record in records if "error" in record]
    assert len(bad) == 2
    assert all('wanted an object with a text "prompt"' in record["error"] for record in bad)
    good = {record["prompt"]: record for record in records if "error" not in record}
    assert len(records) == len(PROMPTS) + 2
    assert sorted(good) == sorted(PROMPTS)
    assert all(record["n"] == 1.5 for record in good.values())
    wanted = BridgedGenerator(model.eval()).generate(PROMPTS, Sampling(max_new_tokens=4))
    assert [good[prompt]["completion"] for prompt in PROMPTS] == wanted
