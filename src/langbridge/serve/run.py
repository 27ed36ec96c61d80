"""Run the server until it is told to stop; whoever was let in is answered, or told that the server stopped."""

import asyncio
import logging
import signal
import socket

import uvicorn

from langbridge.errors import ConfigError
from langbridge.serve.app import make_app
from langbridge.serve.service import Service
from langbridge.serve.telemetry import log_to_stderr

log = logging.getLogger("langbridge.serve")
BACKLOG = 2048
"""Connections that wait to be taken."""
SLACK = 10
"""Seconds, behind the drain, in which the last requests are told that the server stopped."""


class Server(uvicorn.Server):
    """Stops in two steps: nobody is let in any more, and after a while the engine ends."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running requests end, for as long as the settings say; then tell the rest."""
        self.service.gate.stopping = True
        log.info("stopping: %d completions are running or waiting", self.service.gate.inside)
        last = asyncio.create_task(self._stop_later())
        await super().shutdown(sockets)
        last.cancel()
        log.info("stopped")

    async def _stop_later(self) -> None:
        await asyncio.sleep(self.service.settings.drain)
        log.warning("%d completions did not end in time", self.service.gate.inside)
        await self.service.stop()


def serve(service: Service) -> None:
    """Listen; return when the server was told to stop (SIGINT, SIGTERM) and has ended everything.

    Raises ConfigError where it cannot listen.
    """
    settings = service.settings
    log_to_stderr()
    listening = bind(settings.host, settings.port)
    config = uvicorn.Config(
        make_app(service),
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=int(settings.drain) + SLACK,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
    )
    server = Server(config, service)
    for told in (signal.SIGINT, signal.SIGTERM):
        # from now on, not from when uvicorn is up; and it sends itself the signal again when all is over
        signal.signal(told, server.handle_exit)
    host, port = listening.getsockname()[:2]
    log.info("listening on http://%s:%d, model %s", f"[{host}]" if ":" in host else host, port, settings.name)
    server.run(sockets=[listening])


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raises ConfigError where the address is taken or not ours."""
    found = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(BACKLOG)
    except OSError as error:
        if found is not None:
            found.close()
        reason = error.strerror or error
        raise ConfigError(f"cannot listen on {host}:{port} ({reason}): choose another --port.") from error
    return found
