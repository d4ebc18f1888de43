"""A saved model and its data: loading it, reading data as it was trained on, comparing."""

import argparse
import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.utils import cached_file

from modeling_ttds import TTDSConfig, TTDSForCausalLM
from recipes.config import READING, DataOptions
from recipes.data.load import load_data
from recipes.data.origin import data_identity, difference, vocabulary_sha256
from recipes.data.split import Split, split_data
from recipes.data.tables import Data
from recipes.data.toyshop import Toyshop
from recipes.errors import named_model


def load_model(name: str) -> TTDSForCausalLM:
    """Load a model and check that it is whole.

    Args:
        name: What `--model` names: a folder, or a model on the Hub.

    Raises:
        ValueError: It is none of ours, or its tokenizer is not the one it was trained with.
        FileNotFoundError: There is none.
    """
    if not Path(name).is_dir() and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        kind = "a file" if Path(name).is_file() else "no folder"
        raise FileNotFoundError(f"`--model` {name} is {kind}; name the folder of a model.")
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise FileNotFoundError(
            f"`--model` {name} has no config.json; name a folder that recipes/sft.py wrote."
        )
    with named_model("--model", name):
        config = AutoConfig.from_pretrained(name)
    if not isinstance(config, TTDSConfig):
        raise ValueError(f"`--model` {name} holds a {config.model_type!r} model, not `ttds`.")
    with named_model("--model", name):
        model = TTDSForCausalLM.from_pretrained(name).eval()
        vocabulary = vocabulary_sha256(model.tokenizer.get_vocab())
    trained = config.trained_on or {}
    if trained.get("vocabulary_sha256", vocabulary) != vocabulary:
        raise ValueError(
            f"`--model` {name} has another tokenizer than it was trained with; save model and "
            "tokenizer together."
        )
    return model


def read_as_trained(
    arguments: argparse.Namespace, config: TTDSConfig
) -> tuple[Data, Toyshop | None, bool]:
    """Read data as the model's were read for training, but for what the command line says.

    Args:
        arguments: As of `recipes.config.add_data_arguments`.
        config: The model's configuration.

    Returns:
        The data, the shop behind them if they are generated, and whether they were read otherwise.
    """
    trained = (config.trained_on or {}).get("options", {})
    said = {
        name: getattr(arguments, name) for name in READING if getattr(arguments, name) is not None
    }
    remembered = {name: trained[name] for name in READING if name in trained}
    options = DataOptions(arguments.dataset_name, **(remembered | said))
    otherwise = any(getattr(options, name) != value for name, value in remembered.items())
    data, shop = load_data(options, trained.get("seed", 0))
    return data, shop, otherwise


def which_split(arguments: argparse.Namespace, config: TTDSConfig) -> str:
    """Return the name of the split that a model is to be measured on, before any data are read.

    Args:
        arguments: `model`, `allow_other_data`, and `split`, None where it says nothing.
        config: The model's configuration.

    Raises:
        ValueError: The command line names another split than the model was trained on, whose
            targets the model may have seen.
    """
    ours = (config.trained_on or {}).get("options", {}).get("split", "leave_one_out")
    if arguments.split not in (None, ours) and not arguments.allow_other_data:
        raise ValueError(
            f"{arguments.model} was trained on `split` {ours!r}, so it may have seen targets of "
            f"{arguments.split!r}; leave --split out, or pass --allow_other_data to measure it "
            "all the same."
        )
    return arguments.split or ours


def split_as_trained(arguments: argparse.Namespace, config: TTDSConfig, data: Data) -> Split:
    """Split data as the model's were split for training, but for what the command line says.

    Args:
        arguments: As of `which_split`, and `exclude_seen`, None where it says nothing.
        config: The model's configuration.
        data: The data.

    Raises:
        ValueError: As of `which_split`.
    """
    trained = (config.trained_on or {}).get("options", {})
    seen = arguments.exclude_seen
    return split_data(
        data,
        config.exclude_seen if seen is None else seen,
        which_split(arguments, config),
        trained.get("timeline_target", "first"),
        trained.get("seed", 0),
    )


def model_folder(name: str) -> Path:
    """Return the folder of a model's files: itself, or where those of the Hub are kept.

    Args:
        name: What `--model` names.
    """
    return Path(cached_file(name, "config.json")).parent


def check_items(model: TTDSForCausalLM, name: str, data: Data, may_lack: bool = False) -> list[int]:
    """Return the model's row of every item of the data; refuse items that are other ones.

    Args:
        model: The model.
        name: What `--model` names.
        data: The data.
        may_lack: Whether the model may lack some of the items, which get the row -1.

    Raises:
        ValueError: The model does not know an item, or most of the items it knows have other texts.
    """
    unknown = [item for item in data.catalogue.item_ids if item not in model.row_of]
    if unknown and not (may_lack and len(unknown) < len(data.catalogue)):
        raise ValueError(
            f"{name} does not know {len(unknown):,} of the data's {len(data.catalogue):,} items, "
            f"the first is {unknown[0]!r}; update it by recipes/update.py, or name its own data by "
            "`--dataset_name`."
        )
    check_texts(model, name, data)
    return [model.row_of.get(item, -1) for item in data.catalogue.item_ids]


def check_texts(model: TTDSForCausalLM, name: str, data: Data) -> None:
    """Refuse data most of whose items are other ones than the model's of the same ids.

    Args:
        model: The model.
        name: What `--model` names.
        data: The data; items that the model does not know are passed over.

    Raises:
        ValueError: Most of the items it knows have other texts.
    """
    known = [entry for entry in data.catalogue.entries() if entry["item_id"] in model.row_of]
    others = [
        (ours["item_id"], ours[field], theirs.get(field, ""))
        for ours in known
        for theirs in [model.catalogue[model.row_of[ours["item_id"]]]]
        for field in ("title", "brand", "categories")
        if ours[field] != theirs.get(field, "")
    ]
    count = len({item for item, _, _ in others})
    if count > len(known) / 2:
        item, ours, theirs = others[0]
        raise ValueError(
            f"{name} belongs to other data: {count:,} of {len(known):,} items have other texts, "
            f"the first is {item!r} with {ours!r} here and {theirs!r} there."
        )
    if count:
        print(f"{count:,} of {len(known):,} items have other texts than when {name} was made.")


def check_same_data(config: TTDSConfig, name: str, data: Data) -> None:
    """Refuse data the model was not trained on, which its figures would not be about.

    Args:
        config: The model's configuration.
        name: What `--model` names.
        data: The data.

    Raises:
        ValueError: They differ; the message says in what.
    """
    trained: dict[str, Any] | None = config.trained_on
    differs = trained and difference(data_identity(data), trained)
    if differs:
        raise ValueError(
            f"{name} was trained on other data: these have {differs}. Name its own, or pass "
            "--allow_other_data to measure it on these."
        )
