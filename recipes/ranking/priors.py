"""Fit the head that joins the co-occurrence memory's priors with the language model."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from tqdm.auto import tqdm

from modeling_ttds.modeling_ttds import TTDSForCausalLM
from modeling_ttds.prefix_ttds import TTDSPrefix, log_softmax
from modeling_ttds.priors_ttds import TTDSPriorHead
from modeling_ttds.recommendation_ttds import pad_rows
from modeling_ttds.trie_ttds import spread
from recipes.data.split import Split

MOST_STEPS = 1200  # of a fit; the head is small, and more users teach it hardly more


@dataclass(frozen=True)
class NodeChoices:
    """At one level, the children of the node on each user's way, and which one was chosen.

    Children of all users are laid end to end; an only child is no choice, so its user has none.

    Args:
        features: (num_children, num_features).
        first: Where each user's children begin, and where the last one's end, (num_users + 1,).
        chosen: Which of its children leads to the user's target, (num_users,).
    """

    features: Tensor
    first: Tensor
    chosen: Tensor

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, users: Tensor) -> "NodeChoices":
        count = self.first.diff()[users]
        _, children = spread(self.first[users], count)
        first = F.pad(count.cumsum(0), (1, 0))
        return NodeChoices(self.features[children], first, self.chosen[users])


@torch.no_grad()
def node_choices(
    model: TTDSForCausalLM,
    split: Split,
    which: str,
    most: int | None = None,
    batch_size: int = 128,
) -> list[NodeChoices]:
    """Follow every user's target down the trie, one result per level.

    Args:
        model: A model with a co-occurrence memory and a prior head.
        split: The split.
        which: `"validation"` or `"test"`.
        most: How many users are followed; None for all.
        batch_size: Users per step.
    """
    model.eval()
    users, trie = split.users(which)[:most], model.trie
    targets = torch.from_numpy(split.targets(which)[users]).to(model.device)
    first = model.config.sid_token_start
    found = [[] for _ in range(trie.num_levels)]
    for rows in tqdm(torch.arange(len(users)).split(batch_size), desc="priors", unit="batch"):
        shown = [split.history(users[row], which).tolist() for row in rows]
        prefix = TTDSPrefix(model, *model.history_prompts(shown, shown))
        seen = shown if split.exclude_seen else [[]] * len(shown)
        priors = model.priors(shown, pad_rows(seen, None, model.device))
        states, target = prefix.state, targets[rows][:, None]  # (batch, 1, hidden), (batch, 1)
        for level in range(trie.num_levels):
            nodes = trie.node_of(target, level)
            logits, children = model.node_logits(states, prefix.history, nodes, level)
            features = priors.features(logits.log_softmax(-1), children, nodes, level)
            child = trie.node_of(target, level + 1)
            real = (logits > -torch.inf)[:, 0]
            real &= (real.sum(1) > 1)[:, None]
            begins = F.pad(real.sum(1).cumsum(0), (1, 0))
            chosen = (child - children[..., 0])[:, 0]
            parts = features[:, 0][real], begins, chosen
            found[level].append(NodeChoices(*(part.cpu() for part in parts)))
            if level + 1 < trie.num_levels:
                code = trie.codes[level + 1][child]
                tokens = first + level * model.config.item_tower.num_codes + code
                states = prefix.extend(tokens, torch.zeros_like(tokens))
    return [_joined(parts) for parts in found]


def _joined(parts: list[NodeChoices]) -> NodeChoices:
    counts = torch.cat([part.first.diff() for part in parts])
    return NodeChoices(
        torch.cat([part.features for part in parts]),
        F.pad(counts.cumsum(0), (1, 0)),
        torch.cat([part.chosen for part in parts]),
    )


def fit_priors(
    choices: list[NodeChoices],
    new: list[NodeChoices] | None = None,
    *,
    cold_item_dropout: float = 0.0,
    num_epochs: int = 24,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    seed: int = 0,
    name: str = "prior head",
) -> TTDSPriorHead:
    """Fit a prior head by softmax cross-entropy over the children of every node on the way.

    Args:
        choices: As of `node_choices`.
        new: The same of a model `with_newcomers`, for the first of the users.
        cold_item_dropout: How often a step shows a user as of `new`.
        num_epochs: Epochs over the users, or as many as 1,200 steps allow.
        batch_size: Users per step.
        learning_rate: Of AdamW; it falls to zero as a cosine.
        seed: Seed of weights, order and dropout.
        name: What the progress bar calls it.
    """
    torch.manual_seed(seed)
    head = TTDSPriorHead(len(choices))
    head.reset()
    num_users = len(choices[0])
    num_new = len(new[0]) if new and cold_item_dropout else 0
    if num_new:
        choices = [_joined(list(both)) for both in zip(choices, new, strict=True)]
    for level, choice in enumerate(choices):
        if len(choice.features) > 1:
            head.mean[level] = choice.features.mean(0)
            head.std[level] = choice.features.std(0).clamp_min(1e-3)
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=1e-2)
    order = torch.cat([torch.randperm(num_users) for _ in range(num_epochs)])
    batches = order.split(batch_size)[:MOST_STEPS]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    head.train()
    for users in tqdm(batches, desc=f"fit {name}", unit="step"):
        if num_new:
            shown = (users < num_new) & (torch.rand(len(users)) < cold_item_dropout)
            users = users + num_users * shown
        optimizer.zero_grad()
        prior_loss(head, [choice[users] for choice in choices]).backward()
        optimizer.step()
        schedule.step()
    return head.eval()


def cross_fit_priors(
    choices: list[NodeChoices],
    new: list[NodeChoices] | None = None,
    *,
    cold_item_dropout: float = 0.0,
    num_folds: int = 2,
    seed: int = 0,
) -> tuple[TTDSPriorHead, list[TTDSPriorHead]]:
    """Return the head of all users, and one per fold that has not seen it.

    Args:
        choices: As of `node_choices`.
        new: As of `fit_priors`.
        cold_item_dropout: As of `fit_priors`.
        num_folds: Number of folds; the n-th user is in the n-th of them, and so on around.
        seed: As of `fit_priors`.
    """
    folds = torch.arange(len(choices[0])) % num_folds
    fit = {"cold_item_dropout": cold_item_dropout, "seed": seed}
    heads = []
    for fold in range(num_folds):
        rest = (folds != fold).nonzero()[:, 0]
        parts = [
            level and [choice[rest[rest < len(choice)]] for choice in level]
            for level in (choices, new)
        ]
        name = f"prior head, part {fold + 1} of {num_folds}"
        heads.append(fit_priors(*parts, **fit, name=name))
    return fit_priors(choices, new, **fit), heads


def prior_loss(head: TTDSPriorHead, choices: list[NodeChoices]) -> Tensor:
    """Return the mean over users of minus the log-probability of their targets.

    Args:
        head: The head.
        choices: As of `node_choices`.
    """
    total = 0
    for level, choice in enumerate(choices):
        count = choice.first.diff()
        users = count.nonzero()[:, 0]
        if not len(users):
            continue
        owner, _ = spread(choice.first[users], count[users])
        log_probs = log_softmax(head(choice.features, level), owner, len(users))
        total = total - log_probs[choice.first[users] + choice.chosen[users]].sum()
    return total / len(choices[0])
