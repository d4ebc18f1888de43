"""What makes a model belong to its data: hashes and options, kept with it and compared."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from recipes.config import TTDSArguments
from recipes.data.tables import Data

# Groups of options that shape model, prompts or data; names of folders may change.
GROUPS = ("data", "index", "language_model", "examples", "refresh")
PLACES = ("dataset_name", "cache_dir", "text_embeddings")


def origin(
    data: Data,
    vocabulary: Mapping[str, int],
    options: TTDSArguments,
    backbone: str | None,
    seed: int,
) -> dict[str, Any]:
    """Return what a model made of this data is known by, as JSON holds it.

    Args:
        data: The data set.
        vocabulary: The tokenizer's tokens and their ids.
        options: Every option.
        backbone: Name of the backbone, None if there is none.
        seed: Seed of the run.
    """
    chosen = {
        name: value
        for group in GROUPS
        for name, value in vars(getattr(options, group)).items()
        if name not in PLACES
    }
    content = data_identity(data) | {
        "vocabulary_sha256": vocabulary_sha256(vocabulary),
        "options": chosen | {"backbone": backbone, "seed": seed},
    }
    return json.loads(json.dumps(content))


def data_identity(data: Data) -> dict[str, Any]:
    """Return the part of `origin` that the data alone decide.

    Args:
        data: The data set.
    """
    return {
        "items": len(data.catalogue),
        "users": len(data.user_ids),
        "interactions": sum(len(history) for history in data.histories),
        "items_sha256": _sha256(data.catalogue.item_ids),
        "data_sha256": data.sha256,
    }


def vocabulary_sha256(vocabulary: Mapping[str, int]) -> str:
    """Return the hash of a tokenizer's tokens and their ids.

    Args:
        vocabulary: The tokens and their ids.
    """
    return _sha256(sorted(vocabulary.items()))


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """Say in what our data, vocabulary or options differ from what a model was trained on.

    Args:
        ours: As of `origin` or `data_identity`.
        theirs: As of `origin`.

    Returns:
        A part of a sentence, or None where nothing differs.
    """
    for name in ("items", "users", "interactions"):
        if ours[name] != theirs[name]:
            return f"{ours[name]:,} {name}, not {theirs[name]:,}"
    if ours["items_sha256"] != theirs["items_sha256"]:
        return "other items, or the same in another order"
    chosen, trained = ours.get("options", {}), theirs["options"]
    for name in chosen:
        if chosen[name] != trained.get(name):
            return f"`{name}` {chosen[name]!r}, not {trained.get(name)!r}"
    if ours["data_sha256"] != theirs["data_sha256"]:
        return "as many items, users and interactions, but other ones or other texts"
    if ours.get("vocabulary_sha256", "") not in ("", theirs["vocabulary_sha256"]):
        return "another vocabulary"
    return None


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
