"""What a model can be asked: top-K lists for histories, generated and re-ranked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .arguments_ttds import as_count, as_flag, as_histories, as_item_ids, as_list, unordered
from .configuration_ttds import placeholder_ids
from .generation_ttds import TTDSPrefix, search
from .lock_ttds import asking, reading
from .nearest_ttds import nearest_texts
from .priors_ttds import TTDSNodeStatistics, TTDSPriors
from .records_ttds import as_text, shown
from .reranker_ttds import TEXT_TEMPERATURE, TTDSRecall, generated_scores
from .text_ttds import query_words
from .towers_ttds import evaluating
from .trie_ttds import TTDSCandidates

LARGE = 5_000  # items of a catalogue from which more candidates are worth their time
NEVER = -1e4  # logit or log-probability of what pads


@dataclass(frozen=True)
class TTDSRecommendation:
    """One entry of a list.

    Args:
        item_id: Id of the item.
        title: Its title, empty if it has none.
        score: Log-probability: of its semantic ID, or by the re-ranker among the candidates; for a
            query, among the candidates by language model and likeness of text.
    """

    item_id: str
    title: str
    score: float


class TTDSRecommendationMixin:
    """What `TTDSForCausalLM` can be asked: top-K lists for histories."""

    @reading
    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        top_k: int | None = None,
        user_histories: Sequence[Sequence[str]] | None = None,
        exclude_seen: bool | None = None,
        allowed: Iterable[str] | None = None,
        num_beams: int | None = None,
        unknown: str = "error",
        batch_size: int = 64,
        rerank: bool = True,
        queries: Sequence[str] | None = None,
        memory: bool = True,
    ) -> list[list[TTDSRecommendation]]:
        """Return the items each user is most likely to choose next, best first.

        Args:
            histories: Item ids per user, newest last; may be empty.
            top_k: Length of the lists, by default 10, or all of a smaller catalogue; they are
                shorter where fewer items may appear.
            user_histories: What the user tower sees in place of `histories`.
            exclude_seen: Leave out the items of the history; by default as `config.exclude_seen`.
            allowed: Item ids that may appear; all by default.
            num_beams: Prefixes kept per level, at least `top_k`; 50 or `top_k` by default.
            unknown: What to do with a history's item that is not in the catalogue: `"error"`, or
                `"skip"` to drop it.
            batch_size: Users per step.
            rerank: Whether the re-ranker orders the list, where the model has one; otherwise it is
                in the order of the beam search. Queries are answered without it.
            queries: What each user is looking for, in words; the language model answers, and
                likeness of text. A list is empty where the model knows none of the words.
            memory: Whether the priors of the co-occurrence memory join the beam search, where the
                model has them; without them and without `rerank` the language model answers alone.

        Raises:
            ValueError: An argument is out of range or an item unknown; the message says which.
        """
        rows = self.history_rows(histories, unknown)
        user_rows = None
        if user_histories is not None:
            user_rows = self.history_rows(user_histories, unknown, "user_histories")
        if user_rows is not None and len(user_rows) != len(rows):
            raise ValueError(
                f"`user_histories` has {len(user_rows)} entries for {len(rows)} `histories`."
            )
        mask = self.allowed_mask(allowed)
        if queries is not None:
            queries = query_texts(queries)
            if len(queries) != len(rows):
                raise ValueError(
                    f"`queries` has {len(queries)} entries for {len(rows)} `histories`."
                )
        if top_k is None:
            top_k = min(10, len(self.item_sids))
        lists = self.recommend_rows(
            rows,
            top_k,
            user_rows,
            exclude_seen,
            mask,
            num_beams,
            batch_size,
            rerank,
            queries,
            memory,
        )
        return self._named(lists)

    def allowed_mask(self, allowed: Iterable[str] | None) -> Tensor | None:
        """Return which items may appear, (num_items,), or None for all.

        Args:
            allowed: Item ids that may appear; None for all.

        Raises:
            ValueError: `allowed` is no list of strings, or an item is unknown.
        """
        if allowed is None:
            return None
        mask = torch.zeros(len(self.item_sids), dtype=torch.bool, device=self.device)
        mask[self.item_rows(unordered(allowed), "allowed")] = True
        return mask

    def _named(self, lists: list[list[tuple[int, float]]]) -> list[list[TTDSRecommendation]]:
        return [
            [
                TTDSRecommendation(entry["item_id"], entry.get("title", ""), score)
                for entry, score in ((self.catalogue[row], score) for row, score in pairs)
            ]
            for pairs in lists
        ]

    def item_rows(self, item_ids: Iterable[str], name: str) -> list[int]:
        """Translate item ids to rows.

        Args:
            item_ids: Item ids.
            name: Name of the argument that holds them, for the message.

        Raises:
            ValueError: It is no list of strings, or an item is unknown.
        """
        rows = []
        for item in as_item_ids(item_ids, name):
            if item not in self.row_of:
                raise ValueError(
                    f"`{name}` holds the unknown item {shown(item)}; the catalogue of "
                    f"{len(self.row_of)} items has none of that id."
                )
            rows.append(self.row_of[item])
        return rows

    def history_rows(
        self,
        histories: Sequence[Sequence[str]],
        unknown: str,
        name: str = "histories",
        first: int = 0,
    ) -> list[list[int]]:
        """Translate the item ids of histories to rows.

        Args:
            histories: Item ids per user.
            unknown: `"error"` or `"skip"`.
            name: Name of the argument that holds them, for the message.
            first: Number of the first of them, for the message.

        Raises:
            ValueError: An item is unknown, `histories` is one history instead of several, or the
                model has no catalogue.
        """
        if not self.catalogue:
            raise ValueError(
                "The model has no catalogue, so it has nothing to recommend; load a model with its "
                "`catalogue.jsonl`, or set `catalogue`."
            )
        if not isinstance(unknown, str) or unknown not in ("error", "skip"):
            raise ValueError(f"`unknown` is {shown(unknown)}; it must be 'error' or 'skip'.")
        rows = []
        for number, history in enumerate(as_histories(histories, name), first):
            known = [self.row_of.get(item, -1) for item in history]
            if unknown == "error" and -1 in known:
                which = "History" if name == "histories" else f"`{name}`: history"
                raise ValueError(
                    f"{which} {number} holds the unknown item {shown(history[known.index(-1)])}; "
                    'add it by `add_items`, or pass `unknown="skip"` to drop it.'
                )
            rows.append([row for row in known if row >= 0])
        return rows

    @asking
    def recommend_rows(
        self,
        histories: Sequence[Sequence[int]],
        top_k: int,
        user_histories: Sequence[Sequence[int]] | None = None,
        exclude_seen: bool | None = None,
        allowed: Tensor | None = None,
        num_beams: int | None = None,
        batch_size: int = 64,
        rerank: bool = True,
        queries: Sequence[str] | None = None,
        memory: bool = True,
    ) -> list[list[tuple[int, float]]]:
        """Do what `recommend` does, on item rows; returns pairs of row and log-probability.

        Args:
            histories: Item rows per user, newest last.
            top_k: Length of the lists.
            user_histories: What the user tower sees in place of `histories`.
            exclude_seen: Leave out the items of the history; by default as `config.exclude_seen`.
            allowed: Mask of the items that may appear, (num_items,).
            num_beams: Prefixes kept per level.
            batch_size: Users per step.
            rerank: Whether co-occurrence memory and re-ranker join in, where the model has them.
            queries: What each user is looking for, in words; the language model answers, and
                likeness of text.
            memory: Whether the priors join the beam search, where the model has them.
        """
        num_items = len(self.item_sids)
        top_k, batch_size = as_count(top_k, "top_k"), as_count(batch_size, "batch_size")
        if top_k > num_items:
            raise ValueError(
                f"`top_k` is {shown(top_k)}; it must be from 1 to the {num_items} items of the "
                "catalogue."
            )
        if exclude_seen is None:
            exclude_seen = self.config.exclude_seen
        exclude_seen = as_flag(exclude_seen, "exclude_seen")
        rerank, memory = as_flag(rerank, "rerank"), as_flag(memory, "memory")
        num_beams = max(50, top_k) if num_beams is None else as_count(num_beams, "num_beams")
        if num_beams < top_k:
            raise ValueError(f"`num_beams` is {num_beams}; it must be at least `top_k` {top_k}.")
        lists = []
        # Histories of like length share a batch, so that little of it is padding.
        order = sorted(range(len(histories)), key=lambda i: len(histories[i]))
        with evaluating(self):
            for first in range(0, len(order), batch_size):
                users = order[first : first + batch_size]
                past = [histories[u] for u in users]
                behind = past if user_histories is None else [user_histories[u] for u in users]
                if queries is None:
                    prompts = self.history_prompts(past, behind)
                else:
                    prompts = self.query_prompts([queries[u] for u in users], past, behind)
                excluded = pad_rows(past if exclude_seen else [[]] * len(past), None, self.device)
                candidates = TTDSCandidates(self.trie, allowed, excluded)
                priors = None
                if memory and queries is None:
                    priors = self.priors(past, excluded)
                prefix, number = TTDSPrefix(self, *prompts), max(self.num_candidates, top_k)
                if queries is not None:
                    asked = [queries[u] for u in users]
                    items, scores = self._by_text(asked, prefix, candidates, num_beams, number)
                elif rerank and self.config.has_reranker:
                    items, features, _ = self.reranker_features(
                        past, prefix, candidates, num_beams, priors, number
                    )
                    items, scores = best_first(items, self.reranker(features))
                else:
                    found = search(self, prefix, candidates, num_beams, priors)
                    items, scores = found.items, found.scores
                lists += best_pairs(items, scores, top_k)
        return [pairs for _, pairs in sorted(zip(order, lists, strict=True))]

    def priors(self, histories: Sequence[Sequence[int]], excluded: Tensor) -> TTDSPriors | None:
        """Return what the co-occurrence memory says after histories; None where there is none.

        Args:
            histories: Item rows per user, newest last.
            excluded: Item rows that may not appear, padded with -1, (batch, num_excluded).
        """
        if not self.config.has_priors:
            return None
        padded = pad_rows(histories, self.config.max_history, self.device)
        return TTDSPriors(self.cooccurrence, self.trie, self.node_statistics, padded, excluded)

    @property
    def node_statistics(self) -> TTDSNodeStatistics:
        """What the co-occurrence memory knows of the trie's nodes."""
        trie, memory = self.trie, self.cooccurrence
        return self._made_of(
            "_statistics", [trie, memory.items], lambda: TTDSNodeStatistics.build(trie, memory)
        )

    def recall(
        self, histories: Sequence[Sequence[int]], allowed: TTDSCandidates, number: int
    ) -> TTDSRecall:
        """Return what co-occurrence memory and embeddings say of items after histories.

        Args:
            histories: Item rows per user, newest last.
            allowed: What may appear.
            number: How many candidates are proposed.
        """
        return TTDSRecall(
            self.cooccurrence,
            self.item_text,
            self.item_collaborative,
            self.catalogue.labels,
            pad_rows(histories, self.config.max_history, self.device),
            allowed,
            self.node_table,
            number,
        )

    @property
    def num_candidates(self) -> int:
        """How many candidates co-occurrence memory and texts propose."""
        return 100 if len(self.item_sids) < LARGE else 200

    def reranker_features(
        self,
        histories: Sequence[Sequence[int]],
        prefix: TTDSPrefix,
        allowed: TTDSCandidates,
        num_beams: int,
        priors: TTDSPriors | None,
        number: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the candidates of the re-ranker and their features.

        Candidates are what the co-occurrence memory and the nearest texts propose together with the
        beams, which one search down the trie finds and scores.

        Args:
            histories: Item rows per user, newest last.
            prefix: The next-item prompts.
            allowed: What may appear.
            num_beams: As of `search`.
            priors: As of `search`.
            number: How many candidates co-occurrence memory and texts propose.

        Returns:
            Item rows, padded with -1, (batch, num_candidates), features, (batch, num_candidates,
            num_features), and the beams alone, padded with -1, (batch, num_found).
        """
        recall = self.recall(histories, allowed, number)
        proposed = recall.candidates()
        found = search(self, prefix, allowed, num_beams, priors, proposed.clamp_min(0))
        items = _with_beams(proposed, found.items)
        log_probs = torch.cat([found.also, found.log_probs], 1)
        # What pads stands for no candidate, so it is never the best of them.
        log_probs = log_probs.masked_fill((items < 0)[..., None], NEVER)
        generated = generated_scores(items, found.items, found.scores)
        return items, recall.features(items.clamp_min(0), log_probs, generated), found.items

    def _by_text(
        self,
        queries: Sequence[str],
        prefix: TTDSPrefix,
        allowed: TTDSCandidates,
        num_beams: int,
        number: int,
    ) -> tuple[Tensor, Tensor]:
        # The language model's log-probability plus likeness of text, among beams and nearest texts:
        # to the words and to the texts that are nearest to them (relevance feedback after Rocchio),
        # so that behind the last item that has the words come its like.
        query = self.embed_texts(queries) / TEXT_TEMPERATURE
        nearest, *_ = nearest_texts(query, self.item_text, allowed, number, self.node_table)
        texts = F.embedding(nearest.clamp_min(0), self.item_text)
        likeness = torch.einsum("bcd,bd->bc", texts, query).masked_fill(nearest < 0, NEVER)
        found = torch.einsum("bc,bcd->bd", likeness.softmax(1), texts)
        query = query + F.normalize(found, dim=-1) / TEXT_TEMPERATURE
        proposed, *_ = nearest_texts(query, self.item_text, allowed, number, self.node_table)
        found = search(self, prefix, allowed, num_beams, also=proposed.clamp_min(0))
        items = _with_beams(proposed, found.items)
        known = torch.tensor(self.knows_words(queries), device=items.device)
        items = items.masked_fill(~known[:, None], -1)
        log_probs = torch.cat([found.also, found.log_probs], 1)[..., -1]
        texts = F.embedding(items.clamp_min(0), self.item_text)
        return best_first(items, log_probs + torch.einsum("bcd,bd->bc", texts, query))

    def history_prompts(
        self, histories: Sequence[Sequence[int]], user_histories: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Return next-item prompts and their mask, both (batch, length), padded right.

        Users are SID tokens, items placeholders.

        Args:
            histories: Item rows per user, newest last; the newest `max_history` are shown.
            user_histories: Item rows per user that make the user's semantic ID.
        """
        config = self.config
        user_sids = self.sids_of_users(pad_rows(user_histories, config.max_history, self.device))
        user_tokens = self.sid_tokens(user_sids, "user").tolist()
        levels = config.item_tower.num_levels
        prompts = []
        for history, user in zip(histories, user_tokens, strict=True):
            newest = [
                token
                for row in history[-config.max_history :]
                for token in placeholder_ids("item", int(row), levels)
            ]
            prompt = []
            for token in config.prompt_ids:
                if token == config.user_placeholder_id:
                    prompt += user
                elif token == config.item_placeholder_id:
                    prompt += newest
                else:
                    prompt.append(token)
            prompts.append(prompt)
        return pad_prompts(prompts, self.device)


def query_texts(queries: Sequence[str]) -> list[str]:
    """Return queries as texts, after a check.

    Args:
        queries: What users are looking for, in words.

    Raises:
        ValueError: There is something else than texts, or one without a word.
    """
    queries = as_list(queries, "queries", "texts, one per history")
    texts = [as_text(query, "queries", f"Query {number}") for number, query in enumerate(queries)]
    for number, text in enumerate(texts):
        if not query_words(text):
            raise ValueError(
                f"Query {number} is {shown(text)}, which holds no word; pass words, or leave "
                "`queries` out."
            )
    return texts


def _with_beams(proposed: Tensor, beams: Tensor) -> Tensor:
    """Return proposed items and, behind them, the beams that are not among them."""
    repeated = (beams[:, :, None] == proposed[:, None]).any(-1)
    return torch.cat([proposed, beams.masked_fill(repeated, -1)], 1)


def best_first(items: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return candidates and their log-probabilities among them, best first; -1 pads the items."""
    scores = logits.masked_fill(items < 0, -torch.inf).log_softmax(1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return items.gather(1, order), scores


def best_pairs(items: Tensor, scores: Tensor, top_k: int) -> list[list[tuple[int, float]]]:
    """Return the first `top_k` pairs of row and score of each list.

    Args:
        items: Item rows, best first, padded with -1, (batch, n).
        scores: Their scores, (batch, n).
        top_k: Length of the lists.
    """
    return [
        [pair for pair in zip(row, score, strict=True) if pair[0] >= 0][:top_k]
        for row, score in zip(items.tolist(), scores.tolist(), strict=True)
    ]


def pad_prompts(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return prompts and their mask, both (batch, length), padded on the right.

    Args:
        prompts: Token or placeholder ids.
        device: Where the tensors live.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ids = nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], batch_first=True)
    mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
    return ids.to(device), mask.long()


def pad_rows(
    histories: Sequence[Sequence[int]], longest: int | None, device: torch.device
) -> Tensor:
    """Return histories as one tensor (batch, longest), newest last, padded left with -1.

    Args:
        histories: Item rows per user, newest last.
        longest: Width, keeping the newest; None for as wide as needed.
        device: Where the tensor lives.
    """
    width = max((len(history) for history in histories), default=0) if longest is None else longest
    padded = torch.full((len(histories), width), -1)
    for row, history in enumerate(histories):
        newest = list(history[-width:]) if width else []
        if newest:
            padded[row, -len(newest) :] = torch.as_tensor(newest)
    return padded.to(device)
