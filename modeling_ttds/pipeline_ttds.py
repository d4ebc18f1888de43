"""`pipeline(model=..., trust_remote_code=True)`: a history in, a ranked list of items out."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

from transformers import Pipeline


class TTDSPipeline(Pipeline):
    """Recommends to histories, in batches.

    Args:
        *args: As of `Pipeline`.
        batch_size: Requests that share a batch.
        **kwargs: As of `Pipeline`; the rest as of `TTDSForCausalLM.recommend`, for every call.
    """

    _load_tokenizer = True  # so that `save_pretrained` writes a folder that is whole
    _load_processor = _load_image_processor = _load_video_processor = False
    _load_feature_extractor = False

    def __init__(self, *args, batch_size: int = 64, **kwargs):
        super().__init__(*args, batch_size=batch_size, **kwargs)

    def __call__(self, requests: dict[str, Any] | Iterable[dict[str, Any]], **options):
        """Return per request a list of `{"item_id", "title", "score"}`, best first.

        Args:
            requests: One request or several: `{"history": [item ids, newest last]}`, which may hold
                a `top_k` of its own.
            **options: `batch_size`, and as of `TTDSForCausalLM.recommend`.

        Raises:
            ValueError: A request is not of this form, an item is unknown or a `top_k` out of range.
        """
        return [] if requests == [] else super().__call__(requests, **options)

    def _sanitize_parameters(self, **options):
        return {}, options, {}

    def preprocess(self, request: dict[str, Any]) -> dict[str, Any]:
        """Check one request.

        Args:
            request: The request.
        """
        if not isinstance(request, dict) or not isinstance(request.get("history"), list | tuple):
            raise ValueError(
                f'A request is {request!r}; it must be {{"history": [item ids]}}, newest last.'
            )
        if unknown := request.keys() - {"history", "top_k"}:
            raise ValueError(
                f"A request has the key {min(unknown)!r}; it takes `history` and `top_k`. Pass "
                "what holds for all requests as an argument of the call."
            )
        return request

    def _forward(self, requests: list[dict[str, Any]], top_k: int = 10, **options) -> list:
        wanted = [request.get("top_k", top_k) for request in requests]
        ranked = [[] for _ in requests]
        for length in set(wanted):
            rows = [row for row, k in enumerate(wanted) if k == length]
            histories = [requests[row]["history"] for row in rows]
            lists = self.model.recommend(histories, top_k=length, **options)
            for row, entries in zip(rows, lists, strict=True):
                ranked[row] = entries
        return ranked

    def postprocess(self, entries: list) -> list[dict[str, Any]]:
        """Turn one list of `TTDSRecommendation` into plain dicts.

        Args:
            entries: The list.
        """
        return [asdict(entry) for entry in entries]

    def run_single(self, request, preprocess_params, forward_params, postprocess_params):  # noqa: D102
        return next(self.get_iterator([request], 0, 1, {}, forward_params, {}))

    def get_iterator(
        self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the list of every request in turn.

        `Pipeline` would pad tensors to make a batch; `recommend` makes its own from lists.
        """
        inputs = iter(inputs)
        while batch := [self.preprocess(request) for request in islice(inputs, batch_size)]:
            yield from map(self.postprocess, self.forward(batch, **forward_params))
