"""`python -m app.up.serve FD`: the API on a socket that the parent keeps, so that a restart refuses no connection."""

from __future__ import annotations

import socket
import sys

import uvicorn

GRACE_S = 3
"""How long open event streams may hold up a stop."""


def main() -> None:
    """Serve until told to stop."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    config = uvicorn.Config(
        "app.main:create_app",
        factory=True,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
