"""Parsers that say the one thing that is wrong, with what was probably meant."""

import argparse
import difflib
import functools
import importlib
import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NoReturn

from ctl import VERSION
from ctl.command_table import COMMANDS, Command, overview
from ctl.global_options import FORMATS, GLOBAL_OPTIONS, Scope, add_after, add_before, combine

_ALIKE = 0.75
"""How alike two words must be, of 1, for one to be a slip for the other."""
_OTHERS_WORDS = {
    **dict.fromkeys(("get", "describe", "list", "status"), "show"),
    **dict.fromkeys(("delete", "uninstall", "remove"), "cleanup"),
    **dict.fromkeys(("start", "daemon", "serve"), "run"),
    **dict.fromkeys(("create", "install"), "apply"),
    **dict.fromkeys(("logs", "watch"), "monitor"),
}
"""What people call commands who know kubectl and other tools."""
_UNKNOWN = re.compile(r"unrecognized arguments: (.*)", re.DOTALL)
_CHOICE = re.compile(r"argument (?P<what>.+?): invalid choice: (?P<given>'.*?') \(choose from (?P<of>.*)\)", re.DOTALL)
_NO_VALUE = re.compile(r"argument (?P<what>.+?): invalid (?P<kind>\w+) value: (?P<given>'.*')", re.DOTALL)
_KINDS = {
    "int": "is no whole number",
    "float": "is no number",
    "numbers": "is no list of whole numbers, such as 1,1k,30k",
    "_pods": "is no whole number, nor one for each node, such as 2,0,1",
}
"""What is said of a value that a function of this name does not take."""
_ONE_OF = re.compile(r"one of the arguments (.*) is required", re.DOTALL)
_REQUIRED = re.compile(r"the following arguments are required: (.*)", re.DOTALL)


class VersionAction(argparse.Action):
    """`--version`, in kube-proxy's form."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"hotplane {VERSION}")
        parser.exit()


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help whose description is filled and whose examples stay as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(_EXAMPLES):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


_EXAMPLES = "examples:\n"


def examples_text(command: Command) -> str:
    """The examples of a command as the end of its page; empty if it has none."""
    shown = [f"  hotplane {line}\n      {what}" if what else f"  hotplane {line}" for line, what in command.examples]
    return _EXAMPLES + "\n".join(shown) if shown else ""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line each: what is wrong, what was probably meant, where help is."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": Formatter, **settings})
        self._words: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See argparse; remembers the words, to tell which one is wrong."""
        self._words = [str(word) for word in args or ()]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End with status 2 and one line on stderr."""
        words = self.prog.split()
        name = " ".join(word for word in words[1:] if not word.startswith(("-", "[")))
        page = f"hotplane {name} --help" if name else "hotplane --help"
        where = f"{name}: " if name else ""
        self.exit(2, f"hotplane: error: {where}{self._sentence(message)}; see {page}\n")

    def flags(self) -> list[str]:
        """The options that this parser takes, those that no page shows left out."""
        shown = [action for action in self._actions if action.help != argparse.SUPPRESS]
        return [flag for action in shown for flag in action.option_strings]

    def _sentence(self, message: str) -> str:
        if found := _UNKNOWN.fullmatch(message):
            return self._unknown(shlex.split(found[1]) if found[1].count("'") % 2 == 0 else found[1].split())
        if found := _CHOICE.fullmatch(message):
            choices = [choice.strip(" '") for choice in found["of"].split(",")]
            if option := self._unknown_before(found["what"], found["given"].strip("'")):
                return option
            return _wrong_choice(found["what"], found["given"].strip("'"), choices)
        if found := _NO_VALUE.fullmatch(message):
            return f"{found['what']}: {found['given']} {_KINDS.get(found['kind'], 'is not what it takes')}"
        if found := _REQUIRED.fullmatch(message):
            return f"{found[1]} is missing"
        if found := _ONE_OF.fullmatch(message):
            return f"{' or '.join(found[1].split())} is missing"
        return message.removeprefix("argument ")

    def _unknown_before(self, what: str, given: str) -> str:
        """What is wrong with an option that this parser does not have, if its value was taken for the command or the
        action; "" if there is none."""
        actions = [a for a in self._actions if isinstance(a, argparse._SubParsersAction) and a.metavar == what]
        before = self._words[: self._words.index(given)] if actions and given in self._words else []
        options = (word.partition("=")[0] for word in before if word.startswith("--"))
        option = next((option for option in options if option not in self.flags()), "")
        if not option:
            return ""
        if any(option in each.flags() for action in actions for each in action.choices.values()):
            return f"{option} stands behind the {what}"
        return self._unknown([option])

    def _unknown(self, words: Sequence[str]) -> str:
        word = words[0].partition("=")[0] if words else ""
        if not word.startswith("-"):
            return f"{word!r} is one word too many"
        if word in self.flags():  # an outer parser has seen it
            return f"{word} stands behind the command"
        if word in {option.flag for option in GLOBAL_OPTIONS}:
            return f"{word} means nothing to this command"
        return f"there is no option {word}{_meant(word, self.flags())}"


def _meant(word: str, known: Iterable[str]) -> str:
    """A question whether another word was meant, empty if none is near."""
    near = difflib.get_close_matches(word, [*known], n=1, cutoff=_ALIKE)
    return f"; did you mean {near[0]}?" if near else ""


def _wrong_choice(what: str, given: str, choices: Sequence[str]) -> str:
    near = _meant(given, choices)
    if what == "COMMAND":
        if given in _OTHERS_WORDS:
            near = f"; did you mean {_OTHERS_WORDS[given]}?"
        return f"there is no command {given!r}{near}"
    return f"{what}: there is no {given!r}{near or '; choose of ' + ', '.join(choices)}"


class CommandParser(Parser):
    """The parser of a command or of an action of one: an option of its own wins over a global option of that name.

    entry: the command, whose examples end the page; None for the parsers of actions. scopes: the global options that
    it takes; the entry's if there is one.
    """

    def __init__(self, *, entry: Command | None = None, scopes: Collection[Scope] = (), **settings: Any) -> None:
        super().__init__(**{"conflict_handler": "resolve", **settings})
        self.add_argument("--version", action=VersionAction, nargs=0, help=argparse.SUPPRESS)
        self.scopes = scopes if entry is None else entry.scopes
        if entry is not None:
            self.epilog = examples_text(entry)
        add_after(self, self.scopes)

    def add_subparsers(self, **settings: Any) -> Any:
        """Add actions, whose parsers take the same global options."""
        settings.setdefault("parser_class", functools.partial(CommandParser, scopes=self.scopes))
        return super().add_subparsers(**settings)


def command_in(argv: Sequence[str]) -> str | None:
    """The command's name: the first argument that is neither a global option nor its value."""
    flags = {option.flag for option in GLOBAL_OPTIONS} | {"-o", "--output"}
    arguments = iter(argv)
    for argument in arguments:
        if argument in flags:
            next(arguments, None)
        elif not argument.startswith("-"):
            return argument
    return None


class _Subparsers:
    """What a command's `register` adds its parser to; gives the parser the command's entry."""

    def __init__(self, action: Any) -> None:
        self._action = action

    def add_parser(self, name: str, **settings: Any) -> argparse.ArgumentParser:
        """Add the parser of a command."""
        added: argparse.ArgumentParser = self._action.add_parser(name, entry=COMMANDS[name], **settings)
        return added


def build_parser(commands: Collection[str]) -> Parser:
    """The whole parser with only some commands fully registered; the others are just names with a line of help."""
    parser = Parser(
        prog="hotplane",
        usage="hotplane [global options] COMMAND [options]",
        description="A Service data plane for Kubernetes nodes. Exit status: 0 done, 1 failed, 2 wrong usage.",
    )
    parser.add_argument("--version", action=VersionAction, nargs=0, help="show the version and end")
    parser.add_argument(
        "-o", "--output", dest="output_before", choices=FORMATS, metavar="FORMAT", help="as after the command"
    )
    add_before(parser)
    subparsers = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True, parser_class=CommandParser, prog="hotplane"
    )
    for name, entry in COMMANDS.items():
        if name in commands:
            importlib.import_module(entry.module).register(_Subparsers(subparsers))
        else:
            subparsers.add_parser(name, help=entry.help)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. Raises SystemExit: 2 with a message on stderr for wrong usage, 0 after --help."""
    name = command_in(argv)
    if not argv:
        print(overview())
        raise SystemExit(0)
    parser = build_parser([name] if name else ())
    args: argparse.Namespace
    args, rest = parser.parse_known_args(argv)
    chosen = _chosen(parser, args)
    if rest:
        chosen.error(f"unrecognized arguments: {shlex.join(rest)}")
    combine(args)
    _take_output(chosen, args)
    return args


def _chosen(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.ArgumentParser:
    """The parser of the command that was given, or of its action."""
    for action in parser._actions:
        name = getattr(args, action.dest, None)
        if isinstance(action, argparse._SubParsersAction) and name in action.choices:
            return _chosen(action.choices[name], args)
    return parser


def _take_output(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Give the output format before the command to a command that has one; what stands after the command wins."""
    before = vars(args).pop("output_before")
    if before is None:
        return
    mine = next((action for action in parser._actions if action.dest == "output"), None)
    if mine is None:
        parser.error("-o means nothing to this command")
    if mine.choices is not None and before not in mine.choices:
        parser.error(f"-o: there is no {before!r}; choose of {', '.join(map(str, mine.choices))}")
    if args.output == "table":
        args.output = before
