"""What of a folder goes to the Hub, and how it gets there: in one commit, or not at all."""

import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    SpaceCardData,
    constants,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from recipes.card import card, is_generated

ROOT = Path(__file__).resolve().parents[1]
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
    "item_index.json",
    "catalogue.jsonl",
    "metrics.json",
    "*_ttds.py",
)
USER_INDEX = "run.jsonl"
CARD = "README.md"
Files = dict[str, Path | bytes]


class PublishError(RuntimeError):
    """A folder cannot be published, or the Hub did not take it; the message says what to do."""


@dataclass(frozen=True)
class Destination:
    """A repository of the Hub and the right to write to it.

    Args:
        repo_id: `OWNER/NAME`.
        repo_type: `"model"` or `"space"`.
        private: Whether only its owner sees it; None leaves that to the Hub.
        token: Token that may write; None takes the one the client finds.
        variables: What a Space finds in its environment.

    Raises:
        PublishError: `repo_id` is no `OWNER/NAME`.
    """

    repo_id: str
    repo_type: str = "model"
    private: bool | None = None
    token: str | None = field(default=None, repr=False)
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise PublishError(f"`repo_id` is {self.repo_id!r}. {error}") from None
        if "/" not in self.repo_id:
            raise PublishError(f"`repo_id` is {self.repo_id!r}; write it as OWNER/NAME.")

    def check_login(self) -> None:
        """Ask the Hub who we are, so that a long run does not end at a missing token.

        Raises:
            PublishError: Nobody the Hub knows, or no Hub.
        """
        with self._explained():
            HfApi(token=self.token).whoami()

    def send(self, files: Files) -> str:
        """Make the repository hold these files, by one commit; return its address.

        What is there already is not sent again, and where nothing changed there is no commit.
        Files of an earlier publication that are no longer among these are removed.

        Args:
            files: What to send, by name.

        Raises:
            PublishError: The Hub refused or was not reached. All of the files are there, or none.
        """
        api = HfApi(token=self.token)
        where = {"repo_id": self.repo_id, "repo_type": self.repo_type}
        with self._explained():
            url = api.create_repo(
                **where,
                private=self.private,
                exist_ok=True,
                space_sdk="gradio" if self.repo_type == "space" else None,
            )
            info = api.repo_info(**where)
            if self.private and not info.private:
                raise PublishError(
                    f"`private` is set but {self.repo_id} is there and public; make it private in "
                    "its settings, or name another repository."
                )
            for name, value in self.variables.items():
                api.add_space_variable(self.repo_id, name, value)
            there = {file.rfilename for file in info.siblings or ()}
            operations = [CommitOperationAdd(name, source) for name, source in files.items()]
            operations += [
                CommitOperationDelete(name)
                for name in sorted(there - files.keys())
                if any(fnmatch(name, pattern) for pattern in (*MODEL_FILES, USER_INDEX))
            ]
            api.create_commit(**where, operations=operations, commit_message="Publish")
        return str(url)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except PublishError:
            raise
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            raise PublishError(
                f"{self.repo_id} was not published. {self._remedy(error)}"
            ) from error

    def _remedy(self, error: Exception) -> str:
        # The client wraps what breaks during an upload in a `RuntimeError`.
        if isinstance(error, RuntimeError) and error.__cause__ is not None:
            error = error.__cause__
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        owner = self.repo_id.split("/")[0]
        again = "Publish again by recipes/publish.py: what has arrived is not sent twice."
        if isinstance(error, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it."
        if isinstance(error, LocalTokenNotFoundError) or status == 401:
            return (
                "The Hub does not know who you are: run `hf auth login`, or set HF_TOKEN to a "
                "token that may write (https://huggingface.co/settings/tokens)."
            )
        if status == 403:
            return (
                f"Your token may not write there: give it the right to write for {owner} "
                "(https://huggingface.co/settings/tokens), or name a repository of your own."
            )
        if status == 404:
            return f"The Hub has no {owner}, or not this repository; check the spelling."
        if status is not None and status < 500 and status != 429:
            return f"The Hub answered {status}: {error.server_message or 'no reason given'}."
        if status is not None:
            return f"The Hub answered {status}. {again}"
        if isinstance(error, HTTPError | ConnectionError):
            return f"The connection to {constants.ENDPOINT} broke ({type(error).__name__}). {again}"
        return f"{type(error).__name__}: {error}"


def take_over_push(training: Any, options: Any) -> Destination | None:
    """Take pushing away from the trainer, which would push at every checkpoint all it saves.

    Args:
        training: The run's `SFTConfig`; its `push_to_hub` and `hub_token` are cleared.
        options: The run's `TTDSArguments`.

    Returns:
        Where to publish at the end of the run, or None.

    Raises:
        PublishError: No `hub_model_id`, a memory that would be refused at the end, or the Hub does
            not know us.
    """
    if not training.push_to_hub:
        return None
    if training.hub_model_id is None:
        raise PublishError("`push_to_hub` needs `hub_model_id`; pass --hub_model_id OWNER/NAME.")
    if options.gate and options.dataset_name is not None and not options.allow_rare_pairs:
        check_memory(options.memory_min_count)
    destination = Destination(
        training.hub_model_id, private=training.hub_private_repo, token=training.hub_token
    )
    destination.check_login()
    training.push_to_hub, training.hub_token = False, None
    return destination


def model_files(
    folder: str | Path,
    model_id: str,
    include_user_index: bool = False,
    allow_rare_pairs: bool = False,
) -> Files:
    """Return what of a model folder may be published; sources are files or ready content.

    User ids, histories and training rows stay. Local paths in config.json and metrics.json are
    cut to their last part; the card is written anew.

    Args:
        folder: What `recipes/sft.py` wrote.
        model_id: What the card tells a reader to load.
        include_user_index: Send `run.jsonl` too, the recommended lists by user id.
        allow_rare_pairs: Send a memory of pairs of items behind which a single user stands.

    Raises:
        PublishError: The folder is no whole model, or its memory may tell of single users; the
            message says what to do.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise PublishError(f"{folder} has no config.json; name a folder that recipes/sft.py wrote.")
    config = public_json(folder / "config.json")
    if config.get("model_type") != "ttds":
        raise PublishError(f"{folder} holds a {config.get('model_type')!r} model, not `ttds`.")
    allowed = (*MODEL_FILES, USER_INDEX) if include_user_index else MODEL_FILES
    files = {
        file.name: file
        for file in sorted(folder.iterdir())
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in allowed)
    }
    _check_whole(folder, files, config, include_user_index)
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    # Metrics that `recipes/evaluate.py` alone wrote tell nothing of the memory.
    least = metrics.get("options", {}).get("memory_min_count", 1)
    if config["has_gate"] and not (allow_rare_pairs or is_generated(metrics)):
        check_memory(least)
    metrics = public_json(folder / "metrics.json")
    files["config.json"] = json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"
    files["metrics.json"] = json.dumps(metrics, indent=2).encode() + b"\n"
    try:
        files[CARD] = card(model_id, config, metrics).encode()
    except ValueError as error:
        raise PublishError(f"{folder}: {error}") from None
    return files


def check_memory(min_count: int) -> None:
    """Refuse to show others a memory of pairs of items behind which a single user stands.

    Args:
        min_count: Least number of users behind a pair, as the memory was built.

    Raises:
        PublishError: One user is enough.
    """
    if min_count < 2:
        raise PublishError(
            f"`memory_min_count` is {min_count}: the memory holds pairs of items that a single "
            "user chose, which may tell who it was. Train with --memory_min_count 5, or pass "
            "--allow_rare_pairs where everybody may know them."
        )


def _check_whole(
    folder: Path, files: Files, config: dict[str, Any], include_user_index: bool
) -> None:
    if not any(name.endswith(".safetensors") for name in files):
        raise PublishError(f"{folder} has no weights as safetensors; save the model again.")
    needed = {"catalogue.jsonl", "metrics.json", "tokenizer.json", "tokenizer_config.json"}
    if include_user_index:
        needed.add(USER_INDEX)
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

    return public(json.loads(Path(file).read_text("utf-8")))


def write_card(folder: str | Path, model_id: str) -> None:
    """Write the card of a model beside it, by way of a scratch file.

    Args:
        folder: The model's folder, with config.json and metrics.json.
        model_id: What the card tells a reader to load.
    """
    folder = Path(folder)
    content = public_json(folder / "config.json"), public_json(folder / "metrics.json")
    scratch = folder / "README.tmp"
    scratch.write_text(card(model_id, *content), "utf-8")
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
        "requirements.txt": ("\n".join(requirements) + "\n").encode(),
        CARD: text.encode(),
    }


def listing(destination: Destination, files: Files) -> str:
    """Return every file and its size, as text.

    Args:
        destination: Where they go.
        files: The files.
    """
    sizes = {
        name: len(source) if isinstance(source, bytes) else source.stat().st_size
        for name, source in sorted(files.items())
    }
    lines = [f"{destination.repo_id} ({destination.repo_type})"]
    lines += [f"{size:>14,}  {name}" for name, size in sizes.items()]
    lines += [f"{sum(sizes.values()):>14,}  bytes in {len(sizes)} files"]
    lines += [f"  with {name}={value}" for name, value in destination.variables.items()]
    return "\n".join(lines)
