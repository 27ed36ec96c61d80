"""`langbridge serve`. Imports late, as `cli` does."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import typer

from langbridge.commands import Dtype
from langbridge.errors import ConfigError

KEYS = "LANGBRIDGE_API_KEYS"
"""Environment variable of API keys, separated by commas."""
EngineName = Annotated[str, typer.Option(help="What runs the LM: transformers, vllm, or the URL of a trusted vLLM.")]
EngineSet = Annotated[
    list[str] | None,
    typer.Option(help="An argument of the engine itself, as tensor_parallel_size=2; may be repeated."),
]


def serve(
    run: Annotated[str, typer.Argument(help="Run folder, hub id, or `embedded`.")],
    engine: EngineName = "transformers",
    engine_set: EngineSet = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's own need a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0: any free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="What requests call the model; default: the run's name.")] = None,
    api_key: Annotated[list[str] | None, typer.Option(help="Let in who has this key; may be repeated.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help=f"File with a key on each line; the variable {KEYS} works too.")
    ] = None,
    routing: Annotated[
        str | None, typer.Option(help="off, by_language or by_likelihood; default: as the run's recipe says.")
    ] = None,
    dtype: Dtype = None,
    rows: Annotated[int, typer.Option(help="Completions that get a token in each step.")] = 32,
    most_completions: Annotated[int, typer.Option(help="Completions running or waiting; others get status 429.")] = 256,
    most_new_tokens: Annotated[int, typer.Option(help="Most tokens of a completion.")] = 1024,
    most_bytes: Annotated[int, typer.Option(help="Most bytes of a request.")] = 262_144,
    timeout: Annotated[float, typer.Option(help="Seconds until a request is given up.")] = 300.0,
    drain: Annotated[float, typer.Option(help="Seconds that requests are given when the server stops.")] = 30.0,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Log what users write and are answered.")] = False,
    playground: Annotated[bool, typer.Option(help="A page to try the model at `/`.")] = True,
) -> None:
    """Serve a run to OpenAI's clients."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"serving needs {error.name}, which is not installed: pip install 'langbridge-lm[serve]'."
        ) from error
    from langbridge.engine.choose import load_engine
    from langbridge.pretrained import quiet
    from langbridge.serve.run import serve as run_server
    from langbridge.serve.service import Service
    from langbridge.serve.settings import ServeSettings

    settings = ServeSettings(
        name=name or run_name(run),
        host=host,
        port=port,
        api_keys=(*(api_key or ()), *keys_of(api_key_file)),
        most_completions=most_completions,
        most_new_tokens=most_new_tokens,
        most_bytes=most_bytes,
        timeout=timeout,
        drain=drain,
        log_prompts=log_prompts,
        playground=playground,
    )
    quiet()
    model, running = load_engine(engine, run, most_rows=rows, dtype=dtype, arguments=engine_set or [])
    config = dataclasses.replace(model.recipe.routing, kind=routing or model.recipe.routing.kind)
    run_server(Service(model, running, settings, config))


def run_name(run: str) -> str:
    """Return what requests call a run's model."""
    return Path(run).expanduser().name or "langbridge"


def keys_of(file: Path | None) -> list[str]:
    """Return the API keys of a file and of the environment; raises ConfigError where the file cannot be read."""
    found = [key.strip() for key in os.environ.get(KEYS, "").split(",")]
    if file is not None:
        try:
            found += [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file {file} cannot be read: {error}.") from error
        if not any(found):
            raise ConfigError(f"--api-key-file {file} holds no key.")
    return [key for key in found if key]
