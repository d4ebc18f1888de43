"""`pipeline(model=..., trust_remote_code=True)`: a history in, a ranked list of items out."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any

from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .arguments_ttds import as_count, as_item_ids, as_list

TASK = "sequential-recommendation"
FORM = '{"history": [item ids]}, newest last'
PER_REQUEST = ("queries", "user_histories")  # options that hold one entry per request


class TTDSPipeline(Pipeline):
    """Recommends to histories, in batches.

    Args:
        *args: As of `Pipeline`.
        batch_size: Requests that share a batch.
        **kwargs: As of `Pipeline`; the rest as of `TTDSForCausalLM.recommend`, for every call.
    """

    _load_tokenizer = False  # the model brings its own, and saves it
    _load_processor = _load_image_processor = _load_video_processor = False
    _load_feature_extractor = False

    def __init__(self, *args, batch_size: int = 64, **kwargs):
        super().__init__(*args, batch_size=as_count(batch_size, "batch_size"), **kwargs)

    def __call__(
        self,
        requests: Mapping[str, Any] | Iterable[Mapping[str, Any] | Iterable[str]],
        batch_size: int | None = None,
        **options,
    ) -> list | Iterator[list[dict[str, Any]]]:
        """Return per request a list of `{"item_id", "title", "score"}`, best first.

        Args:
            requests: One request, or any iterable of them: `{"history": [item ids, newest last]}`,
                which may hold a `top_k` of its own, or the history alone. Of what has no length,
                and of a dataset of torch, the lists come one after the other as they are taken.
            batch_size: Requests that share a batch; by default as the pipeline was made.
            **options: As of `TTDSForCausalLM.recommend`; `queries` and `user_histories` hold one
                entry per request.

        Raises:
            ValueError: A request is not of this form, an item is unknown, an option out of range,
                or there is not one entry of an option per request.
        """
        size = as_count(self._batch_size if batch_size is None else batch_size, "batch_size")
        columns = {
            name: as_list(options.pop(name), name, "entries, one per request")
            for name in PER_REQUEST
            if options.get(name) is not None
        }
        one = isinstance(requests, Mapping)
        if one:
            requests = [requests]
        elif isinstance(requests, str | bytes):
            raise ValueError(f"A request is {requests!r}; it must be {FORM}.")
        try:
            stream = iter(requests)
        except TypeError:
            raise ValueError(f"A request is {requests!r}; it must be {FORM}.") from None
        lists = self._lists(stream, size, columns, self._forward_params | options)
        if one:
            (only,) = lists
            return only
        lazily = isinstance(requests, Dataset) or not hasattr(requests, "__len__")
        return lists if lazily else list(lists)

    def _lists(
        self, requests: Iterator, size: int, columns: dict[str, list], options: dict[str, Any]
    ) -> Iterator[list[dict[str, Any]]]:
        # `Pipeline` would pad tensors to make a batch; `recommend` makes its own from lists.
        first = 0
        while batch := [self.preprocess(request) for request in islice(requests, size)]:
            last = first + len(batch)
            for name, values in columns.items():
                if len(values) < last:
                    raise ValueError(
                        f"`{name}` has {len(values)} entries for {last} or more requests."
                    )
                for request, value in zip(batch, values[first:last], strict=True):
                    request[name] = value
            first = last
            yield from map(self.postprocess, self.forward(batch, **options))
        for name, values in columns.items():
            if len(values) > first:
                raise ValueError(f"`{name}` has {len(values)} entries for {first} requests.")

    def _sanitize_parameters(self, **options):
        return {}, options, {}

    def preprocess(self, request: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
        """Return one request as a dict of its own, after a check.

        Args:
            request: The request, or its history alone.

        Raises:
            ValueError: It is something else; the message says what.
        """
        if isinstance(request, list | tuple):
            request = {"history": request}
        history = request.get("history") if isinstance(request, Mapping) else None
        if isinstance(history, str | bytes | Mapping) or not isinstance(history, Iterable):
            raise ValueError(f"A request is {request!r}; it must be {FORM}.")
        if unknown := request.keys() - {"history", "top_k"}:
            raise ValueError(
                f"A request has the key {min(unknown)!r}; it takes `history` and `top_k`. Pass "
                "what holds for all requests as an argument of the call."
            )
        checked = {"history": as_item_ids(history, "history")}
        if request.get("top_k") is not None:  # a table has the column for every row
            checked["top_k"] = as_count(request["top_k"], "top_k")
        return checked

    def _forward(
        self, requests: list[dict[str, Any]], top_k: int | None = None, **options
    ) -> list[list]:
        wanted = [request.get("top_k", top_k) for request in requests]
        ranked = [[] for _ in requests]
        for length in set(wanted):
            rows = [row for row, k in enumerate(wanted) if k == length]
            of_each = {
                name: [requests[row][name] for row in rows]
                for name in PER_REQUEST
                if name in requests[0]
            }
            histories = [requests[row]["history"] for row in rows]
            lists = self.model.recommend(histories, top_k=length, **of_each, **options)
            for row, entries in zip(rows, lists, strict=True):
                ranked[row] = entries
        return ranked

    def postprocess(self, entries: list) -> list[dict[str, Any]]:
        """Turn one list of `TTDSRecommendation` into plain dicts.

        Args:
            entries: The list.
        """
        return [asdict(entry) for entry in entries]


# With it `pipeline(TASK, model=model)` takes a model that is loaded.
if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=TTDSPipeline, pt_model=AutoModelForCausalLM, type="text"
    )
