"""The parser of one command: its help begins with a sentence and examples, its errors name what may have been meant."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_stagegbo.text import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Parser", "chain_of", "command_line_of", "describe", "parsers_in", "refuse_unknown_options"]

COMMAND_LINE = "argv"
"""The argument with the words of a command that is run, as `exec` has it."""


class Parser(argparse.ArgumentParser):
    """As argparse's, with errors like all others of this package."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", _HelpFormatter)
        options.setdefault("allow_abbrev", False)  # else a script breaks when a longer option comes to be
        super().__init__(*args, **options)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the command line, and end with status 2."""
        if "_ARGCOMPLETE" in os.environ:  # a line that is still being written
            self.exit(2)
        from pytest_stagegbo.cli.console import print_error
        from pytest_stagegbo.errors import SettingsError

        print_error(SettingsError(message, remedy=f"`{self.prog} --help` shows how it is called"))
        self.exit(SettingsError.exit_code)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Called by argparse for each value, of commands too. Raises `ArgumentError` if it is none of the choices."""
        if action.choices is None or value in action.choices:
            return
        known = [str(each) for each in action.choices]
        near = did_you_mean([str(value)], known)
        raise argparse.ArgumentError(action, f"there is no {value!r}{near or ';'} choose from {', '.join(known)}")


class _HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs, and leaves lines that are indented, as examples are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.split("\n\n")
        fill = super()._fill_text
        return "\n\n".join(part if "\n  " in f"\n{part}" else fill(part, width, indent) for part in parts)


def describe(parser: argparse.ArgumentParser, sentence: str, examples: Sequence[str]) -> None:
    """Have the help of a command begin with what it does, if it has no description, and with examples."""
    text = parser.description or f"{sentence[:1].upper()}{sentence[1:]}."
    if examples:
        word = "example" if len(examples) == 1 else "examples"
        text += f"\n\n{word}:\n" + "\n".join(f"  {example}" for example in examples)
    parser.description = text


def parsers_in(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """The parsers of a parser's own commands: name, sentence and parser of each."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            sentences = {each.dest: each.help or "" for each in action._choices_actions}
            for name, found in action.choices.items():
                yield name, sentences.get(name, ""), found


def chain_of(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[argparse.ArgumentParser]:
    """The parser, that of the command which the words are about, and so on: of `lab up` there are three."""
    found, left = [parser], iter(words)
    while inner := {name: each for name, _, each in parsers_in(found[-1])}:
        word = next((word for word in left if word in inner), None)
        if word is None:
            break
        found.append(inner[word])
    return found


def command_line_of(parser: argparse.ArgumentParser) -> argparse.Action | None:
    """The argument with a command of the user's, which has options of its own; None: there is none."""
    return next((action for action in parser._actions if action.dest == COMMAND_LINE), None)


def refuse_unknown_options(chain: Sequence[argparse.ArgumentParser], words: Sequence[str]) -> None:
    """End with an error that names what may have been meant if a long option is none of these parsers'. argparse itself
    would complain about what is missing first."""
    known = {option for parser in chain for option in parser._option_string_actions}
    for word in words:
        option = word.partition("=")[0]
        if word == "--":
            return
        if word.startswith("--") and option not in known:
            near = did_you_mean([option], (each for each in known if each.startswith("--")))
            chain[-1].error(f"there is no option {option}{near}")
