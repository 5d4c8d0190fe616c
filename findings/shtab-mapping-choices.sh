#!/usr/bin/env bash
# shtab 1.13.0 takes each positional argument whose `choices` are a dict for a set of sub-commands: making a completion
# script for bash, zsh or fish ends with AttributeError: '_StoreAction' object has no attribute '_get_subactions'.
# argparse itself asks of choices only that they are a container, and such a parser reads command lines and prints its
# help. The same names as a tuple work. shtab 1.7.2 does the same.
#
# Seen with shtab 1.13.0 (the newest release when this was written) and 1.7.2, python3 3.11.2 of Debian 12.
#
# Output seen:
#   argparse reads: services
#   1.13.0 tuple bash: script
#   1.13.0 dict bash: AttributeError
#   1.13.0 dict zsh: AttributeError
#   1.13.0 dict fish: AttributeError
#   1.7.2 dict bash: AttributeError
#   1.7.2 dict zsh: AttributeError
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
python3 -m venv "$folder/venv"
for version in 1.13.0 1.7.2; do
    "$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check --no-deps --target "$folder/$version" "shtab==$version"
done
cat >"$folder/tried.py" <<'PYTHON'
import argparse
import sys

import shtab

VIEWS = {"services": "frontends", "endpoints": "who answers"}


def parser(choices):
    made = argparse.ArgumentParser(prog="tool")
    made.add_argument("view", choices=choices)
    return made


version, *wanted = sys.argv[1:]
for word in wanted:
    kind, shell = word.split(":")
    try:
        shtab.complete(parser(VIEWS if kind == "dict" else tuple(VIEWS)), shell)
        print(f"{version} {kind} {shell}: script")
    except AttributeError as error:
        print(f"{version} {kind} {shell}: {type(error).__name__}")
PYTHON
seen=$(
    "$folder/venv/bin/python" - <<'PYTHON'
import argparse

parser = argparse.ArgumentParser(prog="tool")
parser.add_argument("view", choices={"services": "frontends"})
print("argparse reads:", parser.parse_args(["services"]).view)
PYTHON
    PYTHONPATH=$folder/1.13.0 "$folder/venv/bin/python" "$folder/tried.py" 1.13.0 tuple:bash dict:bash dict:zsh dict:fish
    PYTHONPATH=$folder/1.7.2 "$folder/venv/bin/python" "$folder/tried.py" 1.7.2 dict:bash dict:zsh
)
printf '%s\n' "$seen"
[[ $seen == "argparse reads: services
1.13.0 tuple bash: script
1.13.0 dict bash: AttributeError
1.13.0 dict zsh: AttributeError
1.13.0 dict fish: AttributeError
1.7.2 dict bash: AttributeError
1.7.2 dict zsh: AttributeError" ]]
