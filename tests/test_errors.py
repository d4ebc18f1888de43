"""What cannot be is refused in one sentence, as the last word, with exit status 2."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recipes import evaluate, publish, recommend, sft
from recipes.data.cleaning import refuse
from recipes.data.tables import read_data
from recipes.errors import one_sentence
from recipes.tuning.arguments import parse_arguments
from tests.conftest import ROOT


def said(capsys, run):
    """Return what a run that is refused says last; it says nothing else to stderr."""
    with pytest.raises(SystemExit) as stopped, one_sentence():
        run()
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def asked(monkeypatch, capsys, script, *arguments):
    """Run a script's main in this process; return its last sentence."""
    monkeypatch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
    run = script.main
    if script is sft:
        run = lambda: sft.main(*parse_arguments())  # noqa: E731
    return said(capsys, run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learnin_rate", "1"], "`--learnin_rate` is no option; did you mean `--learning_rate`?"),
        (["--merge_repeat", "true"], "did you mean `--merge_repeats`?"),
        (["--num_beam", "7"], "did you mean `--num_beams`?"),
        (["--zzz", "7"], "`--zzz` is no option; --help lists them."),
        (["stray"], "'stray' belongs to no option"),
        (["--num_beams", "many"], "--num-beams: invalid int value: 'many'."),
        (["--num_beams"], "--num-beams: expected one argument."),
        (["--column_map", "asin"], "`column_map` is 'asin'; give a JSON object"),
        (["--cold_item_dropout", "2"], "`cold_item_dropout` is 2.0"),
        (["--metric_for_best_model", "eval_loss"], "`metric_for_best_model` is 'eval_loss'; it mu"),
        (["--report_to", "tensorbord"], "`report_to` is 'tensorbord', which is not installed; ins"),
        (["--packing", "true"], "`packing` is True, which has no meaning here; leave it out."),
        (["--loss_type", "dft"], "`loss_type` is dft, which has no meaning here"),
        (["--num_beams", "19"], "`num_beams` is 19; it must be 20 or more."),
        (["--profile_epochs", "-1"], "`profile_epochs` is -1; it must be 0 or more."),
        (["--freeze_at", "nan"], "`freeze_at` is nan; give a share of the steps, up to 1."),
        (["--num_codes", "1"], "`num_codes` is 1; it must be 2 or more."),
        (["--num_levels", "0"], "`num_levels` is 0; it must be 1 or more."),
        (["--dropout", "nan"], "`dropout` is nan; it must be 0 or more, below 1."),
        (["--collaborative_dim", "-1"], "`collaborative_dim` is -1"),
        (["--min_pair_users", "0"], "`min_pair_users` is 0"),
        (["--num_heads", "0"], "`num_heads` is 0"),
        (
            ["--hidden_size", "36"],
            "`hidden_size` is 36; it must be an even multiple of `num_heads`",
        ),
        (["--num_codes", "3"], "`num_codes` ** `num_levels` is 27, too few for 600 items; raise"),
        (["--item_vector_dim", "257"], "`item_vector_dim` is 257; it must be at most 256, the"),
        (
            ["--per_device_train_batch_size", "0"],
            "`per_device_train_batch_size` is 0; it must be 1",
        ),
        (["--per_device_eval_batch_size", "-1"], "`per_device_eval_batch_size` is -1; it must be"),
        (["--gradient_accumulation_steps", "0"], "`gradient_accumulation_steps` is 0; it must be"),
        (["--learning_rate", "-1"], "`learning_rate` is -1.0; it must be 0 or more."),
        (["--seed", "-1"], "`seed` is -1; it must be 0 or more, below 4294967296."),
        (["--learning_rate", "nan"], "`learning_rate` is nan; it must be 0 or more."),
        (["--num_train_epochs", "-1"], "`num_train_epochs` is -1.0; it must be 0 or more."),
        (["--tasks", '{"query": -1}'], "`tasks` gives 'query' the weight -1; it must be a number"),
        (["--tasks", '{"query": "x"}'], "`tasks` gives 'query' the weight 'x'"),
        (["--model_name_or_path", "./nowhere"], "`model_name_or_path` ./nowhere is no folder"),
        (["--text_encoder", "backbone"], "`text_encoder` needs a pretrained language model, and `"),
        (["--use_peft", "true"], "`use_peft` needs a pretrained language model, and `model_name_"),
        (["--load_in_4bit", "true"], "`load_in_4bit` is True, which has no meaning here; leave"),
        (["--text_encoder", "./nowhere"], "`text_encoder` ./nowhere is no folder of a model"),
        (["--config"], "`--config` names no file"),
        (["--config="], "`--config` names no file"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--eval_strategy", "sometimes"], "sometimes"),
        (["--dataset_name", "./nowhere"], "`dataset_name` './nowhere' is no folder"),
        (["--tie_break", "random", "--dataset_name", "tests"], "`tie_break` is 'random'"),
    ],
)
def test_options_of_training(tmp_path, monkeypatch, capsys, arguments, message):
    arguments = [*arguments, "--output_dir", tmp_path / "out"]
    if arguments[0] == "--config" and len(arguments) == 3:
        arguments = arguments[1:] + ["--config"]
    assert message in asked(monkeypatch, capsys, sft, *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_beam: 7", "`--num_beam` is no option; did you mean `--num_beams`?"),
        ("- a", "must contain a YAML mapping"),
        ("a: [", "expected"),
        ("dataset_name: 2024", "`dataset_name` is 2024, which is no text; put it in quotes."),
        ("max_length: null", "`max_length` is None; it must be 1 or more"),
        ("num_codes: 32.5", "`num_codes` is 32.5, which is no whole number"),
        ("tasks: [query]", "`tasks` is ['query']; give a JSON object"),
        ("output_dir: 2024", "`output_dir` is 2024, which is no text; put it in quotes."),
        ("dataset_name: [a]", "`dataset_name` is ['a'], which is no text; give one."),
        ("exclude_seen: null", "`exclude_seen` is None; it must be true or false."),
        ("cache_dir: null", "`cache_dir` is None, which is no text; give one."),
        ("freeze_at: null", "`freeze_at` is None, which is no number; give one."),
        ("warmup_steps: null", "`warmup_steps` is None, which is no number; give one."),
        ("exclude-seen: true", "`--exclude-seen` is no option; did you mean `--exclude_seen`?"),
        ("seed: 1\nnum_codes: 9\nseed: 2", "options.yaml names `seed` more than once; keep one."),
        ("tasks: 3\ncolumn_map: '['", "`column_map` is '['; give a JSON object"),
    ],
)
def test_options_in_a_file(tmp_path, monkeypatch, capsys, text, message):
    (tmp_path / "options.yaml").write_text(text)
    assert message in asked(monkeypatch, capsys, sft, "--config", tmp_path / "options.yaml")


def test_a_file_of_options_is_read_whatever_stands_before_its_name(tmp_path, monkeypatch, capsys):
    file, other = tmp_path / "options.yaml", tmp_path / "other.yaml"
    file.write_text("seed: 7\nmetric_for_best_model: null\nload_best_model_at_end: false\n")
    for written in (["--config", str(file)], [f"--config={file}"]):
        monkeypatch.setattr(sys, "argv", ["script.py", *written])
        assert parse_arguments()[1].seed == 7
    message = asked(monkeypatch, capsys, sft, "--config", file, f"--config={other}")
    assert message == "`--config` is given more than once; name one file."
    file.write_bytes("seed: 1  # caf\xe9".encode("latin-1"))
    message = asked(monkeypatch, capsys, sft, "--config", file)
    assert message.startswith(f"{file} is not UTF-8")


def test_the_home_folder_is_meant_where_no_shell_has_put_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "o.yaml").write_text("dataset_name: ~/data\ncache_dir: ~/cache\noutput_dir: ~/o\n")
    message = asked(monkeypatch, capsys, sft, "--config", tmp_path / "o.yaml")
    assert message.startswith(f"{tmp_path}/data has no table of interactions")
    assert parse_arguments()[0].index.cache_dir == f"{tmp_path}/cache"
    message = asked(monkeypatch, capsys, recommend, "--model=~/data", "--output=~/lists")
    assert message.startswith(f"`--model` {tmp_path}/data has no config.json")


@pytest.mark.parametrize("script", [evaluate, recommend])
def test_a_model_that_is_none_is_called_by_its_option(tmp_path, monkeypatch, capsys, script):
    def ask(model, *more):
        given = ["--model", model, "--output", tmp_path / "out", *more]
        return asked(monkeypatch, capsys, script, *given)

    assert ask("./nowhere").startswith("`--model` ./nowhere is no folder")
    assert ask("nobody/nothing").startswith("`--model` nobody/nothing is no folder of a model, nor")
    assert "has no config.json" in ask(tmp_path)
    file = tmp_path / "config.json"
    file.write_text("{")
    assert ask(file).startswith(f"`--model` {file} is a file")
    assert ask(tmp_path).startswith(f"`--model` {tmp_path} ")
    file.write_text('{"model_type": "gpt2"}')
    assert "holds a 'gpt2' model, not `ttds`" in ask(tmp_path)
    assert "did you mean `--dataset_name`" in ask(tmp_path, "--data_name", "x")
    assert "invalid choice: 'random'" in ask(tmp_path, "--tie_break", "random")


def test_publishing(tmp_path, monkeypatch, capsys):
    message = asked(monkeypatch, capsys, publish, tmp_path, "--repo_id", "a/b", "--dry_run")
    assert message.startswith(f"{tmp_path} has no config.json")


def test_a_fault_of_ours_keeps_its_traceback():
    def fault():
        return int("no number")

    with pytest.raises(ValueError, match="invalid literal"), one_sentence():
        fault()
    with pytest.raises(KeyError), one_sentence():
        raise KeyError("a")
    with pytest.raises(ValueError, match="not ours"), one_sentence():
        raise ValueError("not ours")  # raised here, outside of recipes


def test_a_full_disk_is_no_fault_of_ours(tmp_path, capsys):
    room = "make room, then start it again."
    full = said(capsys, lambda: Path("/dev/full").write_text("x"))
    assert full == f"No space left on device; {room}"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        save = lambda: save_file({"x": torch.zeros(1000)}, tmp_path / "x.safetensors")  # noqa: E731
        assert said(capsys, save) == f"File too large; {room}"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_sentence_is_on_one_line(tmp_path, capsys):
    (tmp_path / "items.csv").write_text("item_id\na\n")
    (tmp_path / "interactions.csv").write_text('user_id,item_id,position\nu,"b\nb",0\n')
    assert said(capsys, lambda: read_data(str(tmp_path))).startswith(
        "interactions row 0: `item_id`"
    )
    assert refuse.__module__ == "recipes.data.cleaning"


@pytest.mark.parametrize("script", ["sft", "evaluate", "recommend"])
def test_the_sentence_comes_last_under_the_launcher(tmp_path, script):
    """The launcher prints a traceback of its own; what was wrong stands below it."""
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    arguments = ["--dataset_name", "./nowhere", "--learnin_rate", "1"]
    done = subprocess.run(
        [accelerate, "launch", "--cpu", f"recipes/{script}.py", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"`--learnin_rate` is no option|The following arguments are required", last)
    own = done.stderr.split("CalledProcessError")[0]
    assert f'{script}.py", line' not in own, "no traceback of ours"
