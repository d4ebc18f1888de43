"""The model card: what a model is, how to use it, what it was measured at. Figures are measured."""

from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from huggingface_hub import DatasetCard, EvalResult, ModelCardData

from modeling_ttds.configuration_ttds import TTDSConfig
from recipes.evaluation.report import LM_ONLY, MODES, TTDS

if TYPE_CHECKING:
    from recipes.data.tables import Data

GENERATED_DATA = "toyshop"
NEEDS = '"transformers>=5.17,<6" torch safetensors'
CURVE = "training.png"
COLUMNS = ("HR@5", "HR@10", "NDCG@5", "NDCG@10", "coverage@10")
RARE = "cold_HR@10"  # of users whose target training had seen at most 5 times
NEW, ENOUGH = "new_HR@10", 20  # of users whose target nobody had chosen; fewer users say nothing
STALE = (
    "**Measured before the model was changed.** Items were added or removed, or weights changed, "
    "after the figures of this card were measured; `recipes/evaluate.py` measures them anew."
)
CITATION = """\
@misc{yin2024unleash,
  title  = {Unleash LLMs Potential for Recommendation by Coordinating Twin-Tower Dynamic Semantic
            Token Generator},
  author = {Jun Yin and Zhengxin Zeng and Mingzheng Li and Hao Yan and Chaozhuo Li and
            Weihao Han and Jianjin Zhang and Ruochen Liu and Allen Sun and Denvy Deng and
            Feng Sun and Qi Zhang and Shirui Pan and Senzhang Wang},
  year   = {2024},
  eprint = {2409.09253},
  archivePrefix = {arXiv},
}"""


def card(
    model_id: str,
    config: dict[str, Any],
    metrics: dict[str, Any],
    stale: bool = False,
    curve: bool = False,
) -> str:
    """Return the text of a model card with its metadata.

    Args:
        model_id: What the card tells a reader to load: a Hub id or a folder.
        config: The model's `config.json`.
        metrics: What `recipes/sft.py` or `recipes/evaluate.py` wrote to `metrics.json`.
        stale: Whether the model was changed after it was measured; the card says so, and its
            metadata claim no result.
        curve: Whether the picture of the training lies beside the card.

    Raises:
        ValueError: `metrics` holds no measured rows.
    """
    which = "test" if "test" in metrics else "validation"
    rows = metrics.get(which)
    if not rows:
        raise ValueError(
            "metrics.json has no rows under `test`; measure the model by recipes/evaluate.py."
        )
    sections = [
        f"---\n{_metadata(model_id, metrics, which, stale).to_yaml()}\n---",
        f"# {model_id.rstrip('/').split('/')[-1]}",
        _what_it_is(config, metrics),
        "## Use",
        _use(model_id),
        "## Data",
        _data(metrics),
        "## Results",
        *([STALE] if stale else []),
        _results(config, rows, which),
        "## Semantic IDs",
        _codes(config, metrics, rows),
        "## Rare items and new ones",
        _rare_and_new(_main_row(rows)),
        "## When not to use it",
        _when_not(config),
        "## Limits and biases",
        _limits(config, metrics, _main_row(rows)),
        "## Training",
        *([f"![training loss and validation NDCG@10 by step]({CURVE})"] if curve else []),
        _training(metrics),
        "## Citation",
        "The method follows [arXiv:2409.09253](https://arxiv.org/abs/2409.09253); this is an "
        "independent implementation.\n\n"
        f"```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def data_facts(name: str | None, data: "Data") -> dict[str, Any]:
    """Return what a card says about a data set: where it is, its size, licence and languages.

    Args:
        name: Its folder or Hub id; None for the generated one.
        data: Its content.
    """
    on_hub = name is not None and not Path(name).is_dir()
    licence, language = ("apache-2.0", "en") if name is None else (None, None)
    try:
        if name is not None:
            told = DatasetCard.load(name if on_hub else f"{name}/README.md").data
            licence, language = told.license, told.language
    except (OSError, ValueError):
        pass  # no card, no licence: the model's card says so
    return {
        "on_hub": on_hub,
        "license": licence,
        "language": language,
        "users": len(data.user_ids),
        "items": len(data.catalogue.item_ids),
        "interactions": sum(len(history) for history in data.histories),
        "given_splits": data.given is not None,
    }


def is_generated(metrics: dict[str, Any]) -> bool:
    """Return whether a model was made of the generated data, not of a folder of the same name.

    Args:
        metrics: As of `card`.
    """
    named = metrics.get("options", {}).get("dataset_name")
    return metrics.get("dataset") == GENERATED_DATA and named is None


def shown_name(name: str) -> str:
    """Return a Hub id as it is, and a folder by its own name, which has no slash.

    Args:
        name: Hub id or folder.
    """
    return Path(name).resolve().name if Path(name).is_dir() else name


def _dataset(metrics: dict[str, Any]) -> str:
    name = metrics.get("dataset", "unknown")
    return name if metrics.get("data", {}).get("on_hub") else PurePath(name).name


def _main_row(rows: dict[str, dict]) -> dict[str, float]:
    return rows[[mode for mode in MODES if mode in rows][-1]]


def _metadata(model_id: str, metrics: dict[str, Any], which: str, stale: bool) -> ModelCardData:
    name, backbone = _dataset(metrics), metrics.get("backbone")
    row = _main_row(metrics[which])
    results = [
        EvalResult(
            task_type="sequential-recommendation",
            task_name="Sequential recommendation",
            dataset_type=name,
            dataset_name=name,
            dataset_split=which,
            metric_type=metric,
            metric_name=metric,
            metric_value=round(row[metric], 4),
        )
        for metric in COLUMNS
        if metric in row
    ]
    # What is made of somebody else's data or weights is not ours to license.
    ours = is_generated(metrics) and backbone is None
    return ModelCardData(
        model_name=model_id.rstrip("/").split("/")[-1],
        license="apache-2.0" if ours else None,
        library_name="transformers",
        pipeline_tag="text-generation",  # the Hub has none for recommenders
        language=metrics.get("data", {}).get("language"),
        base_model=backbone if backbone and "/" in backbone else None,
        datasets=[name] if metrics.get("data", {}).get("on_hub") else None,
        tags=["recommendation", "sequential-recommendation", "generative-recommendation", "ttds"],
        eval_results=None if stale else results,
    )


def keeps_pairs(config: dict[str, Any]) -> bool:
    """Return whether a co-occurrence memory is among a model's weights.

    Args:
        config: The model's configuration, as its file holds it.
    """
    return TTDSConfig.from_dict(config).has_cooccurrence


def _what_it_is(config: dict[str, Any], metrics: dict[str, Any]) -> str:
    tower, decoder = config["item_tower"], config["backbone_config"]
    start, encoder = metrics.get("backbone"), config["text_encoder"]
    embedded = {
        "tokens": "a table of the tokenizer's tokens, in the weights",
        "backbone": "by the decoder",
    }.get(encoder, f"by `{encoder}`, which is loaded when items are added or words asked for")
    origin = f"tuned from `{start}`" if start else "trained from scratch"
    ranking = ""
    if keeps_pairs(config):
        joins = "memory and a small re-ranker add" if config.get("has_reranker") else "memory adds"
        ranking = f" A co-occurrence {joins} counting to the language model."
    return (
        "A generative recommender. Two towers give every item and every user a semantic ID of "
        f"{tower['num_levels']} codes, each one of {tower['num_codes']}, from text and from "
        "interactions. A causal language model reads a user and a history as SID tokens and writes "
        "the SID tokens of the next item; a trie keeps it to items that exist."
        f"{ranking}\n\n"
        f"- Decoder: `{decoder['model_type']}`, {origin}\n"
        f"- Catalogue: {config['num_items']:,} items, in `catalogue.jsonl`\n"
        f"- Text embeddings: {embedded}\n"
        f"- History: the newest {config['max_history']} items count"
    )


def _use(model_id: str) -> str:
    return f'''\
`pip install {NEEDS}` is all it needs; `device_map` takes `accelerate` too.

```python
from transformers import AutoModel, pipeline

model = AutoModel.from_pretrained("{model_id}", trust_remote_code=True)
history = [entry["item_id"] for entry in model.catalogue[:3]]
for best in model.recommend([history], top_k=5)[0]:
    print(f"{{best.score:7.2f}}  {{best.title}}")

# A new item gets a semantic ID from its text; nothing is trained again.
model.add_items([{{"item_id": "new", "title": "A title", "categories": "Some > Category"}}])
model.recommend([["new"]], top_k=5)

recommend = pipeline(model="{model_id}", trust_remote_code=True)
recommend([{{"history": history, "top_k": 5}}, {{"history": []}}])
```

A user is nothing but a history of item ids, newest last; an unseen one works like a seen one.
An Inference Endpoint runs `handler.py`; post `{{"inputs": {{"history": ["ID"], "top_k": 5}}}}`.
`trust_remote_code=True` runs the `*_ttds.py` files beside the weights: read them, and pin what you
read by `revision="COMMIT"`.'''


def _data(metrics: dict[str, Any]) -> str:
    name, data = _dataset(metrics), metrics.get("data", {})
    counts = ""
    if "interactions" in data:
        counts = (
            f" {data['users']:,} users, {data['items']:,} items, {data['interactions']:,} "
            "interactions."
        )
    if is_generated(metrics):
        text = (
            f"`{name}`, a generated shop.{counts} No real person and no real sale is in it. "
            "Licence: Apache-2.0, as of the code that generates it."
        )
    else:
        licence = data.get("license")
        text = f"`{name}`.{counts} " + (
            f"Its licence, by its own card: `{licence}`."
            if licence
            else "Its licence is not stated where it was read from; ask its owners before you use "
            "or redistribute what is made of it, the titles in `catalogue.jsonl` among it."
        )
    if "data_sha256" in metrics:
        text += f"\n\nSHA-256 of the data as read: `{metrics['data_sha256']}`."
    split = (
        "Leave-one-out split: the last interaction of a user is the test target, the one before it "
        "the validation target."
    )
    if metrics.get("options", {}).get("split") == "timeline":
        which = metrics["options"].get("timeline_target", "first")
        split = (
            "A timeline: the quantiles .8 and .9 of the timestamps end training and validation for "
            f"all users, and a user's {which} interaction of a period is its target. Settings, "
            "priors and re-ranker are of a model that learnt from training alone; the one here "
            "learnt anew from both periods before the test. Items that appeared later were added "
            "by `add_items` from their text."
        )
    elif data.get("given_splits"):
        split = (
            "The data set's own splits: the first interaction of a user in its validation and test "
            "split is the target."
        )
    learnt = "Towers, language model and co-occurrence memory learn from the rest"
    if updated := metrics.get("updated"):
        learnt = (
            f"Towers and language model learnt from {updated['learnt_from']['interactions']:,} "
            "interactions of an earlier state of the data; the co-occurrence memory counts the rest"
        )
    return text + (
        f"\n\n{split} {learnt}; the re-ranker, where there is one, is fitted on the validation "
        "targets."
    )


def _results(config: dict[str, Any], rows: dict[str, dict], which: str) -> str:
    columns = dict(zip(COLUMNS, COLUMNS, strict=True)) | {RARE: "HR@10, rare"}
    lines = [
        "| | " + " | ".join(columns.values()) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, row in rows.items():
        cells = (f"{row[column]:.4f}" if column in row else "" for column in columns)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    users = f"{_main_row(rows)['users']:,}"
    seen = "left out" if config.get("exclude_seen", True) else "among them"
    notes = (
        f"{which.capitalize()} split, {users} users, full ranking of the catalogue, seen items "
        f"{seen}. `coverage@10` is the share of the catalogue that is in anybody's top ten; a rare "
        "target is one that training had seen at most 5 times."
    )
    if TTDS in rows:
        both = "language model and re-ranker together"
        if not config.get("has_reranker"):
            both = "what is generated, since validation was better without a re-ranker"
        notes += f" `{TTDS}` is {both}, `{LM_ONLY}` the language model alone."
    if "oracle" in rows:
        notes += " The oracle knows the true probabilities the data was drawn from."
    return "\n".join(lines) + f"\n\n{notes}"


def _codes(config: dict[str, Any], metrics: dict[str, Any], rows: dict[str, dict]) -> str:
    num_codes = config["item_tower"]["num_codes"]
    lines = []  # of the towers before the language model was tuned, and of the frozen SID table
    for kind, tower in metrics.get("towers", {}).items():
        used = [value for name, value in tower.items() if name.startswith("perplexity_")]
        levels = ", ".join(f"{value:.1f}" for value in used)
        lines.append(
            f"- {kind}s: effective number of codes per level {levels} of {num_codes}; "
            f"{tower['collision_rate']:.1%} shared their semantic ID with another before the freeze"
        )
    row = rows.get(LM_ONLY, {})
    if "unique_sids" in row:
        lines.append(f"- {row['unique_sids']:.1%} of the items have unique semantic IDs")
    return "\n".join(lines) or "Not measured."


def _rare_and_new(row: dict[str, float]) -> str:
    text = ""
    if RARE in row:
        text = (
            f"Rare items: {row['cold_users']:,} users chose an item that training had seen at most "
            f"5 times; HR@10 is {row[RARE]:.4f} for them, {row['HR@10']:.4f} for all.\n\n"
        )
    measured = (
        "How well this model finds them was not measured: `python -m benchmarks.cold_start` holds "
        "items out of training and does so."
    )
    if row.get("new_users", 0) >= ENOUGH:
        measured = (
            f"{row['new_users']:,} users chose an item that nobody had chosen before; HR@10 is "
            f"{row[NEW]:.4f} for them."
        )
    return text + (
        "New items: `add_items` gives an item that nobody has chosen yet a semantic ID from its "
        f"text; no weight changes. {measured}"
    )


def _when_not(config: dict[str, Any]) -> str:
    lines = [
        "- To decide on people: credit, work, housing, health, prices.",
        "- Where a score must be a probability.",
        "- For people or items unlike those of its data: another shop, country or language needs a "
        "training of its own.",
    ]
    if keeps_pairs(config):
        lines.append(
            "- Where nobody may learn which items were chosen together: the co-occurrence memory "
            "can be read out of the weights."
        )
    return "\n".join(lines)


def _limits(config: dict[str, Any], metrics: dict[str, Any], row: dict[str, float]) -> str:
    lines = [
        "- It learns what was chosen, not what was liked, and repeats the habits of the people in "
        "its data. Nothing about persons but their choices was seen, so nothing is corrected for.",
        "- Scores rank the items of one list; they are not calibrated chances of a purchase.",
        "- It knows the language of its catalogue, and no item outside it.",
    ]
    if {"head_HR@10", "tail_HR@10"} <= row.keys():
        lines.append(
            f"- Popularity: HR@10 is {row['head_HR@10']:.4f} where the target is among the fifth "
            f"of the items seen most, {row['tail_HR@10']:.4f} where it is not."
        )
    privacy = "- These files hold no user ids and no histories."
    least = config.get("min_pair_users") or metrics.get("options", {}).get("min_pair_users")
    if least and keeps_pairs(config):
        behind = "even a single user" if least == 1 else f"at least {least} users"
        privacy += f" Its co-occurrence memory keeps pairs of items that {behind} had in common."
    return "\n".join([*lines, privacy])


def _training(metrics: dict[str, Any]) -> str:
    facts = {
        "Hardware": metrics.get("hardware"),
        "Time": _time(metrics) if "seconds" in metrics else None,
        "Seed": metrics.get("seed"),
    }
    lines = [f"- {name}: {value}" for name, value in facts.items() if value is not None]
    return "\n".join([*lines, "- Every figure and option of this card: `metrics.json`"])


def _time(metrics: dict[str, Any]) -> str:
    minutes = metrics["seconds"] / 60
    took = f"{minutes / 60:.1f} hours" if minutes >= 60 else f"{minutes:.1f} minutes"
    return f"{took} since it was resumed" if "resumed_from" in metrics else f"{took} in all"
