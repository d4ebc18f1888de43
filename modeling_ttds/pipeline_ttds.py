"""`pipeline(model=..., trust_remote_code=True)`: a history in, a ranked list of items out."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any

from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .arguments_ttds import as_count, as_histories, as_item_ids, as_stream, unordered
from .recommendation_ttds import query_texts
from .records_ttds import shown

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
        options = self._forward_params | self._sanitize_parameters(**options)[1]
        columns = {name: options.pop(name, None) for name in PER_REQUEST}
        columns = {name: values for name, values in columns.items() if values is not None}
        if "user_histories" in columns:
            unknown = options.get("unknown", "error")
            self.model.history_rows(columns["user_histories"], unknown, "user_histories")
        one = isinstance(requests, Mapping)
        if one:
            requests = [requests]
        stream = as_stream(requests)
        if stream is None:
            raise ValueError(f"A request is {shown(requests)}; it must be {FORM}.")
        lists = self._lists(stream, size, columns, options)
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
            histories = [request["history"] for request in batch]
            with self.model.lock.reading():
                # An unknown item is named by its request's number in the call, which is known here.
                self.model.history_rows(histories, options.get("unknown", "error"), first=first)
                lists = self.forward(batch, **options)
            first = last
            yield from map(self.postprocess, lists)
        for name, values in columns.items():
            if len(values) > first:
                raise ValueError(f"`{name}` has {len(values)} entries for {first} requests.")

    def _sanitize_parameters(self, **options):
        # Every batch and every call needs them whole, and what is a stream ends with the first.
        checks = {
            "allowed": lambda given: as_item_ids(unordered(given), "allowed"),
            "user_histories": lambda given: as_histories(given, "user_histories"),
            "queries": query_texts,
        }
        whole = {
            name: check(options[name])
            for name, check in checks.items()
            if options.get(name) is not None
        }
        return {}, options | whole, {}

    def preprocess(self, request: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
        """Return one request as a dict of its own, after a check.

        Args:
            request: The request, or its history alone.

        Raises:
            ValueError: It is something else; the message says what.
        """
        named = request if isinstance(request, Mapping) else {"history": request}
        if as_stream(named.get("history")) is None:
            raise ValueError(f"A request is {shown(request)}; it must be {FORM}.")
        if unknown := [key for key in named if key not in ("history", "top_k")]:
            raise ValueError(
                f"A request has the key {shown(unknown[0])}; it takes `history` and `top_k`. Pass "
                "what holds for all requests as an argument of the call."
            )
        checked = {"history": as_item_ids(named["history"], "history")}
        if named.get("top_k") is not None:  # a table has the column for every row
            checked["top_k"] = as_count(named["top_k"], "top_k")
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
