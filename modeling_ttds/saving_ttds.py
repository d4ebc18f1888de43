"""Saving and loading: one folder holds all that a model is, of one moment."""

import os
from pathlib import Path

import torch
from transformers.utils import cached_file, extract_commit_hash

from .catalogue_ttds import CATALOGUE_FILE, TOKENIZER_FILE


class TTDSSavingMixin:
    """What `TTDSForCausalLM` adds to saving and loading: its catalogue and its tokenizer."""

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs
    ) -> None:
        """Write weights, configuration, code files, catalogue and tokenizer into a flat folder.

        The tokenizer is written with today's SID table. Items that other threads add or remove
        meanwhile are in all of the files or in none.

        Args:
            save_directory: The folder.
            is_main_process: Whether this process writes; the others only take part.
            **kwargs: As of `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: The tokenizer that was beside the model is gone.
        """
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        writes = is_main_process and rank == 0
        with self.lock.reading():
            if writes and self.has_tokenizer:
                self.tokenizer  # noqa: B018, where it is gone, nothing is written
            super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
            if writes:
                self._save_beside(save_directory)
                # The parent deletes shards that it did not write, but neither their index nor the
                # one file in their place, which would be loaded before them.
                folder, variant = Path(save_directory), kwargs.get("variant")
                of = "" if variant is None else f".{variant}"
                sharded = any(folder.glob(f"model{of}-*-of-*.safetensors"))
                other = f"model{of}.safetensors" if sharded else f"model.safetensors.index{of}.json"
                (folder / other).unlink(missing_ok=True)

    def _save_beside(self, folder: str | os.PathLike) -> None:
        if self.catalogue:
            self.write_catalogue(folder)
            if self.has_tokenizer:
                self.share_sid_table()
        if self.has_tokenizer:
            self.tokenizer.save_pretrained(folder)

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args, **kwargs):
        # The parent uploads before it comes back to us, and only what was written meanwhile.
        self._save_beside(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs
    ) -> "TTDSSavingMixin":
        """Load a model with its catalogue from a folder or the Hub.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            *args: As of `PreTrainedModel.from_pretrained`.
            **kwargs: As of `PreTrainedModel.from_pretrained`.
        """
        where = (
            "cache_dir",
            "force_download",
            "local_files_only",
            "revision",
            "subfolder",
            "token",
        )
        hub = {name: kwargs[name] for name in where if kwargs.get(name) is not None}
        origin = pretrained_model_name_or_path
        beside = origin is not None  # where configuration and weights are given, there is none
        if beside and os.path.isdir(origin):
            # By its whole path: the process may stand elsewhere when the tokenizer is asked for.
            origin = os.path.abspath(origin)
            beside = Path(origin, hub.get("subfolder", ""), TOKENIZER_FILE).is_file()
        file = cached_file(
            pretrained_model_name_or_path,
            CATALOGUE_FILE,
            _raise_exceptions_for_missing_entries=False,
            **hub,
        )
        commit = extract_commit_hash(file, None)
        if commit is not None:  # weights, catalogue and, later, the tokenizer are of one commit
            hub["revision"] = kwargs["revision"] = commit
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._origin = (origin, hub) if beside else None
        for buffer in model.buffers():
            # An empty one is read as a view of its neighbour in the file, which `torch.save` takes
            # for one tensor of two types.
            if not buffer.numel():
                buffer.data = buffer.data.clone()
        if file is not None:
            model.read_catalogue(file)
            model.prepare_tracing()
        return loaded
