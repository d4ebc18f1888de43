"""What may leave this machine: the files of a model and of a Space, and what must stay."""

import json
import re
import shlex
import tomllib
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import SpaceCardData
from safetensors import safe_open

from recipes.evaluation.report import lists_folder, read_json
from recipes.hub.card import CURVE, NEEDS, card, is_generated, keeps_pairs
from recipes.index.embeddings import hashed

ROOT = Path(__file__).resolve().parents[2]
# All that may leave: checkpoints, optimizer states, pickles and whatever else lies there stay.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "sid_table.json",
    "catalogue.jsonl",
    "metrics.json",
    CURVE,
    "*_ttds.py",
)
USER_LISTS = "run.jsonl"
CARD = "README.md"
# What an Inference Endpoint runs, and what it installs first.
HANDLER, REQUIREMENTS = "handler.py", "requirements.txt"
Files = dict[str, Path | bytes]


class PublishError(RuntimeError):
    """A folder cannot be published, or the Hub did not take it; the message says what to do."""


def model_files(
    folder: str | Path,
    model_id: str,
    include_user_lists: bool = False,
    allow_rare_pairs: bool = False,
) -> Files:
    """Return what of a model folder may be published; sources are files or ready content.

    User ids, histories and training rows stay. Local paths in config.json and metrics.json are
    cut to their last part; the card is written anew, and says so where metrics.json is of an
    earlier state of the model. What an Inference Endpoint runs goes along.

    Args:
        folder: What `recipes/sft.py` wrote.
        model_id: What the card tells a reader to load.
        include_user_lists: Send `run.jsonl` too, the recommended lists by user id, which lie beside
            the folder.
        allow_rare_pairs: Send a co-occurrence memory of pairs of items behind which a single user
            stands.

    Raises:
        PublishError: The folder is no whole model, or its co-occurrence memory may tell of single
            users; the message says what to do.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise PublishError(f"{folder} has no config.json; name a folder that recipes/sft.py wrote.")
    config = public_json(folder / "config.json")
    if config.get("model_type") != "ttds":
        raise PublishError(f"{folder} holds a {config.get('model_type')!r} model, not `ttds`.")
    files = {
        file.name: file
        for file in sorted(folder.iterdir())
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in MODEL_FILES)
    }
    lists = lists_folder(folder) / USER_LISTS
    if include_user_lists and lists.is_file():
        files[USER_LISTS] = lists
    _check_whole(folder, files, config, include_user_lists)
    metrics = read_json(folder / "metrics.json")
    least = config.get("min_pair_users") or metrics.get("options", {}).get("min_pair_users", 1)
    if keeps_pairs(config) and not (allow_rare_pairs or is_generated(metrics)):
        check_cooccurrence(least)
    metrics = public_json(folder / "metrics.json")
    files["config.json"] = json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"
    files["metrics.json"] = json.dumps(metrics, indent=2).encode() + b"\n"
    files[HANDLER] = ROOT / "recipes" / "serving" / HANDLER
    files[REQUIREMENTS] = ("\n".join(shlex.split(NEEDS)) + "\n").encode()
    measured = metrics.get("model_sha256")
    stale = measured is not None and measured != model_sha256(folder)
    try:
        files[CARD] = card(model_id, config, metrics, stale, CURVE in files).encode()
    except ValueError as error:
        raise PublishError(f"{folder}: {error}") from None
    return files


def model_sha256(folder: str | Path) -> str:
    """Return the hash of a saved model, by which metrics know what they were measured on.

    Weights and items count, how they are spread over files does not.

    Args:
        folder: The model's folder.
    """
    where = {}
    for file in sorted(Path(folder).glob("model*.safetensors")):
        with safe_open(file, "pt") as stored:
            where |= dict.fromkeys(stored.keys(), file)
    parts = [(Path(folder) / "catalogue.jsonl").read_bytes()]
    for name in sorted(where):
        with safe_open(where[name], "pt") as stored:
            parts += [name, hashed(stored.get_tensor(name))]
    return hashed(*parts)


def check_cooccurrence(min_pair_users: int) -> None:
    """Refuse to show others pairs of items behind which a single user stands.

    Args:
        min_pair_users: Least number of users behind a pair, as the co-occurrence memory was built.

    Raises:
        PublishError: One user is enough.
    """
    if min_pair_users < 2:
        raise PublishError(
            f"`min_pair_users` is {min_pair_users}: the co-occurrence memory holds pairs of items "
            "that a single user chose, which may tell who it was. Train with --min_pair_users 5, "
            "or pass --allow_rare_pairs where everybody may know them."
        )


def _check_whole(
    folder: Path, files: Files, config: dict[str, Any], include_user_lists: bool
) -> None:
    if not any(name.endswith(".safetensors") for name in files):
        raise PublishError(f"{folder} has no weights as safetensors; save the model again.")
    needed = {"catalogue.jsonl", "metrics.json", "tokenizer.json", "tokenizer_config.json"}
    if include_user_lists:
        needed.add(USER_LISTS)
    if "model.safetensors.index.json" in files:
        index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
        needed |= set(index["weight_map"].values())
    # Code is named by the configurations and by code; one missing file and nobody can load it.
    for name in ("config.json", "tokenizer_config.json"):
        if name in files:
            named = re.findall(r'"(\w+_ttds)\.\w+"', (folder / name).read_text("utf-8"))
            needed |= {f"{module}.py" for module in named}
    for name in [name for name in files if name.endswith(".py")]:
        named = re.findall(r"^\s*from \.(\w+) import", (folder / name).read_text("utf-8"), re.M)
        needed |= {f"{module}.py" for module in named}
    if missing := sorted(needed - files.keys()):
        remedy = "save model and tokenizer again"
        if missing == ["metrics.json"]:
            remedy = f"measure the model by recipes/evaluate.py --model {folder}"
        raise PublishError(f"{folder} lacks {', '.join(missing)}; {remedy}.")
    encoder = json.loads((folder / "config.json").read_text("utf-8"))["text_encoder"]
    local = encoder != config["text_encoder"] or Path(encoder).exists()
    if encoder not in ("tokens", "backbone") and local:
        raise PublishError(
            f"`text_encoder` is the folder {encoder}, which nobody else has; publish it, and write "
            "its Hub id into config.json."
        )


def public_json(file: str | Path) -> Any:
    """Return the content of a JSON file, local paths in it cut to their last part.

    Args:
        file: The file.
    """

    def public(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: public(part) for name, part in value.items()}
        if isinstance(value, list):
            return [public(part) for part in value]
        local = isinstance(value, str) and re.match(r"[/~\\]|\.\.?[/\\]|[A-Za-z]:\\", value)
        return PurePath(value.replace("\\", "/")).name if local else value

    return public(read_json(file))


def write_card(folder: str | Path, model_id: str) -> None:
    """Write the card of a model beside it, by way of a scratch file.

    Args:
        folder: The model's folder, with config.json and metrics.json.
        model_id: What the card tells a reader to load.
    """
    folder = Path(folder)
    content = public_json(folder / "config.json"), public_json(folder / "metrics.json")
    scratch = folder / "README.tmp"
    scratch.write_text(card(model_id, *content, curve=(folder / CURVE).is_file()), "utf-8")
    scratch.replace(folder / CARD)


def space_files(model_repo_id: str) -> Files:
    """Return the files of a Space that shows a model: the page, what it needs, its card.

    The page reads the model's name from the environment variable `TTDS_MODEL`.

    Args:
        model_repo_id: The model it shows.

    Raises:
        PublishError: There is no app.py, or gradio is not installed.
    """
    app = ROOT / "app.py"
    if not app.is_file():
        raise PublishError(f"{app} is missing; a Space needs it. Restore it, or leave out --space.")
    try:
        sdk_version = version("gradio")
    except PackageNotFoundError:
        raise PublishError(
            "A Space names the gradio it was tried with, and none is installed; "
            'run `pip install -e ".[app]"` and try `python app.py` first.'
        ) from None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["app"]
    name = model_repo_id.split("/")[-1]
    metadata = SpaceCardData(
        title=name,
        emoji="🧭",
        colorFrom="indigo",
        colorTo="green",
        sdk="gradio",
        sdk_version=sdk_version,
        python_version="3.11",
        app_file="app.py",
        license=project["license"].lower(),
        models=[model_repo_id],
        tags=["recommendation"],
    )
    text = (
        f"---\n{metadata.to_yaml()}\n---\n\n# {name}\n\nRecommendations by "
        f"[{model_repo_id}](https://huggingface.co/{model_repo_id}). The page loads the model that "
        "the variable `TTDS_MODEL` names.\n"
    )
    return {
        "app.py": app,
        REQUIREMENTS: ("\n".join(requirements) + "\n").encode(),
        CARD: text.encode(),
    }
