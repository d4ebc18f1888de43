"""Load-test the server on loopback: many clients, and one that asks one request at a time.

python -m benchmarks.serving --model outputs/demo
"""

import argparse
import os

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="The model's folder.")
    parser.add_argument("--name", default="serving", help="Name of the result.")
    parser.add_argument("--clients", type=int, default=50, help="How many ask at once.")
    parser.add_argument("--seconds", type=int, default=60, help="For how long.")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="Threads of the server."
    )
    ARGUMENTS = parser.parse_args()

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.result import write_result

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = Path(__file__).with_name("serving_clients.py")


def percentile(times: dict[str, int], share: float) -> int:
    """Return the time within which a share of the requests were answered, in milliseconds.

    Args:
        times: How many requests took so many milliseconds.
        share: The share, from 0 to 1.
    """
    left = share * sum(times.values())
    for milliseconds, count in sorted((int(t), count) for t, count in times.items()):
        left -= count
        if left <= 0:
            return milliseconds
    raise ValueError("There are no requests.")


def load_test(url: str, catalogue: Path, clients: int, seconds: int) -> dict[str, Any]:
    """Let clients ask for a while; return requests a second, percentiles and errors.

    Args:
        url: Where the server is.
        catalogue: The model's catalogue.jsonl.
        clients: Number of clients.
        seconds: How long.
    """
    command = [
        sys.executable, "-m", "locust", "-f", str(CLIENTS), "--headless", "--json",
        "--host", url, "--users", str(clients), "--spawn-rate", str(clients),
        "--run-time", f"{seconds}s", "--stop-timeout", "30", "--loglevel", "ERROR",
    ]  # fmt: skip
    environment = os.environ | {"TTDS_CATALOGUE": str(catalogue)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    entry = json.loads(done.stdout)[0]
    times, taken = entry["response_times"], entry["last_request_timestamp"] - entry["start_time"]
    return {
        "clients": clients,
        "requests": entry["num_requests"],
        "errors": entry["num_failures"],
        "requests_per_second": round(entry["num_requests"] / taken, 2),
        **{f"p{share}_ms": percentile(times, share / 100) for share in (50, 95, 99)},
    }


def wait_for(url: str, process: subprocess.Popen) -> dict[str, Any]:
    """Return what `/health` says as soon as it says something.

    Args:
        url: Where the server will be.
        process: The server.

    Raises:
        RuntimeError: It ended.
    """
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
                return json.load(answer)
        except urllib.error.URLError:
            time.sleep(0.1)
    raise RuntimeError(f"The server ended with status {process.returncode}.")


def main(arguments: argparse.Namespace) -> None:
    """Start the server, test it with many clients and with one, write the result.

    Args:
        arguments: The command line.
    """
    begun, load = time.perf_counter(), os.getloadavg()[0]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    command = [sys.executable, "recipes/serve.py", "--model", arguments.model, "--port", "0"]
    with tempfile.TemporaryFile("w+") as said:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, text=True)
        try:
            while "http://" not in (line := _content(said)) and server.poll() is None:
                time.sleep(0.1)
            url = line.split(" at ")[1].split(",")[0]
            health = wait_for(url, server)
            catalogue = Path(arguments.model) / "catalogue.jsonl"
            rows = [
                load_test(url, catalogue.resolve(), clients, arguments.seconds)
                for clients in (1, arguments.clients)
            ]
        finally:
            server.terminate()
            server.wait()
    one, many = (row["requests_per_second"] for row in rows)
    content = {
        "items": health["items"],
        "cores": os.cpu_count(),
        "server_threads": arguments.threads,
        "load_before": round(load, 2),
        "rows": rows,
        "times_one_at_a_time": round(many / one, 2),
    }
    print(json.dumps(content, indent=2))
    write_result(arguments.name, 0, time.perf_counter() - begun, content)


def _content(file) -> str:
    file.seek(0)
    return file.read()


if __name__ == "__main__":
    main(ARGUMENTS)
