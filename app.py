"""Show a TTDS model at work on a page: `python app.py outputs/demo`, or a Space on the Hub.

Its own code comes with the model by `trust_remote_code`; nothing of a repository is needed beside
this file.
"""

import argparse
import os

if __name__ == "__main__":  # before the imports that take seconds
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    model_name = os.environ.get("TTDS_MODEL", "outputs/demo")
    about_model = "Folder or Hub id; by default the variable TTDS_MODEL, else outputs/demo."
    parser.add_argument("model", nargs="?", default=model_name, help=about_model)
    model_name = parser.parse_args().model

import copy
import json
import math
import re
import unicodedata
from collections import Counter, OrderedDict
from dataclasses import asdict
from functools import lru_cache
from html import escape, unescape
from itertools import islice
from secrets import token_hex
from threading import Lock

import gradio as gr
import torch
from torch import Tensor, nn
from transformers import AutoModel

MAX_HISTORY, MAX_LIST, MAX_ADDED, MAX_VISITORS = 20, 20, 20, 1000
MAX_TEXT = {"text": 300, "title": 120, "brand": 60, "category": 120, "description": 1000}
FAR = 100  # how far down a list we look for a new item
UNKNOWN = "No item has a word of this in its title, brand or category; try others."
ALONE = {"rerank": False, "memory": False}  # how the language model answers without the memory
ACCENTS = re.compile("[\u0300-\u036f]+")

# What is asked of the model. All of it is data; pictures are made of it further down.


def wrong(sentence: str) -> gr.Error:
    """Return the error that shows a visitor a sentence."""
    return gr.Error(sentence, title="Not possible", print_exception=False)


def with_item(model: nn.Module, item: dict[str, str]) -> nn.Module:
    """Return a model with one item more that shares all weights with the model it is made of.

    `add_items` replaces tensors and writes into none, so it needs no more than tables of its own.
    """
    more = copy.copy(model)
    more._buffers, more._modules = dict(model._buffers), dict(model._modules)
    more.config, more.tokenizer = copy.copy(model.config), copy.copy(model.tokenizer)
    more.add_items([item])
    return more


def clean(text: str, name: str, required: bool = True) -> str:
    """Return a visitor's text as one line of printable characters, or say what is wrong with it."""
    if not isinstance(text, str | None):
        raise wrong(f"`{name}` must be text.")
    if len(text or "") > MAX_TEXT[name]:
        raise wrong(f"`{name}` is too long; use at most {MAX_TEXT[name]} characters.")
    text = "".join(c for c in " ".join((text or "").split()) if c.isprintable())
    if required and not text:
        raise wrong(f"`{name}` is empty; type a few words.")
    return text


def entry(model: nn.Module, row: int) -> dict:
    """Return what is said of an item: catalogue, semantic ID and SID tokens."""
    item, codes = model.catalogue[row], model.item_sids[row].tolist()
    known = {name: unescape(item.get(name) or "") for name in ("brand", "categories", "title")}
    known["title"] = known["title"] or item["item_id"]
    tokens = "".join(f"<item_{level}_{code}>" for level, code in enumerate(codes))
    return {"item_id": item["item_id"], **known, "codes": codes, "sid_tokens": tokens}


def folded(text: str) -> str:
    """Return a text as it is searched for: entities, case and accents do not matter."""
    return ACCENTS.sub("", unicodedata.normalize("NFKD", unescape(text)).casefold())


def is_in(categories: str, category: str) -> bool:
    """Return whether a path of categories is a category or leads below it."""
    return f"{categories} >".startswith(f"{category} >")


def nearest(model: nn.Module, vector: Tensor, number: int, without: int = -1) -> list[dict]:
    """Return the items whose text embeddings are nearest to a vector, but for one row."""
    cosines = model.item_text @ vector
    rows = cosines.topk(min(number + 1, len(cosines))).indices.tolist()
    rows = [row for row in rows if row != without][:number]
    return [entry(model, row) | {"similarity": cosines[row].item()} for row in rows]


class Shop:
    """The endpoints. An item that a visitor adds is seen by that visitor alone.

    Only what was typed is kept per visitor. The model that has it is made of the typed items when
    needed and never changed after; all weights are those of the one model everybody shares.
    """

    def __init__(self, model: nn.Module):
        self.shared = model.eval()
        self.added: OrderedDict[str, tuple] = OrderedDict()  # session -> items as tuples of pairs
        self.lock = Lock()
        # A model with an item more has tables of its own, gigabytes where there are many items.
        kept = 8 if len(model.catalogue) < 100_000 else 1
        self.model_with = lru_cache(maxsize=kept)(self._model_with)
        titles, paths, kinds = [], {}, []
        for line in model.catalogue.lines():  # an entry that is asked for stays; lines take less
            item = json.loads(line)
            titles.append((item.get("title") or "").replace("\0", ""))
            kinds.append(paths.setdefault(item.get("categories") or "", len(paths)))
        self.titles = folded("\0".join(titles)).split("\0")  # a million at once
        self.paths, self.kinds = list(paths), torch.tensor(kinds)
        self.popular = range(len(model.catalogue))
        if model.config.has_cooccurrence:
            self.popular = model.cooccurrence.popularity.argsort(
                descending=True, stable=True
            ).tolist()
        self.writes_for_words = {"query", "search"} <= set(model.config.prompts or {})
        self.summary = self._about()

    def _model_with(self, items: tuple) -> nn.Module:
        return with_item(self.model_with(items[:-1]), dict(items[-1])) if items else self.shared

    def _model_of(self, request: gr.Request | None) -> nn.Module:
        return self.model_with(self.added.get(request.session_hash, ()) if request else ())

    def _in_category(self, category: str) -> Tensor:
        return torch.tensor([is_in(path, category) for path in self.paths])[self.kinds]

    def _allowed(self, model: nn.Module, category: str) -> Tensor | None:
        """Return which items are in a category, None for all; refuse one without items."""
        if not (category := clean(category, "category", False)):
            return None
        added = model.catalogue[len(self.kinds) :]
        added = torch.tensor([is_in(i["categories"], category) for i in added], dtype=torch.bool)
        allowed = torch.cat([self._in_category(category), added])
        if not allowed.any():
            raise wrong("`category` holds no item; choose another.")
        return allowed.to(model.device)

    def forget(self, request: gr.Request) -> None:
        """Drop what a visitor who leaves has added."""
        self.added.pop(request.session_hash, None)

    def about(self) -> dict:
        """Return the size of the model, its categories, and ready histories by name."""
        return self.summary

    def _about(self) -> dict:
        counts, num_items = Counter(), len(self.kinds)
        for path, number in zip(self.paths, self.kinds.bincount().tolist(), strict=True):
            parts = path.split(" > ")
            counts.update({" > ".join(parts[: end + 1]): number for end in range(len(parts))})
        names = [name for name, _ in counts.most_common(500) if name]
        examples = {}
        for name in [name for name in names if " > " not in name][:4] or [""]:
            inside = self._in_category(name).tolist() if name else [True] * num_items
            rows = islice((row for row in self.popular if inside[row]), 3)
            ids = [self.shared.catalogue[row]["item_id"] for row in rows]
            examples[name or "What sells"] = ids
        return {
            "num_items": num_items,
            "num_levels": self.shared.config.item_tower.num_levels,
            "categories": sorted(names),
            "examples": examples,
        }

    def search(self, text: str = "", request: gr.Request = None) -> list[dict]:
        """Find items by words that are all in their title; without words, the most popular."""
        model, words = self._model_of(request), folded(clean(text, "text", False)).split()
        first = len(self.titles)
        mine = {first + n: folded(i["title"]) for n, i in enumerate(model.catalogue[first:])}
        rows = [row for row, title in mine.items() if all(word in title for word in words)]
        titles = self.titles
        others = (row for row in self.popular if all(word in titles[row] for word in words))
        return [entry(model, row) for row in islice((*rows, *islice(others, 5)), 5)]

    def recommend(
        self,
        history: list[str],
        top_k: int = 5,
        category: str = "",
        rerank: bool = True,
        request: gr.Request = None,
    ) -> dict:
        """Return what is likely to come next, and the semantic IDs that the language model walked.

        `history` holds item ids, newest last; `category` restricts the list; without `rerank` the
        language model is alone. `items` is the list, `left_out` what the language model writes that
        is not in it. An item has its `place` and `score`, the probability of each code after those
        before (`steps`), their product, and what of the history it `follows` and `resembles`.
        """
        model = self._model_of(request)
        rows = self._rows(model, history)
        if type(top_k) is not int or not 1 <= top_k <= MAX_LIST:
            raise wrong(f"`top_k` must be a whole number from 1 to {MAX_LIST}.")
        top_k, allowed = min(top_k, len(model.catalogue)), self._allowed(model, category)
        written = model.recommend_rows([rows], top_k, allowed=allowed, **ALONE)[0]
        scores = dict(written)
        if rerank:
            scores = dict(model.recommend_rows([rows], top_k, allowed=allowed)[0])
        rows = [*scores, *[row for row, _ in written if row not in scores][:3]]
        found = [entry(model, row) | {"score": scores.get(row)} for row in rows]
        reasons = model.explain(history, [item["item_id"] for item in found])
        for place, (item, reason) in enumerate(zip(found, reasons, strict=True), 1):
            item["place"] = place if place <= len(scores) else None
            item |= asdict(reason) | {"probability": math.prod(reason.steps)}
        past = [entry(model, model.row_of[item]) for item in history]
        return {"history": past, "items": found[: len(scores)], "left_out": found[len(scores) :]}

    def compare(
        self, history: list[str], category: str = "", request: gr.Request = None
    ) -> dict[str, list[dict]]:
        """Return the first five of a history by every ranking that the model has."""
        model = self._model_of(request)
        rows, number = [self._rows(model, history)], min(5, len(model.catalogue))
        allowed, has = self._allowed(model, category), model.config
        lists = {}
        if has.has_reranker:
            lists["TTDS"] = model.recommend_rows(rows, number, allowed=allowed)
        if has.has_reranker and has.has_priors:  # a run fits both; then all of its rankings show
            lists["re-ranker only"] = model.rerank_rows(rows, number, allowed)
        if has.has_priors:
            written = model.recommend_rows(rows, number, allowed=allowed, rerank=False)
            lists["TTDS, generated"] = written
        lists["TTDS, language model only"] = model.recommend_rows(
            rows, number, allowed=allowed, **ALONE
        )
        return {name: [entry(model, row) for row, _ in found] for name, (found,) in lists.items()}

    def ask(self, text: str, history: list[str], request: gr.Request = None) -> dict:
        """Return items for words: `nearest` by text and, of a model tuned for it, `written`.

        Where no item has any of the words, both are empty, and `unknown` says so.
        """
        model, text = self._model_of(request), clean(text, "text")
        rows, vector, written = self._rows(model, history), model.embed_texts([text])[0], []
        if not vector.any() or not model.knows_words([text])[0]:
            return {"written": [], "nearest": [], "unknown": UNKNOWN}
        if self.writes_for_words:
            written = model.recommend_rows([rows], min(4, len(model.catalogue)), queries=[text])[0]
        written = [entry(model, row) | {"score": score} for row, score in written]
        return {"written": written, "nearest": nearest(model, vector, 4), "unknown": ""}

    def add_item(
        self,
        title: str,
        brand: str = "",
        category: str = "",
        description: str = "",
        request: gr.Request = None,
    ) -> dict:
        """Add an item that this visitor alone sees, and return it with its codes.

        `neighbours` are the items nearest by text; `place` is where the language model writes it
        after a history of them, null if it is not among the first hundred.
        """
        item = {"title": title, "brand": brand, "category": category, "description": description}
        item = {name: clean(text, name, name == "title") for name, text in item.items()}
        if not self._model_of(request).knows_words([" ".join(item.values())])[0]:
            raise wrong(UNKNOWN)  # no item is like it, and any place would be arbitrary
        item["categories"] = item.pop("category")
        with self.lock:
            items = self.added.get(request.session_hash, ())
            if len(items) >= MAX_ADDED:
                raise wrong(f"You have added {MAX_ADDED} items, the most; reload to start anew.")
            item["item_id"] = f"new-{token_hex(4)}"
            items = (*items, tuple(item.items()))
            try:
                model = self.model_with(items)
            except ValueError as error:
                raise wrong(f"The item cannot be added: {error}") from error
            self.added[request.session_hash] = items
            if len(self.added) > MAX_VISITORS:
                self.added.popitem(last=False)
        row, far = model.row_of[item["item_id"]], min(FAR, len(model.catalogue))
        neighbours = nearest(model, model.item_text[row], 3, without=row)
        history = [model.row_of[neighbour["item_id"]] for neighbour in neighbours]
        listed = model.recommend_rows([history], far, num_beams=far, **ALONE)[0]
        places = {row: place for place, (row, _) in enumerate(listed, 1)}
        return entry(model, row) | {"neighbours": neighbours, "place": places.get(row)}

    def _rows(self, model: nn.Module, history: list[str]) -> list[int]:
        if not isinstance(history, list) or not all(isinstance(item, str) for item in history):
            raise wrong("`history` must be a list of item ids.")
        if len(history) > MAX_HISTORY:
            raise wrong(f"`history` has {len(history)} items; give at most {MAX_HISTORY}.")
        if unknown := [item for item in history if item not in model.row_of]:
            raise wrong(f"`history` holds the unknown item {unknown[0][:40]!r}; `search` for ids.")
        return [model.row_of[item] for item in history]


# The page. Gradio evaluates the template of a `gr.HTML` and only then puts the value in, so text
# that is not ours passes through `escape` into values, and never becomes part of a template.

CLICKS = """element.addEventListener('click', event => {
  const button = event.target.closest('[data-act]');
  if (button) trigger('click', {act: button.dataset.act, value: button.dataset.value});
  // What a click at the foot of the page changes stands at its head.
  if (button && element.closest('#new')) document.getElementById('history').scrollIntoView();
});"""
CSS = """
.gradio-container {max-width: 1200px !important; margin: 0 auto !important;
  --block-info-text-color: var(--block-label-text-color)}
.gradio-container .column {gap: 10px} .gradio-container .html-container {padding: 0}
.gradio-container .prose h2 {margin: 18px 0 -8px !important}
.gradio-container .prose p {opacity: .75; max-width: 62em}
.gradio-container .block:has(> .html-container):not(:has(.ttds)) {display: none}
.ttds {--soft: color-mix(in srgb, var(--body-text-color) 68%, transparent); line-height: 1.5;
  --line: var(--border-color-primary); --panel: var(--background-fill-secondary);
  --mark: var(--color-accent); color: var(--body-text-color)}
.ttds [style*=code] {--tint: hsl(calc(var(--code) * 137) 60% 50%)}
.ttds .card {display: grid; grid-template-columns: 16px 1fr auto; gap: 0 10px; width: 100%;
  text-align: left; padding: 9px 6px; border-bottom: 1px solid var(--line)}
.ttds .card:hover, .ttds .card:focus-visible, .ttds .pill:hover {background: var(--panel)}
.ttds .more {grid-column: 2 / -1; overflow-wrap: anywhere; font-size: 13px}
.ttds .score {text-align: right} .ttds .soft {color: var(--soft)} .ttds .narrow {display: none}
.ttds .codes {font: 11px/1.7 ui-monospace, monospace; padding: 1px 6px; border-radius: 5px;
  background: color-mix(in srgb, var(--tint) 17%, transparent)}
.ttds .bar {display: block; width: 48px; height: 4px; border-radius: 2px;
  background: linear-gradient(90deg, var(--mark) var(--share), var(--line) var(--share))}
.ttds .chip {display: flex; justify-content: space-between; padding: 5px 12px; margin: 6px 0;
  border: 1px solid var(--line); border-radius: 8px; font-size: 14px}
.ttds .columns {display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(250px, 1fr))}
.ttds .pill {padding: 1px 11px; margin: 2px; border-radius: 99px; border: 1px solid var(--mark)}
.ttds .note {padding: 9px 12px; border-left: 3px solid var(--mark); background: var(--panel)}
.ttds text {fill: var(--body-text-color); font-size: 13px; dominant-baseline: central}
.ttds text.soft {fill: var(--soft); font-size: 11.5px; paint-order: stroke; stroke-width: 4px;
  stroke: var(--body-background-fill)}
.ttds path {stroke: var(--soft); opacity: .3} .ttds .in {stroke: var(--mark); opacity: .8}
.ttds rect {fill: color-mix(in srgb, var(--tint) 25%, var(--body-background-fill))}
@media (max-width: 720px) {.ttds .narrow {display: block} .ttds .wide {display: none}}
"""
THEME = gr.themes.Default(primary_hue="teal", neutral_hue="slate", font="system-ui")
TITLE = """# A recommender that writes the next item
Each of {num_items:,} items has a name of its own in **SID tokens**, one for each of {num_levels}
levels; similar items begin alike. A language model reads a history in these tokens and writes those
of the item that comes next; a trie of all semantic IDs keeps it to items that exist."""
HISTORY = "## 1. A history\n\nWhat somebody chose, the newest last."
NEXT = "## 2. What comes next\nThe best items and what speaks for them; choose one to go on."
SCORES = {
    True: "Percent: the re-ranker's weight of an item among its candidates, which orders the list.",
    False: "Percent: the probability by which the language model writes an item's semantic ID.",
}
WHY = """## 3. Why
The way to each item through the trie. Below a code is the probability by which the language model
writes it there; the wider a line, the higher. Grey ways lead to what it would list beside these."""
ADD = """## Add an item of your own
It gets a semantic ID from its text; no weight changes. Only you see it."""
WRITTEN = "Language model and likeness of text together, with the history"
NEAREST = "Nearest by text alone: cosine of the text embeddings"


def _html(*parts: str) -> str:
    return f'<div class="ttds">{"".join(parts)}</div>'


def _soft(text: str) -> str:
    return f'<span class="soft">{text}</span>'


def _note(sentence: str) -> str:
    return _html(f'<div class="note">{escape(sentence)}</div>')


def _percent(probability: float) -> str:
    digits = int(probability < 0.095)
    return f"{probability:.{digits}%}" if probability >= 0.0005 else "&lt;0.1%"


def path(categories: str) -> str:
    """Return a path of categories as it is read."""
    return unescape(categories).replace(" > ", " › ")


def branches(categories: list[str]) -> list[tuple[str, str]]:
    """Return categories as the lines of a tree, with what each stands for."""
    paths = sorted(category.split(" > ") for category in categories)
    return [
        ("\u2003" * (len(parts) - 1) + unescape(parts[-1]), " > ".join(parts)) for parts in paths
    ]


def _start(name: str, history: list[str]) -> str:
    ids = escape(json.dumps(history))
    return f'<button class="pill" data-act="start" data-value="{ids}">{escape(name)}</button>'


def _card(item: dict, mark: str = "+", score: str = "", more: str = "") -> str:
    about = " · ".join(escape(part) for part in (item["brand"], path(item["categories"])) if part)
    return (
        f'<button class="card" data-act="add" data-value="{escape(item["item_id"])}">{_soft(mark)}'
        f'<b>{escape(item["title"])}</b><span class="score">{score}</span><span class="more">'
        f'{_soft(about) + "<br>" if about else ""}<span class="codes" style="--code:'
        f'{item["codes"][0]}">{escape(item["sid_tokens"])}</span>{more}</span></button>'
    )


def found_cards(items: list[dict]) -> str:
    """Return found items as cards, with their similarity where they have one."""
    scores = [f"{item['similarity']:.2f}" if "similarity" in item else "" for item in items]
    cards = [_card(item, score=score) for item, score in zip(items, scores, strict=True)]
    return _html(*cards) if cards else _note("No title has all these words.")


def compared_columns(lists: dict[str, list[dict]]) -> str:
    """Return lists side by side, each under the name of its ranking."""
    cards = {
        name: [_card(item, str(place)) for place, item in enumerate(items, 1)]
        for name, items in lists.items()
    }
    columns = [f"<div><b>{name}</b>{''.join(column)}</div>" for name, column in cards.items()]
    return _html('<div class="columns">', *columns, "</div>")


def asked_cards(found: dict) -> str:
    """Return the answers to words, each kind by its name."""
    kinds = [(WRITTEN, found["written"]), (NEAREST, found["nearest"])]
    parts = [part for name, items in kinds if items for part in (_soft(name), found_cards(items))]
    return _note(found["unknown"]) if found["unknown"] else _html(*parts)


def ranked_cards(items: list[dict], past: list[dict], scores: str) -> str:
    """Return recommendations as cards, each with its score and what speaks for it."""
    titles = {item["item_id"]: escape(item["title"]) for item in past}
    cards = [_soft(scores)]
    for item in items:
        why = [f"language model: {_percent(item['probability'])}"]
        why += [f"co-occurrence memory: after {titles[item['follows']]}"] if item["follows"] else []
        why += [f"text: like {titles[item['resembles']]}"] if item["resembles"] else []
        share = f"--share:{math.exp(item['score'] - items[0]['score']):.0%}"
        bar = f'{_percent(math.exp(item["score"]))}<span class="bar" style="{share}"></span>'
        cards.append(_card(item, str(item["place"]), bar, f"<br>{' · '.join(why)}"))
    return _html(*cards) if items else _note("Nothing is left here; choose all categories.")


def history_chips(items: list[dict], examples: dict[str, list[str]]) -> str:
    """Return a history as a list whose entries can be taken out, and others to start from."""
    chips = "".join(
        f'<div class="chip"><span>{escape(item["title"])}</span>'
        f'<button data-act="remove" data-value="{place}" aria-label="Take out">✕</button></div>'
        for place, item in enumerate(items)
    )
    empty = _note("The history is empty: the list is what anybody might choose first.")
    others = [_start(path(name), ids) for name, ids in [*examples.items(), ("Nothing", [])]]
    return _html(chips or empty, _soft("Start from "), *others)


def added_item(item: dict) -> str:
    """Return what became of a new item: its codes, its neighbours, where it is recommended."""
    place = f"at place {item['place']}" if item["place"] else "further down"
    start = _start("Start from them", [neighbour["item_id"] for neighbour in item["neighbours"]])
    return _html(
        f'{_card(item)}<div class="note">It can be recommended at once: after the items nearest to '
        f"it by text, below, the language model writes it {place}. The re-ranker prefers items "
        f"that somebody has chosen. {start}</div>{found_cards(item['neighbours'])}"
    )


def tree(paths: list[dict], width: int) -> str:
    """Return the semantic IDs of items as a tree, in SVG of a width."""
    left, right = (8, 150) if width < 720 else (20, 700)
    num_levels, height, room = len(paths[0]["codes"]), 44, int((width - right - 26) / 7.5)
    ways = [[tuple(path["codes"][:depth]) for depth in range(num_levels + 1)] for path in paths]
    # Branches stand in the order of their best item, so that the list still reads downwards.
    best = {prefix: place for place in reversed(range(len(paths))) for prefix in ways[place]}
    order = sorted(range(len(paths)), key=lambda place: [best[prefix] for prefix in ways[place]])
    x = [left + (right - left) * depth / num_levels for depth in range(num_levels + 1)]
    y = {}
    for prefix in best:
        below = [row for row, place in enumerate(order) if prefix in ways[place]]
        y[prefix] = 24 + height * sum(below) / len(below)
    lines, marks = [], [f'<circle cx="{left}" cy="{y[()]}" r="6" fill="var(--mark)"/>']
    for prefix in filter(None, best):
        depth, path = len(prefix), paths[best[prefix]]
        x0, x1, y0, y1 = x[depth - 1], x[depth], y[prefix[:-1]], y[prefix]
        lines.append(
            f'<path fill="none" class="{"in" if path["place"] else "out"}" '
            f'stroke-width="{1 + 10 * math.prod(path["steps"][:depth]) ** 0.5:.1f}" '
            f'd="M{x0} {y0}C{(x0 + x1) / 2} {y0} {(x0 + x1) / 2} {y1} {x1} {y1}"/>'
        )
        marks.append(
            f'<g text-anchor="middle"><rect style="--code:{prefix[0]}" x="{x1 - 15}" y="{y1 - 11}" '
            f'width="30" height="22" rx="7"/><text x="{x1}" y="{y1}">{prefix[-1]}</text><text '
            f'class="soft" x="{x1}" y="{y1 + 18}">{_percent(path["steps"][depth - 1])}</text></g>'
        )
    for path, way in zip(paths, ways, strict=True):
        place = f"place {path['place']}" if path["place"] else "not in the list"
        title, x1, y1 = path["title"], right + 26, y[way[-1]]
        title = title if len(title) <= room else title[: room - 1].rstrip() + "…"
        marks.append(
            f'<text x="{x1}" y="{y1 - 8}">{escape(title)}</text><text class="soft" x="{x1}" '
            f'y="{y1 + 9}">{place}, {_percent(path["probability"])}</text>'
        )
    return (
        f'<svg class="{"narrow" if width < 720 else "wide"}" role="img" '
        f'aria-label="Tree of semantic IDs" viewBox="0 0 {width} {height * len(paths) + 8}">'
        f"{''.join(lines + marks)}</svg>"
    )


def build(shop: Shop) -> gr.Blocks:
    """Return the page with its endpoints."""
    about = shop.about()
    first, names = next(iter(about["examples"].values())), branches(about["categories"])
    has = shop.shared.config

    def show(history, top_k, category, rerank, request: gr.Request = None):
        answer = shop.recommend(history, int(top_k), category, rerank, request)
        paths = answer["items"] + answer["left_out"]
        trees = _html(tree(paths, 1160), tree(paths, 350)) if paths else ""
        chips = history_chips(answer["history"], about["examples"])
        scores = SCORES[rerank and has.has_reranker]
        return chips, ranked_cards(answer["items"], answer["history"], scores), trees, ""

    def click(history, top_k, category, rerank, event: gr.EventData, request: gr.Request):
        if event.act == "add":
            history = [*history, event.value][-MAX_HISTORY:]
        elif event.act == "remove":
            history = [item for place, item in enumerate(history) if str(place) != event.value]
        else:
            history = json.loads(event.value)
        return history, *show(history, top_k, category, rerank, request)

    def search(text, request: gr.Request):
        return found_cards(shop.search(text, request)) if text else ""

    def ask(text, history, request: gr.Request):
        return asked_cards(shop.ask(text, history, request))

    def compare(history, category, request: gr.Request):
        return compared_columns(shop.compare(history, category, request))

    def add(title, brand, category, description, request: gr.Request):
        return added_item(shop.add_item(title, brand, category, description, request))

    def picture(name, value=""):
        return gr.HTML(value, js_on_load=CLICKS, apply_default_css=False, elem_id=name)

    chosen, ranked, walked, _ = show(first, 5, "", True)
    with gr.Blocks(title="TTDS: a recommender that writes the next item") as page:
        gr.Markdown(TITLE.format(**about))
        history = gr.State(first)
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                gr.Markdown(HISTORY)
                chosen = picture("history", chosen)
                words = gr.Textbox(label="Add an item: search by title", max_length=300)
                found = picture("found")
                text = gr.Textbox(label="Or ask in words", submit_btn="Find")
                asked = picture("asked")
            with gr.Column(scale=7, min_width=300):
                gr.Markdown(NEXT)
                with gr.Row():
                    category = gr.Dropdown([("All", ""), *names], label="Category", min_width=110)
                    top_k = gr.Dropdown([5, 10, 20], label="Length", min_width=80)
                    rerank = gr.Dropdown(
                        [("TTDS", True), ("Language model alone", False)],
                        label="Ranked by", min_width=190, visible=has.has_reranker,
                    )  # fmt: skip
                ranked = picture("ranked", ranked)
                several = has.has_reranker or has.has_priors
                comparing = gr.Button("Compare the rankings", visible=several)
        compared = picture("compared")
        gr.Markdown(WHY)
        walked = picture("tree", walked)
        gr.Markdown(ADD)
        with gr.Row():
            with gr.Column(min_width=300):
                title, brand = gr.Textbox(label="Title"), gr.Textbox(label="Brand")
                kind = gr.Dropdown(names, value=None, label="Category", allow_custom_value=True)
                description = gr.Textbox(label="Description", lines=2)
                adding = gr.Button("Give it a semantic ID")
            with gr.Column(min_width=300):
                new = picture("new")

        for name in ("about", "search", "recommend", "compare", "ask", "add_item"):
            gr.api(getattr(shop, name), api_name=name)
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        settings = [history, top_k, category, rerank]
        shown = [chosen, ranked, walked, compared]
        clicks = [part.click for part in (chosen, found, ranked, compared, asked, new)]
        # By default a click is lost while the one before it is being answered.
        gr.on(clicks, click, settings, [history, *shown], trigger_mode="multiple", **quiet)
        gr.on([top_k.change, category.change, rerank.change], show, settings, shown, **quiet)
        words.change(search, words, found, trigger_mode="always_last", **quiet)
        comparing.click(compare, [history, category], compared, **quiet)
        text.submit(ask, [text, history], asked, **quiet)
        added = adding.click(add, [title, brand, kind, description], new, **quiet)
        added.then(show, settings, shown, **quiet)
        page.unload(shop.forget)
    return page


def main(name: str) -> None:
    """Load the model and serve the page."""
    try:
        model = AutoModel.from_pretrained(name, trust_remote_code=True)
    except (OSError, ValueError) as error:
        raise SystemExit(f"No model at {name!r}; `make demo` trains one. {error}") from None
    if not getattr(model, "catalogue", None):
        kind = model.config.model_type
        raise SystemExit(
            f"{name!r} holds a {kind!r} model without a catalogue, so it has nothing to recommend; "
            "name a folder that recipes/sft.py wrote."
        )
    build(Shop(model)).queue(max_size=100).launch(theme=THEME, css=CSS)


if __name__ == "__main__":
    main(model_name)
