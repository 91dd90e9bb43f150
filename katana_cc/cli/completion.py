"""`katana completion`: what a shell needs to complete commands and options, made from the parsers themselves."""

from __future__ import annotations

import argparse
import importlib
from typing import Final

from katana_cc.errors import ExitStatus

_BASH: Final = """# bash completion of katana: eval "$(katana completion bash)"
_katana() {{
	local word=${{COMP_WORDS[COMP_CWORD]}} options
	if [ "$COMP_CWORD" -eq 1 ]; then
		mapfile -t COMPREPLY < <(compgen -W '{commands}' -- "$word")
		return
	fi
	case ${{COMP_WORDS[1]}} in
{cases}
	esac
	case $word in
	-*) mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word") ;;
	*) mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
	esac
}}
complete -o filenames -F _katana katana
"""
_ZSH: Final = "autoload -U +X bashcompinit && bashcompinit\n"
_FISH: Final = "complete -c katana -f -n __fish_use_subcommand -a {command} -d '{text}'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shell."""
    parser.description = 'Print what completes katana in a shell: eval "$(katana completion bash)" in its start file.'
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Print the script."""
    from katana_cc.cli.main import COMMANDS

    options = {command: options_of(command) for command in COMMANDS}
    if arguments.shell == "fish":
        for command, text in COMMANDS.items():
            print(_FISH.format(command=command, text=text.replace("'", "")))
            for option in options[command]:
                kind = f"-l {option[2:]}" if option.startswith("--") else f"-o {option[1:]}"
                print(f"complete -c katana -n '__fish_seen_subcommand_from {command}' {kind}")
        return ExitStatus.DONE
    cases = "\n".join(f"\t{command}) options='{' '.join(its)}' ;;" for command, its in options.items())
    script = _BASH.format(commands=" ".join(COMMANDS), cases=cases)
    print((_ZSH if arguments.shell == "zsh" else "") + script.replace('bash)"', f'{arguments.shell})"', 1), end="")
    return ExitStatus.DONE


def options_of(command: str) -> list[str]:
    """All options of one command, as its parser has them."""
    parser = argparse.ArgumentParser(prog=command)
    importlib.import_module(f"katana_cc.cli.{command}").add_arguments(parser)
    return sorted(option for action in parser._actions for option in action.option_strings)
