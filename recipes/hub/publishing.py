"""What of a folder goes to the Hub, and how it gets there: in one commit, or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
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
from trl import SFTConfig

from recipes.config import DataOptions, OutputOptions, RerankerOptions
from recipes.hub.files import MODEL_FILES, USER_LISTS, Files, PublishError, check_cooccurrence


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
                if any(fnmatch(name, pattern) for pattern in (*MODEL_FILES, USER_LISTS))
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


def take_over_push(
    training: SFTConfig, data: DataOptions, reranker: RerankerOptions, output: OutputOptions
) -> Destination | None:
    """Take pushing away from the trainer, which would push at every checkpoint all it saves.

    Args:
        training: How the run is tuned; its `push_to_hub` and `hub_token` are cleared.
        data: Says whether the data are the generated ones.
        reranker: Says what the co-occurrence memory keeps.
        output: Says whether it may be sent whatever it keeps.

    Returns:
        Where to publish at the end of the run, or None.

    Raises:
        PublishError: No `hub_model_id`, a co-occurrence memory that would be refused at the end, or
            the Hub does not know us.
    """
    if not training.push_to_hub:
        return None
    if training.hub_model_id is None:
        raise PublishError("`push_to_hub` needs `hub_model_id`; pass --hub_model_id OWNER/NAME.")
    if reranker.memory and data.dataset_name is not None and not output.allow_rare_pairs:
        check_cooccurrence(reranker.min_pair_users)
    destination = Destination(
        training.hub_model_id, private=training.hub_private_repo, token=training.hub_token
    )
    destination.check_login()
    training.push_to_hub, training.hub_token = False, None
    return destination


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
