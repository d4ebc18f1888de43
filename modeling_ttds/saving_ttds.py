"""Saving and loading: one folder holds all that a model is, of one moment."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file, extract_commit_hash

from .catalogue_ttds import CATALOGUE_FILE, TOKENIZER_FILE

# What is of whoever loads, and not of the repository loaded from.
OF_READER = ("cache_dir", "force_download", "local_files_only", "token")


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
        names = (*OF_READER, "revision", "subfolder")
        hub = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        file, origin = _beside(pretrained_model_name_or_path, hub)
        commit = extract_commit_hash(file, None)
        if commit is not None:  # weights, catalogue and, later, the tokenizer are of one commit
            hub["revision"] = kwargs["revision"] = commit
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if file is None and model._hf_peft_config_loaded:  # an adapter's folder: all is in its base
            hub = {name: value for name, value in hub.items() if name in OF_READER}
            file, origin = _beside(model.name_or_path, hub)
        model._origin = None if origin is None else (origin, hub)
        for buffer in model.buffers():
            # An empty one is read as a view of its neighbour in the file, which `torch.save` takes
            # for one tensor of two types.
            if not buffer.numel():
                buffer.data = buffer.data.clone()
        if file is not None:
            model.read_catalogue(file)
            model.prepare_tracing()
        return loaded


def _beside(
    path: str | os.PathLike | None, hub: dict[str, Any]
) -> tuple[str | None, str | os.PathLike | None]:
    """Return where a model's catalogue is and where its tokenizer is to be had, None for none.

    Args:
        path: Folder or Hub id of the model.
        hub: How it is got.
    """
    origin = path  # where configuration and weights are given, there is none
    if path is not None and os.path.isdir(path):
        # By its whole path: the process may stand elsewhere when the tokenizer is asked for.
        origin = os.path.abspath(path)
        if not Path(origin, hub.get("subfolder", ""), TOKENIZER_FILE).is_file():
            origin = None
    file = cached_file(path, CATALOGUE_FILE, _raise_exceptions_for_missing_entries=False, **hub)
    return file, origin
