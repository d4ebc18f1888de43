"""How a script ends that was asked for what cannot be: in one sentence, with exit status 2."""

import argparse
import difflib
import errno
import json
import linecache
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from safetensors import SafetensorError

ROOT = Path(__file__).resolve().parents[1]
OURS = tuple(str(ROOT / folder) + os.sep for folder in ("recipes", "modeling_ttds"))
MAKE_ROOM, MAY_NOT = "make room, then start it again", "change its rights, or name another place"
REMEDIES = {  # of what a disk refuses
    errno.ENOSPC: MAKE_ROOM, errno.EDQUOT: MAKE_ROOM, errno.EFBIG: MAKE_ROOM,
    errno.EACCES: MAY_NOT, errno.EPERM: MAY_NOT, errno.EROFS: MAY_NOT,
}  # fmt: skip
# Waits for the launcher to end, which prints a traceback of its own, then says why the run ended.
SPEAK_LAST = """
import pathlib, sys, time
launcher, text = pathlib.Path("/proc", sys.argv[1], "stat"), sys.argv[2]
for _ in range(200):
    try:
        if launcher.read_text().rpartition(")")[2].split()[0] == "Z":
            break
    except OSError:
        break
    time.sleep(0.05)
print(text, file=sys.stderr)
"""


class HelpFormatter(argparse.HelpFormatter):
    """Help in 100 columns, a line per option, each with its default in brackets."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=100)

    def _get_help_string(self, action):
        text, default = action.help or "", action.default
        if action.required and action.option_strings:
            return f"{text} [required]"
        if default is None or default is argparse.SUPPRESS or not action.option_strings:
            return text
        shown = (
            str(default) if isinstance(default, str | Path) else json.dumps(default, default=str)
        )
        return f"{text} [{shown.replace('%', '%%')}]"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are raised in one sentence, and that knows the nearest option.

    Its help shows every option with its default.

    Raises:
        ValueError: An option or its value is wrong; the message says which.
    """

    def __init__(self, *args, **kwargs):
        kwargs = {"formatter_class": HelpFormatter} | kwargs
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:  # noqa: D102
        raise ValueError(message[:1].upper() + message[1:].rstrip(".") + ".")

    def parse_args(self, args=None, namespace=None):  # noqa: D102
        found, unknown = self.parse_known_args(args, namespace)
        refuse_unknown(self, unknown)
        expand_home(found)
        return found


def expand_home(options: object) -> None:
    """Let options that begin with `~` begin with the home folder; no shell does it behind a `=`.

    Args:
        options: A group of options, or a namespace of them; changed in place.
    """
    for name, value in list(vars(options).items()):
        if isinstance(value, str | Path) and str(value).startswith("~"):
            setattr(options, name, type(value)(os.path.expanduser(value)))


def refuse_unknown(parser: argparse.ArgumentParser, unknown: Iterable[str]) -> None:
    """Refuse what a parser did not know.

    Args:
        parser: Knows the options.
        unknown: What it left over.

    Raises:
        ValueError: There is something; the message names the nearest option.
    """
    for word in unknown:
        option = word.split("=")[0]
        # One of its name is known on the command line, where it may be written with hyphens.
        known = {name for action in parser._actions for name in action.option_strings} - {option}
        nearest = difflib.get_close_matches(option, known, 1)
        if not option.startswith("--"):
            raise ValueError(f"{word!r} belongs to no option; write --NAME VALUE.")
        raise ValueError(
            f"`{option}` is no option"
            + (f"; did you mean `{nearest[0]}`?" if nearest else "; --help lists them.")
        )


@contextmanager
def named_model(option: str, name: str) -> Iterator[None]:
    """Say which option named a model that cannot be loaded.

    Args:
        option: Name of the option.
        name: What it names.

    Raises:
        FileNotFoundError: Nothing of that name can be loaded, or it is not whole.
    """
    try:
        yield
    except (KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"`{option}` {name} is not whole ({type(error).__name__}: {reason}); copy or save it "
            "again."
        ) from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"`{option}` {name} is no folder of a model, nor a model on the Hub ({reason})."
        ) from None


def check_writable(option: str, folder: Path) -> None:
    """Refuse a folder that cannot be made, or not be written to, before anything long has run.

    Args:
        option: Name of the option.
        folder: The folder, which need not be there.

    Raises:
        ValueError: It cannot be written to; the message says what is in the way.
    """
    place = folder
    while not (place.exists() or place.is_symlink()):
        place = place.parent
    reason = None
    if not place.is_dir():
        reason = f"{place} is " + ("a file" if place.exists() else "a link to nothing")
    elif not os.access(place, os.W_OK | os.X_OK):
        reason = f"{place} may not be written to"
    if reason is not None:
        raise ValueError(f"`{option}` needs the folder {folder}, but {reason}; name another.")


@contextmanager
def one_sentence() -> Iterator[None]:
    """End the process with what was wrong in one sentence, as the last word, and exit status 2.

    That holds for what our own code refuses, and for what the disk does: that it is full, or may
    not be read or written. Anything else is a fault and keeps its traceback.
    """
    try:
        yield
        return
    except SystemExit as error:
        if not isinstance(error.code, str):
            raise
        text = error.code
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        said = error
        while said is not None and not _refused_by_us(said.__traceback__):
            said = said.__cause__
        text = _of_the_disk(error) if said is None else str(said)
        if text is None:
            raise
    _say_last(" ".join(text.split()))
    raise SystemExit(2)


def _refused_by_us(traceback: TracebackType | None) -> bool:
    """Return whether an exception was raised by a `raise` of ours, not from within a library."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return False
    file = traceback.tb_frame.f_code.co_filename
    line = linecache.getline(file, traceback.tb_lineno).strip()
    return str(Path(file).resolve()).startswith(OURS) and line.startswith("raise ")


def _of_the_disk(error: BaseException) -> str | None:
    """Return what a disk refused, or None where something else is wrong."""
    code = getattr(error, "errno", None)
    place = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if isinstance(error, SafetensorError):  # which has it in its words
        code = int((re.findall(r"os error (\d+)", str(error)) or [0])[0])
    if code not in REMEDIES:
        return None
    return f"{os.strerror(code)}{f' ({place})' if place else ''}; {REMEDIES[code]}."


def _say_last(text: str) -> None:
    """Print to stderr; under `accelerate launch`, after the launcher has printed its traceback."""
    sys.stdout.flush()
    if "ACCELERATE_MIXED_PRECISION" in os.environ and Path("/proc/self/stat").exists():
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            command = [sys.executable, "-c", SPEAK_LAST, str(os.getppid()), text]
            subprocess.Popen(command, start_new_session=True)
    else:
        print(text, file=sys.stderr)
