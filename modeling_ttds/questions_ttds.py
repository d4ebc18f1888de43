"""What else a model can be asked: similar items, next users, profiles, queries, and why."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig

from .arguments_ttds import as_count, as_item_ids
from .cooccurrence_ttds import TTDSNeighbours
from .generation_ttds import beam_search, score_items
from .lock_ttds import asking
from .nearest_ttds import nearest_texts
from .nodes_ttds import TTDSNodeTable
from .recommendation_ttds import (
    TTDSRecommendation,
    best_first,
    best_pairs,
    pad_prompts,
    pad_rows,
)
from .reranker_ttds import FEATURES, MODEL_FEATURES
from .text_ttds import item_text, normalised, query_words
from .towers_ttds import evaluating
from .trie_ttds import TTDSCandidates, TTDSTrie

ALIKE = 0.5  # cosine above which two texts are called alike
NUM_BUYERS = 10
AT_ONCE = 64  # items whose like is sought together
NUM_NEAR = 100  # items whose words a query is compared with
LONGEST_QUERY = 32


@dataclass(frozen=True)
class TTDSExplanation:
    """What speaks for an item after a history.

    Args:
        item_id: Id of the item.
        steps: Probability of each code of its semantic ID among the children of the node reached;
            the log of their product is the item's score with `rerank=False, memory=False`.
        follows: Item of the history that it follows most in the co-occurrence memory, if any.
        resembles: Item of the history whose text is most like its own, if any is.
    """

    item_id: str
    steps: list[float]
    follows: str | None
    resembles: str | None


class TTDSQuestionsMixin:
    """What `TTDSForCausalLM` can be asked beside the next item, where it was tuned for it."""

    @asking
    def similar_items(
        self, item_ids: Sequence[str], top_k: int = 10, allowed: Iterable[str] | None = None
    ) -> list[list[TTDSRecommendation]]:
        """Return what people who chose an item also choose, best first.

        Args:
            item_ids: Items to start from.
            top_k: Length of the lists; they are shorter where fewer items may appear.
            allowed: Item ids that may appear; all by default.

        Raises:
            ValueError: An item is unknown, or the model was not tuned for the question.
        """
        rows = [[row] for row in self.item_rows(item_ids, "item_ids")]
        top_k, lists = as_count(top_k, "top_k"), []
        mask = self.allowed_mask(allowed)
        with evaluating(self):
            for part in (rows[first : first + AT_ONCE] for first in range(0, len(rows), AT_ONCE)):
                prompts = [self._prompt("bought_together", items=[row]) for row in part]
                candidates = TTDSCandidates(self.trie, mask, pad_rows(part, None, self.device))
                found = beam_search(self, *self._bound(prompts), candidates, max(50, top_k))
                lists += best_pairs(*found, top_k)
        return self._named(lists)

    @asking
    def next_users(
        self,
        item_id: str,
        histories: Sequence[Sequence[str]],
        buyers: Sequence[Sequence[str]] = (),
        top_k: int = 10,
    ) -> list[tuple[int, float]]:
        """Rank users by how likely they are to be the next to choose an item.

        Said by the language model's tokens of their semantic IDs and by how alike their histories
        are to the item.

        Args:
            item_id: The item.
            histories: Item ids of the users to rank, newest last.
            buyers: Histories of users who chose the item before, newest buyer last.
            top_k: Length of the list.

        Returns:
            Pairs of position in `histories` and log-probability of the user's semantic ID among
            those of the users to rank, best first.

        Raises:
            ValueError: An item is unknown, or the model was not tuned for the question.
        """
        rows = self.history_rows(histories, "error")
        earlier = self.history_rows(buyers, "error", "buyers")[-NUM_BUYERS:]
        item = self.item_rows([item_id], "item_id")
        top_k = as_count(top_k, "top_k")
        if not rows:
            return []
        padded = pad_rows(earlier + rows, self.config.max_history, self.device)
        sids = self.sids_of_users(padded)
        prompt = self._prompt("next_user", items=[item], users=[list(range(len(earlier)))])
        trie = TTDSTrie.build(sids[len(earlier) :])
        embeddings = self.user_embeddings(padded[len(earlier) :])
        table = TTDSNodeTable.build(trie, embeddings, self.vector_projection)
        users = torch.arange(len(rows), device=self.device)[None]
        with evaluating(self):
            prompts = self._bound([prompt], sids)
            scores = score_items(self, *prompts, trie, users, users=table)[0, :, -1]
        best, order = scores.sort(descending=True, stable=True)
        return list(zip(order.tolist(), best.tolist(), strict=True))[:top_k]

    @asking
    def profiles(self, histories: Sequence[Sequence[str]], max_new_tokens: int = 32) -> list[str]:
        """Describe the taste behind histories in words.

        Args:
            histories: Item ids per user, newest last, none empty.
            max_new_tokens: Longest description.

        Raises:
            ValueError: An item is unknown, a history empty, or the model not tuned for this.
        """
        rows = self.history_rows(histories, "error")
        if not all(rows):
            raise ValueError(f"History {rows.index([])} is empty; a profile needs an item.")
        max_new_tokens = as_count(max_new_tokens, "max_new_tokens")
        tokenizer = self.tokenizer
        markers = set(tokenizer.added_tokens_encoder.values()) - {tokenizer.eos_token_id}
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            suppress_tokens=sorted(markers),
        )
        texts = []
        with evaluating(self):
            for history in rows:
                newest = history[-self.config.max_history :]
                ids, mask = self._bound([self._prompt("profile_of_history", items=[newest])])
                made = self.generate(input_ids=ids, attention_mask=mask, generation_config=config)
                text = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
                texts.append(text.strip())
        return texts

    def query_prompts(
        self,
        queries: Sequence[str],
        histories: Sequence[Sequence[int]],
        user_histories: Sequence[Sequence[int]],
    ) -> tuple[Tensor, Tensor]:
        """Return bound prompts for queries and their mask, both (batch, length), padded right.

        Args:
            queries: What each user is looking for, in words.
            histories: Item rows per user, newest last; one without any asks by the query alone.
            user_histories: Item rows per user that make the user's semantic ID.

        Raises:
            ValueError: The model was not tuned for the question.
        """
        longest = self.config.max_history
        sids = self.sids_of_users(pad_rows(user_histories, longest, self.device))
        prompts = []
        for user, (query, history) in enumerate(zip(queries, histories, strict=True)):
            texts, newest = {"query": query}, list(history[-longest:])
            if newest:
                prompts.append(self._prompt("search", texts, items=[newest], users=[[user]]))
            else:
                prompts.append(self._prompt("query", texts))
        return self._bound(prompts, sids)

    @asking
    def rerank_rows(
        self,
        histories: Sequence[Sequence[int]],
        top_k: int,
        allowed: Tensor | None = None,
    ) -> list[list[tuple[int, float]]]:
        """Do what `recommend_rows` does without the language model, to compare with it.

        The re-ranker orders what co-occurrence memory and texts propose; the language model's
        features are at their means.

        Args:
            histories: Item rows per user, newest last.
            top_k: Length of the lists.
            allowed: Mask of the items that may appear, (num_items,).

        Raises:
            ValueError: The model has no re-ranker.
        """
        if not self.config.has_reranker:
            raise ValueError(
                "The model has no re-ranker: none was asked for, or lists are no better with one."
            )
        seen = histories if self.config.exclude_seen else [[]] * len(histories)
        candidates = TTDSCandidates(self.trie, allowed, pad_rows(seen, None, self.device))
        recall = self.recall(histories, candidates, max(self.num_candidates, top_k))
        items = recall.candidates()
        features = recall.features(items.clamp_min(0), None, None)
        model = [FEATURES.index(name) for name in MODEL_FEATURES]
        features[..., model] = self.reranker.mean[model]
        with evaluating(self):
            return best_pairs(*best_first(items, self.reranker(features)), top_k)

    @asking
    def knows_words(self, queries: Sequence[str]) -> list[bool]:
        """Return which queries have a word that the model knows.

        A table of tokens embeds the words of the catalogue's texts and no others: a word is known
        that is in title, brand or categories of an item nearby, or has a token of its own. Encoders
        and language models know more words than we can tell, so they are asked anything.

        Args:
            queries: Words.
        """
        if self.config.text_encoder != "tokens":
            return [True] * len(queries)
        asked = self.embed_texts(queries)
        every = TTDSCandidates(self.trie, None, pad_rows([[]] * len(queries), None, self.device))
        nearest, *_ = nearest_texts(asked, self.item_text, every, NUM_NEAR, self.node_table)
        return [
            any(self._knows(word, rows) for word in query_words(query))
            for query, rows in zip(queries, nearest.tolist(), strict=True)
        ]

    def _knows(self, word: str, rows: Sequence[int]) -> bool:
        tokens = self.tokenizer.encode_words(word)
        if len(tokens) == 1 and self.token_table.table[tokens[0]].any():
            return True
        singular = word[:-1] if re.search("[^s]s$", word) else word
        entries = (self.catalogue[row] for row in rows if row >= 0)
        return any(singular in normalised(item_text(entry)) for entry in entries)

    def _prompt(
        self,
        name: str,
        texts: dict[str, str] | None = None,
        items: Sequence[Sequence[int]] = (),
        users: Sequence[Sequence[int]] = (),
    ) -> list[int]:
        known = self.config.prompts or {}
        if name not in known:
            raise ValueError(
                f"This model was not tuned for the question {name!r}; tune it with a weight for "
                f"it under `tasks`. It knows {', '.join(known) or 'none'}."
            )
        return self.tokenizer.encode_prompt(known[name], texts, items, users, LONGEST_QUERY)

    def _bound(
        self, prompts: Sequence[Sequence[int]], user_sids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        ids, mask = pad_prompts(prompts, self.device)
        return self.bind(ids, user_sids), mask

    @asking
    def explain(self, history: Sequence[str], items: Sequence[str]) -> list[TTDSExplanation]:
        """Say what language model, co-occurrence memory and texts hold of items after a history.

        Args:
            history: Item ids, newest last; may be empty, and the newest `max_history` count.
            items: Ids of the items in question, recommended or not.

        Raises:
            ValueError: An item is unknown; the message says which.
        """
        history, items = as_item_ids(history, "history"), as_item_ids(items, "items")
        past, rows = self.item_rows(history, "history"), self.item_rows(items, "items")
        if not rows:
            return []
        newest = slice(-self.config.max_history, None)
        history, past = history[newest], past[newest]
        wanted = torch.tensor([rows], device=self.device)
        with evaluating(self):
            prompts = self.history_prompts([past], [past])
            reached = score_items(self, *prompts, self.trie, wanted)[0]  # (num_items, num_levels)
        steps = reached.diff(dim=1, prepend=torch.zeros_like(reached[:, :1])).exp()
        resembles = self.item_text[past] @ self.item_text[rows].T - ALIKE  # (history, num_items)
        follows = torch.zeros_like(resembles)
        if past and self.config.has_cooccurrence:
            alone = torch.tensor(past, device=self.device)[:, None]
            found = TTDSNeighbours(self.cooccurrence, alone)
            follows = found.at(wanted.expand(len(past), -1), found.sums((1.0, 1.0, 1.0)))[..., 0]
        return [
            TTDSExplanation(
                item, step, *(_best(history, table[:, i]) for table in (follows, resembles))
            )
            for i, (item, step) in enumerate(zip(items, steps.tolist(), strict=True))
        ]


def _best(history: Sequence[str], scores: Tensor) -> str | None:
    return history[int(scores.argmax())] if len(scores) and scores.max() > 0 else None
