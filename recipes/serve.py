"""Serve a model over HTTP: lists for histories, similar items, items that join and leave.

python recipes/serve.py --model outputs/demo
TTDS_TOKEN=SECRET python recipes/serve.py --model FOLDER_OR_HUB_ID --host 0.0.0.0 --port 8000

http://127.0.0.1:8000/docs shows every route. With a token, POST /items and /items/remove change the
catalogue, and /reload swaps a model in.
"""

import os
import socket

from recipes.errors import Parser, one_sentence

PATIENCE = 30  # seconds that a stop waits for what runs


def main() -> None:
    """Take the address, load the model, answer until told to stop."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Folder or Hub id.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="Where it listens; 0.0.0.0 is open to everybody."
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="And on which port; 0 takes a free one."
    )
    arguments = parser.parse_args()
    address = taken(arguments.host, arguments.port)

    # They take seconds, which --help and a wrong option need not wait for.
    import torch
    import uvicorn

    from recipes.hub.saved import load_model
    from recipes.serving.server import TOKEN, Service, build_app

    device = "cuda" if torch.cuda.is_available() else "cpu"
    service = Service(arguments.model, lambda name: load_model(name).to(device))
    app = build_app(service, os.environ.get(TOKEN))
    host, port = address.getsockname()[:2]
    print(f"{arguments.model} is served at http://{host}:{port}, /docs says how.", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=PATIENCE
    )
    uvicorn.Server(config).run(sockets=[address])


def taken(host: str, port: int) -> socket.socket:
    """Return a socket of this address, which no other process has.

    Args:
        host: Name or number of an interface.
        port: Number of a port.

    Raises:
        ValueError: It cannot be had.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"`--host` {host} `--port` {port} cannot be had ({error}); name others."
        ) from None
    return found


if __name__ == "__main__":
    with one_sentence():
        main()
