"""The house: arrows point one way, files and functions stay small."""

import ast
from pathlib import Path

import langbridge

SOURCE = Path(langbridge.__file__).parent
LEVELS = [
    {"errors", "files"},
    {"languages", "sandbox"},
    {"identify"},
    {"config"},
    {"model"},
    {"prompt", "pretrained", "policy"},
    {"data"},
    {"checkpoint", "synthesize"},
    {"generate", "released"},
    {"transfer", "routing", "engine"},
    {"calibrate"},
    {"train"},
    {"evaluate", "serve"},
    {"analyse", "offline"},
    {"commands", "cache_commands", "offline_command"},
    {"evaluate_commands", "serve_command", "study_commands"},
    {"cli", "__init__"},
    {"__main__"},
]
OUTERMOST = (
    "cli.py",
    "commands.py",
    "cache_commands.py",
    "evaluate_commands.py",
    "study_commands.py",
    "pretrained/names.py",
)
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
ALLOWED = {
    ("config", "config"),
    ("pretrained", "pretrained"),
    ("sandbox", "sandbox"),
    ("model", "model"),
    ("data", "data"),
    ("train", "train"),
    ("evaluate", "evaluate"),
    ("analyse", "analyse"),
    ("engine", "engine"),
    ("serve", "serve"),
    ("offline", "offline"),
}


def part_of(module: str) -> str:
    return ([*module.split("."), "__init__"])[1]


def imports(path: Path) -> list[tuple[str, bool]]:
    """(imported part of langbridge, inside a function) of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found += [(part_of(name), node in inner) for name in names if name.split(".")[0] == "langbridge"]
    return found


def test_arrows_point_one_way() -> None:
    for path in SOURCE.rglob("*.py"):
        part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for target, _ in imports(path):
            ok = LEVEL[target] < LEVEL[part] or (part, target) in ALLOWED
            assert ok, f"{path.relative_to(SOURCE)} imports {target}"


def test_only_the_outermost_parts_import_late() -> None:
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        late = [target for target, inside in imports(path) if inside]
        assert not late or name in (
            "cli.py",
            "commands.py",
            "cache_commands.py",
            "evaluate_commands.py",
            "serve_command.py",
            "study_commands.py",
            "offline_command.py",
            "pretrained/names.py",
        ), f"{name} imports {late} late"


def test_model_knows_no_text_and_no_files() -> None:
    for path in (SOURCE / "model").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "Tokenizer" not in text, path
        assert "pathlib" not in text, path
        assert "open(" not in text, path


def test_files_and_functions_stay_small() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"


def test_public_names() -> None:
    assert set(langbridge.__all__) == {
        "BridgedGenerator",
        "LangBridge",
        "LangBridgeError",
        "PlainGenerator",
        "Recipe",
        "Sampling",
        "load",
    }
    for name in langbridge.__all__:
        assert getattr(langbridge, name).__name__ == name
