"""The command line: a table of commands. The list, `--version` and every wrong name answer without importing torch."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from tastemaker import __version__

# name -> ("module", what it does); the module has `main(argv) -> exit code`
COMMANDS = {
    "train": ("tastemaker.commands.train", "fine-tune a model on a reward"),
    "sample": ("tastemaker.commands.sample", "draw pictures with a model or a run"),
    "evaluate": ("tastemaker.commands.evaluate", "compare a run with its base model on fixed prompts and noise"),
    "mix": ("tastemaker.commands.mix", "a weighted sum of LoRAs as one LoRA file"),
    "export": ("tastemaker.commands.export", "a LoRA as a file that ComfyUI and other programs read"),
    "report": (
        "tastemaker.commands.report",
        "a page to look at: pictures, curves and numbers of one run or of several",
    ),
    "live": ("tastemaker.commands.live", "the same in the browser while training goes on"),
    "vote": ("tastemaker.commands.vote", "say which of two pictures is better, in the browser"),
    "push": ("tastemaker.commands.push", "put a finished run on the Hugging Face hub, with a model card"),
    "train-reward": ("tastemaker.commands.train_reward", "a reward from people's ratings or choices"),
    "serve-reward": ("tastemaker.commands.serve_reward", "a reward for other processes and machines"),
    "sweep": ("tastemaker.commands.sweep", "a recipe over values of a setting and over seeds, side by side"),
    "explain": ("tastemaker.commands.explain", "what an algorithm, recipe, reward or setting is, with defaults"),
    "doctor": ("tastemaker.commands.doctor", "versions, devices, what is missing; and checks on a model"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 2 after a user's error (one message, no traceback), or the command's own."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except ValueError as error:
        if sys.flags.dev_mode:  # python -X dev -m tastemaker ...: where it was raised
            raise
        print(f"tastemaker: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has read enough; Python would complain once more when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that lost its permission
        if sys.flags.dev_mode:
            raise
        print(f"tastemaker: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tastemaker: interrupted", file=sys.stderr)
        return 130


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if words[0] in ("-V", "--version"):
        print(f"tastemaker {__version__}")
        return 0
    command, *rest = words
    if command not in COMMANDS:
        raise ValueError(f"{command!r} is not a command.{_guess(command)}\n\n{usage()}".rstrip())
    code: int = import_module(COMMANDS[command][0]).main(rest)
    return code


def _guess(command: str) -> str:
    """A near command; or the full line for somebody who begins with the name of an algorithm or recipe."""
    from difflib import get_close_matches

    from tastemaker import config

    near = get_close_matches(command, COMMANDS, n=1)
    if command in config.algorithms() or command in config.recipes():
        near = [f"tastemaker train {command}"]
    return f"  Did you mean `{near[0]}`?" if near else ""


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:<14}{sentence}" for name, (_, sentence) in COMMANDS.items()]
    return (
        "tastemaker COMMAND ...: fine-tune text-to-image models on any reward\n\n"
        + "\n".join(lines)
        + "\n\n  tastemaker train NAME --help   all settings of an algorithm or recipe\n"
        + "  tastemaker explain             all names\n"
    )
