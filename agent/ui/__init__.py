"""`run_agent.py ui`: a local web page to watch and understand runs, also while they work, and to let them go on.

access.py says who may look, watched.py what is known of a run, pages.py what each page shows, live.py what a page hears
while a run works, stop.py how a run is ended from it, started.py how one goes on. The server itself reads files only,
and imports neither model nor loop: what works on a run is a command in a process of its own.
"""

import json
import secrets
import socket
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent.commands import Outcome

HOST = "127.0.0.1"
"""This machine alone: the pages show everything that the runs hold, can stop one and let it go on."""


def add_command(add: Callable[..., Any]) -> None:
    """Add `ui`; `add` makes the parser of a command, as in `run_agent.py`."""
    pages = add("ui", ui, "serve a web page about all runs on this machine, also while they work")
    pages.add_argument(
        "--port", type=int, default=0, metavar="N", help="port on the loopback (default: 0 = a free one)"
    )
    alone = "print the address only (a browser's own arguments can be seen by others on this machine)"
    pages.add_argument("--no-browser", action="store_true", help=alone)


def ui(args: Namespace) -> Outcome:
    """Serve the pages until Ctrl-C; the address is printed first."""
    try:
        listener = socket.create_server((HOST, args.port))
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"--port {args.port} cannot be had ({error}); give another one, or 0 for any free one"
        ) from error
    return Outcome(_serve(listener, Path(args.runs_dir), args.json, browser=not args.no_browser), None)


def _serve(listener: socket.socket, runs_dir: Path, as_json: bool, browser: bool) -> Iterator[str]:
    import uvicorn

    from agent.ui.pages import application

    port, token = listener.getsockname()[1], secrets.token_urlsafe(32)
    address = f"http://{HOST}:{port}/?token={token}"
    app = application(runs_dir, token, f"autodidact-{port}")  # cookies do not tell ports apart
    yield json.dumps({"address": address}) if as_json else f"{address}  (Ctrl-C ends it)"
    if browser:
        import webbrowser

        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    config = uvicorn.Config(
        app, lifespan="off", ws="none", proxy_headers=False, server_header=False, timeout_graceful_shutdown=2,
        log_level="warning", access_log=False,  # the address holds the token
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])
