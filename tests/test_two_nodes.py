"""Two launchers meet, as two machines do, by the file for two nodes; here on loopback."""

import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd

from recipes.data.tables import write_data
from tests.conftest import ROOT

CONFIG = ROOT / "recipes" / "accelerate" / "two_nodes.yaml"


def test_two_launchers_share_the_lists(built, shop, tmp_path):
    write_data(shop.data, tmp_path / "data")
    built.save_pretrained(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    running = []
    for rank in (1, 0):  # in any order
        command = [
            accelerate, "launch", "--config_file", str(CONFIG), "--machine_rank", str(rank),
            "--main_process_ip", "127.0.0.1", "--main_process_port", str(port),
            "--num_processes", "2", "--mixed_precision", "no",
            "recipes/recommend.py", "--use_cpu", "--model", str(tmp_path / "model"),
            "--dataset_name", str(tmp_path / "data"), "--output", str(tmp_path / "lists"),
            "--shard_size", "40",
        ]  # fmt: skip
        running.append(
            subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    try:
        said = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], said[0][1][-2000:]
    assert "Process 1: 70 users" in said[0][0] and "Process 0: 80 users" in said[1][0]
    parts = sorted((tmp_path / "lists").glob("part-*.parquet"))
    lists = pd.concat([pd.read_parquet(part) for part in parts])
    assert lists.user_id.tolist() == shop.data.user_ids
