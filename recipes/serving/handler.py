"""What an Inference Endpoint runs: JSON in, ranked lists out.

It travels as `handler.py` beside a published model and needs nothing but the files there.
"""

import os
import reprlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from transformers import AutoModel

MAX_REQUESTS, MAX_TOP_K = 64, 100
MAX_HISTORY, MAX_ALLOWED = 1_000, 10_000  # item ids
MAX_QUERY = 500  # characters
LISTS = {"history": MAX_HISTORY, "user_history": MAX_HISTORY, "allowed": MAX_ALLOWED}
FIELDS = (*LISTS, "top_k", "query", "unknown")
BODY = ("inputs", "parameters", "options")  # clients of the Hub send options of their own
FORM = '{"history": [item ids, newest last]}, with or without "top_k", "allowed", "query"'
# What the model calls the fields of a single request, and what the request does.
AS_POSTED = {
    "`user_histories`: history 0": "`user_history`",
    "History 0": "`history`",
    "Query 0": "`query`",
    "leave `queries` out": "leave it out",
    "add it by `add_items`, or ": "",
    'pass `unknown="skip"`': 'send `"unknown": "skip"`',
}
Request = dict[str, Any]
Entries = list[dict[str, Any]]


class EndpointHandler:
    """Answers `{"inputs": {"history": [...]}}`, or a list of such requests under `inputs`.

    A request may also hold `top_k`, `allowed` (item ids that may appear), `query` (words),
    `user_history` (what the user tower sees instead of the history) and `unknown`: `"error"`, or
    `"skip"` to drop the history's items that the model does not know. What stands under
    `parameters` holds for every request that does not say otherwise.

    Args:
        path: Folder of the model.
    """

    def __init__(self, path: str | os.PathLike = ""):
        self.model = AutoModel.from_pretrained(path or ".", trust_remote_code=True).eval()
        if torch.cuda.is_available():
            self.model.to("cuda")

    def __call__(self, data: dict[str, Any]) -> Entries | list[Entries]:
        """Return a list of `{"item_id", "title", "score"}`, best first, or one per request.

        Args:
            data: What was posted.

        Raises:
            ValueError: It is not of the form, too large, or an item is unknown; the message is a
                sentence, which the service answers with.
        """
        inputs = data.get("inputs") if isinstance(data, dict) else None
        one = isinstance(inputs, dict)
        if not one and not isinstance(inputs, list):
            raise ValueError(f"`inputs` is {reprlib.repr(inputs)}; it must be {FORM}, or a list.")
        for name in data:
            if name not in BODY:
                raise ValueError(
                    f"{reprlib.repr(name)} stands beside `inputs`, where nobody reads it; put it "
                    "into `parameters`, or leave it out."
                )
        requests = [inputs] if one else inputs
        if len(requests) > MAX_REQUESTS:
            raise ValueError(
                f"`inputs` holds {len(requests):,} requests; send {MAX_REQUESTS} at most at once."
            )
        shared = {} if data.get("parameters") is None else data["parameters"]
        if not isinstance(shared, dict):
            raise ValueError(f"`parameters` is {reprlib.repr(shared)}; it must be an object.")
        for number, request in enumerate(requests):
            if not isinstance(request, dict):
                raise ValueError(
                    f"`inputs` {number} is {reprlib.repr(request)}; it must be {FORM}."
                )
        said = [{n: v for n, v in request.items() if v is not None} for request in requests]
        found = answers(self.model, [checked(shared | request) for request in said])
        for number, answer in enumerate(found):
            if isinstance(answer, ValueError):
                raise answer if one else ValueError(f"`inputs` {number}: {answer}")
        return found[0] if one else found


def checked(request: Request) -> Request:
    """Return a request without the fields that say nothing.

    Args:
        request: An object as JSON holds it.

    Raises:
        ValueError: A field is unknown, of another type, or too large.
    """
    request = {name: value for name, value in request.items() if value is not None}
    if unknown := sorted(request.keys() - set(FIELDS)):
        raise ValueError(f"`{unknown[0]}` is no field of a request; it takes {', '.join(FIELDS)}.")
    if "history" not in request:
        raise ValueError(f"`history` is missing; a request must be {FORM}.")
    for name, longest in LISTS.items():
        value = request.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(
                f"`{name}` is {reprlib.repr(value)}; it must be a list of item ids, strings."
            )
        if len(value) > longest:
            raise ValueError(f"`{name}` holds {len(value):,} items; send {longest:,} at most.")
    top_k = request.get("top_k", 1)
    if type(top_k) is not int or not 1 <= top_k <= MAX_TOP_K:
        raise ValueError(
            f"`top_k` is {reprlib.repr(top_k)}; it must be an integer from 1 to {MAX_TOP_K}."
        )
    query = request.get("query", "")
    if not isinstance(query, str) or len(query) > MAX_QUERY:
        raise ValueError(
            f"`query` is {reprlib.repr(query)}; it must be a text of {MAX_QUERY} characters at "
            "most."
        )
    if request.get("unknown", "error") not in ("error", "skip"):
        raise ValueError(
            f"`unknown` is {reprlib.repr(request['unknown'])}; it must be 'error' or 'skip'."
        )
    return request


def answers(model: Any, requests: Sequence[Request]) -> list[Entries | ValueError]:
    """Let a model answer requests, in as few batches as their options allow.

    Args:
        model: A `TTDSForCausalLM`.
        requests: As of `checked`.

    Returns:
        Per request its list, or the error that says what is wrong with it alone.
    """
    groups: dict[tuple, list[int]] = {}
    for number, request in enumerate(requests):
        allowed = request.get("allowed")
        options = (
            request.get("top_k"),
            None if allowed is None else frozenset(allowed),
            "query" in request,
            request.get("unknown", "error"),
        )
        groups.setdefault(options, []).append(number)
    found: list = [None] * len(requests)
    for numbers in groups.values():
        lists = _together(model, [requests[number] for number in numbers])
        for number, entries in zip(numbers, lists, strict=True):
            found[number] = entries
    return found


def _together(model: Any, requests: Sequence[Request]) -> list[Entries | ValueError]:
    first = requests[0]
    try:
        lists = model.recommend(
            [request["history"] for request in requests],
            top_k=first.get("top_k"),
            user_histories=[r.get("user_history", r["history"]) for r in requests],
            allowed=first.get("allowed"),
            queries=[request["query"] for request in requests] if "query" in first else None,
            unknown=first.get("unknown", "error"),
        )
    except (OSError, ValueError) as error:  # the text encoder that a query needs may be gone
        if len(requests) == 1:
            text = str(error)
            for theirs, ours in AS_POSTED.items():
                text = text.replace(theirs, ours)
            return [ValueError(text)]
        # One of them is refused; the others are not to suffer from it.
        return [answer for request in requests for answer in _together(model, [request])]
    return [[asdict(entry) for entry in entries] for entries in lists]
