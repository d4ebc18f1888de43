"""What a model can be asked: top-K lists for histories, generated and joined with the memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from .generation_ttds import TTDSCandidates, TTDSTrie, beam_search, score_items
from .memory_ttds import TTDSRecall

NUM_CANDIDATES = 200
ALIKE = 0.5  # cosine above which two texts are called alike
NUM_BUYERS = 10
LONGEST_QUERY = 32


@dataclass(frozen=True)
class TTDSRecommendation:
    """One entry of a list.

    Args:
        item_id: Id of the item.
        title: Its title, empty if it has none.
        score: Log-probability: of its codes, or by the gate among the candidates.
    """

    item_id: str
    title: str
    score: float


@dataclass(frozen=True)
class TTDSExplanation:
    """What speaks for an item after a history.

    Args:
        item_id: Id of the item.
        steps: Probability of each of its codes among the level's, after those before it; the log of
            their product is the item's score without the gate.
        follows: Item of the history that it follows most in the memory, if any.
        resembles: Item of the history whose text is most like its own, if any is.
    """

    item_id: str
    steps: list[float]
    follows: str | None
    resembles: str | None


class TTDSRecommendationMixin:
    """What `TTDSForCausalLM` can be asked: top-K lists for histories."""

    @property
    def trie(self) -> TTDSTrie:
        """The trie of today's item codes."""
        codes = self.item_codes
        key = (codes.data_ptr(), codes._version, codes.shape, codes.device)
        if getattr(self, "_trie_key", None) != key:
            self._trie, self._trie_key = TTDSTrie.build(codes), key
        return self._trie

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        top_k: int = 10,
        user_histories: Sequence[Sequence[str]] | None = None,
        exclude_seen: bool = True,
        allowed: Iterable[str] | None = None,
        num_beams: int | None = None,
        unknown: str = "error",
        batch_size: int = 64,
        gate: bool = True,
        queries: Sequence[str] | None = None,
    ) -> list[list[TTDSRecommendation]]:
        """Return the items each user is most likely to choose next, best first.

        Args:
            histories: Item ids per user, newest last; may be empty.
            top_k: Length of the lists; they are shorter where fewer items may appear.
            user_histories: What the user tower sees in place of `histories`.
            exclude_seen: Leave out the items of the history.
            allowed: Item ids that may appear; all by default.
            num_beams: Prefixes kept per level, at least `top_k`; 50 or `top_k` by default.
            unknown: What to do with a history's item that is not in the catalogue: `"error"`, or
                `"skip"` to drop it.
            batch_size: Users per step.
            gate: Whether memory and gate join in, where the model has them; otherwise the list is
                what the language model generates.
            queries: What each user is looking for, in words; the language model answers alone.

        Raises:
            ValueError: An argument is out of range or an item unknown; the message says which.
        """
        rows = self.history_rows(histories, unknown)
        user_rows = None if user_histories is None else self.history_rows(user_histories, unknown)
        if user_rows is not None and len(user_rows) != len(rows):
            raise ValueError(
                f"`user_histories` has {len(user_rows)} entries for {len(rows)} `histories`."
            )
        mask = None
        if allowed is not None:
            mask = torch.zeros(len(self.item_codes), dtype=torch.bool, device=self.device)
            mask[self.history_rows([list(allowed)], "error")[0]] = True
        if queries is not None and (isinstance(queries, str) or len(queries) != len(rows)):
            raise ValueError(
                f"`queries` is {queries!r}; give one text per history, {len(rows)} in all."
            )
        lists = self.recommend_rows(
            rows, top_k, user_rows, exclude_seen, mask, num_beams, batch_size, gate, queries
        )
        return self._named(lists)

    def similar_items(
        self, item_ids: Sequence[str], top_k: int = 10, allowed: Iterable[str] | None = None
    ) -> list[list[TTDSRecommendation]]:
        """Return what people who chose an item also choose, best first.

        Args:
            item_ids: Items to start from.
            top_k: Length of the lists.
            allowed: Item ids that may appear; all by default.

        Raises:
            ValueError: An item is unknown, or the model was not tuned for the question.
        """
        rows = self.history_rows([[item] for item in item_ids], "error")
        mask = None
        if allowed is not None:
            mask = torch.zeros(len(self.item_codes), dtype=torch.bool, device=self.device)
            mask[self.history_rows([list(allowed)], "error")[0]] = True
        prompts = self.question("bought_together", len(rows), items=[[row] for row in rows])
        candidates = TTDSCandidates(self.trie, mask, pad_rows(rows, None, self.device))
        with torch.no_grad():
            found = beam_search(self, *prompts, candidates, max(50, top_k))
        return self._named(
            [
                [pair for pair in zip(items, scores, strict=True) if pair[0] >= 0][:top_k]
                for items, scores in zip(*(part.tolist() for part in found), strict=True)
            ]
        )

    @torch.no_grad()
    def next_users(
        self,
        item_id: str,
        histories: Sequence[Sequence[str]],
        buyers: Sequence[Sequence[str]] = (),
        top_k: int = 10,
    ) -> list[tuple[int, float]]:
        """Rank users by how likely they are to be the next to choose an item.

        Args:
            item_id: The item.
            histories: Item ids of the users to rank, newest last.
            buyers: Histories of users who chose the item before, newest buyer last.
            top_k: Length of the list.

        Returns:
            Pairs of position in `histories` and log-probability of the user's codes, best first.

        Raises:
            ValueError: An item is unknown, or the model was not tuned for the question.
        """
        rows = self.history_rows(histories, "error")
        earlier = self.history_rows(buyers, "error")[-NUM_BUYERS:]
        item = self.history_rows([[item_id]], "error")[0]
        if not rows:
            return []
        longest = self.config.max_history
        codes = self.codes_of_users(pad_rows(earlier + rows, longest, self.device))
        prompts = self.question(
            "next_user", 1, items=[[item]], users=[list(range(len(earlier)))], user_codes=codes
        )
        trie = TTDSTrie.build(codes[len(earlier) :])
        users = torch.arange(len(rows), device=self.device)[None]
        scores = score_items(self, *prompts, trie, users, "user")[0]
        best, order = scores.sort(descending=True, stable=True)
        return list(zip(order.tolist(), best.tolist(), strict=True))[:top_k]

    @torch.no_grad()
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
        shown = [[history[-self.config.max_history :]] for history in rows]
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            suppress_tokens=sorted(self.tokenizer.added_tokens_encoder.values()),
        )
        config.suppress_tokens = [
            token for token in config.suppress_tokens if token != config.eos_token_id
        ]
        texts = []
        for history in shown:
            ids, mask = self.question("profile_of_history", 1, items=[history])
            made = self.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            text = self.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
            texts.append(text.strip())
        return texts

    def question(
        self,
        name: str,
        count: int,
        items: Sequence[Sequence[Sequence[int]]] | None = None,
        users: Sequence[Sequence[int]] | None = None,
        user_codes: Tensor | None = None,
        texts: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return bound prompts of a question and their mask, both (count, length), padded right.

        Args:
            name: A question of `config.prompts`.
            count: Number of prompts.
            items: Per prompt, item rows per `<item>`.
            users: Per prompt, rows of `user_codes` for its `<user>`.
            user_codes: Codes of the users, (num_users, num_levels).
            texts: Per prompt, the text of its `{query}`.

        Raises:
            ValueError: The model was not tuned for the question.
        """
        wording = (self.config.prompts or {}).get(name)
        if wording is None:
            raise ValueError(
                f"This model was not tuned for the question {name!r}; tune it with a weight for "
                f"it under `tasks`. It knows {', '.join(self.config.prompts or {}) or 'none'}."
            )
        prompts = []
        for number in range(count):
            ids = self.tokenizer.encode_prompt(
                wording,
                {} if texts is None else {"query": texts[number]},
                items=() if items is None else items[number],
                users=() if users is None else [users[number]],
                longest_text=LONGEST_QUERY,
            )
            prompts.append(torch.tensor(ids))
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        ids = nn.utils.rnn.pad_sequence(prompts, batch_first=True).to(self.device)
        mask = (torch.arange(ids.shape[1], device=self.device) < lengths[:, None]).long()
        return self.bind(ids, user_codes), mask

    def _named(self, lists: list[list[tuple[int, float]]]) -> list[list[TTDSRecommendation]]:
        return [
            [
                TTDSRecommendation(entry["item_id"], entry.get("title", ""), score)
                for entry, score in ((self.catalogue[row], score) for row, score in pairs)
            ]
            for pairs in lists
        ]

    def history_rows(self, histories: Sequence[Sequence[str]], unknown: str) -> list[list[int]]:
        """Translate item ids to rows.

        Args:
            histories: Item ids per user.
            unknown: `"error"` or `"skip"`.

        Raises:
            ValueError: An item is unknown, or `histories` is one history instead of several.
        """
        if unknown not in ("error", "skip"):
            raise ValueError(f"`unknown` is {unknown!r}; it must be 'error' or 'skip'.")
        rows = []
        for number, history in enumerate(histories):
            if isinstance(history, str):
                raise ValueError(
                    f"`histories` holds the string {history!r}; give a list of histories, each a "
                    "list of item ids."
                )
            known = [self.row_of.get(item, -1) for item in history]
            if unknown == "error" and -1 in known:
                raise ValueError(
                    f"History {number} holds the unknown item {history[known.index(-1)]!r}; add it "
                    'by `add_items`, or pass `unknown="skip"` to drop it.'
                )
            rows.append([row for row in known if row >= 0])
        return rows

    @torch.no_grad()
    def recommend_rows(
        self,
        histories: Sequence[Sequence[int]],
        top_k: int,
        user_histories: Sequence[Sequence[int]] | None = None,
        exclude_seen: bool = True,
        allowed: Tensor | None = None,
        num_beams: int | None = None,
        batch_size: int = 64,
        gate: bool = True,
        queries: Sequence[str] | None = None,
    ) -> list[list[tuple[int, float]]]:
        """Do what `recommend` does, on item rows; returns pairs of row and log-probability.

        Args:
            histories: Item rows per user, newest last.
            top_k: Length of the lists.
            user_histories: What the user tower sees in place of `histories`.
            exclude_seen: Leave out the items of the history.
            allowed: Mask of the items that may appear, (num_items,).
            num_beams: Prefixes kept per level.
            batch_size: Users per step.
            gate: Whether memory and gate join in, where the model has them.
            queries: What each user is looking for, in words; the language model answers alone.
        """
        num_items = len(self.item_codes)
        if not 1 <= top_k <= num_items:
            raise ValueError(
                f"`top_k` is {top_k}; it must be from 1 to the {num_items} items of the catalogue."
            )
        num_beams = max(50, top_k) if num_beams is None else num_beams
        if num_beams < top_k:
            raise ValueError(f"`num_beams` is {num_beams}; it must be at least `top_k` {top_k}.")
        was_training = self.training
        self.eval()
        lists = []
        # Histories of like length share a batch, so that little of it is padding.
        order = sorted(range(len(histories)), key=lambda i: len(histories[i]))
        for first in range(0, len(order), batch_size):
            users = order[first : first + batch_size]
            shown = [histories[user] for user in users]
            behind = shown if user_histories is None else [user_histories[user] for user in users]
            if queries is None:
                prompts = self.history_prompts(shown, behind)
            else:
                prompts = self._query_prompts([queries[user] for user in users], shown, behind)
            excluded = pad_rows(shown if exclude_seen else [[]] * len(shown), None, self.device)
            candidates = TTDSCandidates(self.trie, allowed, excluded)
            items, scores = beam_search(self, *prompts, candidates, num_beams)
            if gate and self.config.has_gate and queries is None:
                forbidden = self.forbidden(excluded, allowed)
                number = max(NUM_CANDIDATES, top_k)
                items, features = self.gate_features(shown, prompts, items, forbidden, number)
                items, scores = self._join(items, features)
            for row, score in zip(items.tolist(), scores.tolist(), strict=True):
                pairs = [pair for pair in zip(row, score, strict=True) if pair[0] >= 0]
                lists.append(pairs[:top_k])
        self.train(was_training)
        return [pairs for _, pairs in sorted(zip(order, lists, strict=True))]

    def _query_prompts(
        self,
        queries: Sequence[str],
        histories: Sequence[Sequence[int]],
        user_histories: Sequence[Sequence[int]],
    ) -> tuple[Tensor, Tensor]:
        if not any(histories):
            return self.question("query", len(queries), texts=queries)
        newest = [[list(history[-self.config.max_history :])] for history in histories]
        codes = self.codes_of_users(pad_rows(user_histories, self.config.max_history, self.device))
        own = [[number] for number in range(len(queries))]
        return self.question("search", len(queries), newest, own, codes, queries)

    def forbidden(self, excluded: Tensor, allowed: Tensor | None) -> Tensor:
        """Return which items may not appear, (batch, num_items).

        Args:
            excluded: Item rows that may not appear, padded with -1, (batch, num_excluded).
            allowed: Mask of the items that may appear, (num_items,), or None for all.
        """
        num_items = len(self.item_codes)
        mask = torch.zeros(len(excluded), num_items + 1, dtype=torch.bool, device=self.device)
        mask.scatter_(1, torch.where(excluded >= 0, excluded, num_items), True)
        mask = mask[:, :num_items]
        return mask if allowed is None else mask | ~allowed

    def gate_features(
        self,
        histories: Sequence[Sequence[int]],
        prompts: tuple[Tensor, Tensor],
        beams: Tensor,
        forbidden: Tensor,
        number: int = NUM_CANDIDATES,
    ) -> tuple[Tensor, Tensor]:
        """Return the candidates of the gate and their features.

        Candidates are what the memory and the nearest texts propose together with the beams.

        Args:
            histories: Item rows per user, newest last.
            prompts: Ids and mask of the next-item prompts, both (batch, length).
            beams: Item rows that beam search found, padded with -1, (batch, num_beams).
            forbidden: Mask of items that may not appear, (batch, num_items).
            number: How many candidates memory and texts propose.

        Returns:
            Item rows, padded with -1, (batch, num_candidates), and features, (batch,
            num_candidates, num_features).
        """
        padded = pad_rows(histories, self.config.max_history, self.device)
        recall = TTDSRecall(
            self.memory, self.item_text, self.item_collaborative, self.labels, padded, forbidden
        )
        proposed = recall.candidates(number)
        repeated = (beams[:, :, None] == proposed[:, None]).any(-1)
        items = torch.cat([proposed, beams.masked_fill(repeated, -1)], 1)
        known = items.clamp_min(0)
        log_probs = score_items(self, *prompts, self.trie, known)
        return items, recall.features(known, log_probs)

    @torch.no_grad()
    def explain(self, history: Sequence[str], items: Sequence[str]) -> list[TTDSExplanation]:
        """Say what language model, memory and texts hold of items after a history.

        Args:
            history: Item ids, newest last; may be empty.
            items: Ids of the items in question, recommended or not.

        Raises:
            ValueError: An item is unknown; the message says which.
        """
        past, rows = self.history_rows([history, items], "error")
        if not rows:
            return []
        codes, tower = self.item_codes[rows], self.config.item_tower
        first = torch.arange(tower.num_levels, device=self.device) * tower.num_codes
        tokens = (codes + first + self.config.code_token_start)[:, :-1]
        prompt = self.history_prompts([past], [past])[0].expand(len(rows), -1)
        embeddings = self.embed(torch.cat([prompt, tokens], 1))
        hidden = self.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        steps = [
            self.code_logits(hidden[:, level - tower.num_levels], "item", level).float().softmax(-1)
            for level in range(tower.num_levels)
        ]
        steps = torch.stack(steps, 1).gather(2, codes[..., None])[..., 0]  # (num_items, num_levels)
        resembles = self.item_text[past] @ self.item_text[rows].T - ALIKE  # (history, num_items)
        follows = torch.zeros_like(resembles)
        if past and self.config.has_gate:
            alone = torch.tensor(past, device=self.device)[:, None]
            follows = self.memory.scores(alone, decays=(1.0, 1.0, 1.0))[:, rows, 0]
        return [
            TTDSExplanation(
                item, step, *(_best(history, table[:, i]) for table in (follows, resembles))
            )
            for i, (item, step) in enumerate(zip(items, steps.tolist(), strict=True))
        ]

    def _join(self, items: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.gate(features).masked_fill(items < 0, -torch.inf).log_softmax(1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return items.gather(1, order), scores

    @property
    def labels(self) -> Tensor:
        """Brand and categories of every item as numbers, -1 for none, (num_items, 2)."""
        if getattr(self, "_labelled", None) is not self.catalogue:
            columns = []
            for name in ("brand", "categories"):
                numbers = {}
                values = [entry.get(name, "") for entry in self.catalogue]
                columns.append([numbers.setdefault(v, len(numbers)) if v else -1 for v in values])
            self._labels, self._labelled = torch.tensor(columns).T, self.catalogue
        return self._labels.to(self.device)

    def history_prompts(
        self, histories: Sequence[Sequence[int]], user_histories: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Return bound next-item prompts and their mask, both (batch, length), padded right.

        Args:
            histories: Item rows per user, newest last; the newest `max_history` are shown.
            user_histories: Item rows per user that make the user's codes.
        """
        config, tower = self.config, self.config.item_tower
        levels = torch.arange(tower.num_levels, device=self.device) * tower.num_codes
        item_tokens = self.item_codes + levels + config.code_token_start
        user_codes = self.codes_of_users(pad_rows(user_histories, config.max_history, self.device))
        user_start = config.code_token_start + tower.num_levels * tower.num_codes
        user_tokens = (user_codes + levels + user_start).tolist()
        prompts = []
        for history, user in zip(histories, user_tokens, strict=True):
            prompt = []
            for token in config.prompt_ids:
                if token == config.user_placeholder_id:
                    prompt += user
                elif token == config.item_placeholder_id:
                    newest = list(history[-config.max_history :])
                    prompt += item_tokens[newest].flatten().tolist()
                else:
                    prompt.append(token)
            prompts.append(prompt)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        ids = nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], batch_first=True)
        ids = ids.to(self.device)
        return ids, (torch.arange(ids.shape[1], device=self.device) < lengths[:, None]).long()


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


def _best(history: Sequence[str], scores: Tensor) -> str | None:
    return history[int(scores.argmax())] if len(scores) and scores.max() > 0 else None
