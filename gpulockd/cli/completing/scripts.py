"""The completion files of bash, zsh and fish, as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gpulockd.cli.completing.words import Command, Option

MADE = "# Made of the commands' own parsers by 'python -m gpulockd.cli.completing.write'; not written by hand."

_BASH = """\
# bash completion of gpulockd: source it, or put it into /usr/share/bash-completion/completions/gpulockd
{made}
_gpulockd() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} words='' i at=1 command=''
    COMPREPLY=()
    for (( i = 1; i < COMP_CWORD; i++ )); do
        if [[ ${{COMP_WORDS[i]}} == -- ]]; then
            # What follows is a command of the user's own.
            if (( i + 1 == COMP_CWORD )); then
                COMPREPLY=( $(compgen -c -- "$cur") )
            else
                compopt -o default 2>/dev/null
            fi
            return
        fi
    done
    [[ ${{COMP_WORDS[1]}} == --debug ]] && at=2
    if (( COMP_CWORD > at )); then
        command=${{COMP_WORDS[at]}}
        case "$command ${{COMP_WORDS[at+1]}}" in
{pairs}
        esac
        [[ $command == *' '* ]] && (( COMP_CWORD == at + 1 )) && command=${{COMP_WORDS[at]}}
    fi
    case "$command:$prev" in
{values}
    esac
    case $command in
{words}
    esac
    COMPREPLY=( $(compgen -W "$words" -- "$cur") )
}}
complete -F _gpulockd gpulockd
"""


def bash(commands: Sequence[Command]) -> str:
    """The file of bash; it needs no other package."""
    pairs = [
        f"            {_quoted(' '.join(c.words))}) command={_quoted(' '.join(c.words))} ;;" for c in _inner(commands)
    ]
    values = [line for command in commands for line in _bash_values(command)]
    tops = " ".join(command.words[0] for command in commands if len(command.words) == 1)
    words = [f"        '') words={_quoted(tops + ' --help --version --debug')} ;;"]
    for command in commands:
        said = " ".join([*_words(command.inner), *_names(command.options)])
        more = " compopt -o default 2>/dev/null;" if command.takes_file else ""
        if command.choices:  # one of them; what follows only the user knows
            choices = _quoted(f" {' '.join(command.choices)} ")
            more += f' [[ {choices} == *" $prev "* ]] || words+={choices};'
        words.append(f"        {_quoted(' '.join(command.words))}) words={_quoted(said)};{more} ;;")
    return _BASH.format(made=MADE, pairs="\n".join(pairs), values="\n".join(values), words="\n".join(words))


def _bash_values(command: Command) -> Iterable[str]:
    """What follows an option: choices, a file, or something that cannot be known."""
    name = " ".join(command.words)
    for option in command.options:
        if option.value is None and not option.choices:
            continue
        where = "|".join(f"'{name}:{one}'" for one in option.names)
        if option.choices:
            then = f'COMPREPLY=( $(compgen -W {_quoted(" ".join(option.choices))} -- "$cur") )'
        else:
            then = "compopt -o default 2>/dev/null" if option.is_file else ":"
        yield f"        {where}) {then}; return ;;"


_ZSH = """\
#compdef gpulockd
# zsh completion of gpulockd: put it as _gpulockd into a folder of $fpath, or source it after compinit
{made}
_gpulockd() {{
    local curcontext=$curcontext state line
    typeset -A opt_args
    _arguments -C '--debug[show the trace of an unexpected error]' '1: :->command' '*:: :->rest'
    case $state in
    command)
        local -a commands=(
{commands}
        )
        _describe command commands
        ;;
    rest)
        case $words[1] in
{cases}
        esac
        ;;
    esac
}}
if [[ $funcstack[1] == _gpulockd ]]; then _gpulockd "$@"; else compdef _gpulockd gpulockd; fi
"""


def zsh(commands: Sequence[Command]) -> str:
    """The file of zsh."""
    tops = [command for command in commands if len(command.words) == 1]
    lines = [f"            {_quoted(f'{_zsh_text(c.words[0])}:{c.does}')}" for c in tops]
    cases = []
    for command in tops:
        inner = [one for one in commands if len(one.words) == 2 and one.words[0] == command.words[0]]
        cases.append(f"        {command.words[0]})\n{_zsh_case(command, inner)}\n            ;;")
    return _ZSH.format(made=MADE, commands="\n".join(lines), cases="\n".join(cases))


def _zsh_case(command: Command, inner: Sequence[Command]) -> str:
    if not inner:
        return f"            _arguments {' '.join(_zsh_arguments(command))}"
    own = " ".join([*map(_zsh_option, command.options), "'1: :->verb'", "'*:: :->rest'"])
    verbs = " ".join(_quoted(f"{word}:{does}") for word, does in command.inner)
    lines = [f"            _arguments -C {own}", "            case $state in", "            verb)"]
    lines += [
        f"                local -a verbs=({verbs})",
        "                _describe command verbs",
        "                ;;",
    ]
    lines += ["            rest)", "                case $words[1] in"]
    lines += [f"                {one.words[1]}) _arguments {' '.join(_zsh_arguments(one))} ;;" for one in inner]
    return "\n".join([*lines, "                esac", "                ;;", "            esac"])


def _zsh_arguments(command: Command) -> list[str]:
    made = [_zsh_option(option) for option in command.options]
    if command.takes_command:
        return [*made, "'*::command:_normal'"]
    if command.choices:
        return [*made, _quoted(f"1: :({' '.join(command.choices)})")]
    return [*made, "'*:file:_files'" if command.takes_file else "'*: :'"]


def _zsh_option(option: Option) -> str:
    text = _zsh_text(option.does)
    value = ""
    if option.choices:
        value = f":{_zsh_text(option.value or '')}:({' '.join(option.choices)})"
    elif option.value is not None:
        value = f":{_zsh_text(option.value)}:{'_files' if option.is_file else ''}"
    return " ".join(_quoted(f"{name}[{text}]{value}") for name in option.names)


def fish(commands: Sequence[Command]) -> str:
    """The file of fish."""
    tops = [command for command in commands if len(command.words) == 1]
    lines = ["# fish completion of gpulockd: put it as gpulockd.fish into ~/.config/fish/completions", MADE]
    lines.append("complete -c gpulockd -f")
    lines += [f"complete -c gpulockd -n __fish_use_subcommand -a {c.words[0]} -d {_fish(c.does)}" for c in tops]
    for command in commands:
        lines += _fish_lines(command)
    return "\n".join(lines) + "\n"


def _fish_lines(command: Command) -> Iterable[str]:
    seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in command.words)
    inner = _words(command.inner)
    if inner:
        first = f"{seen}; and not __fish_seen_subcommand_from {' '.join(inner)}"
        yield from (f"complete -c gpulockd -n '{first}' -a {word} -d {_fish(does)}" for word, does in command.inner)
    if command.choices:
        yield f"complete -c gpulockd -n '{seen}' -a {_fish(' '.join(command.choices))}"
    if command.takes_file:
        yield f"complete -c gpulockd -n '{seen}' -F"
    if command.takes_command:
        yield f"complete -c gpulockd -n '{seen}' -a '(__fish_complete_subcommand --fcs-skip=2)'"
    for option in command.options:
        names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
        value = "" if option.value is None else " -r -F" if option.is_file else " -x"
        chosen = f" -a {_fish(' '.join(option.choices))}" if option.choices else ""
        yield f"complete -c gpulockd -n '{seen}' {names}{value}{chosen} -d {_fish(option.does)}"


def _inner(commands: Sequence[Command]) -> list[Command]:
    return [command for command in commands if len(command.words) == 2]


def _words(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [word for word, _ in pairs]


def _names(options: Iterable[Option]) -> list[str]:
    return [name for option in options for name in option.names]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _zsh_text(text: str) -> str:
    for special in ("\\", "[", "]", ":"):
        text = text.replace(special, "\\" + special)
    return text


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: dict[str, tuple[str, Callable[[Sequence[Command]], str]]] = {
    "bash": ("gpulockd.bash", bash),
    "zsh": ("_gpulockd", zsh),
    "fish": ("gpulockd.fish", fish),
}
"""Every shell: the name of its file, and what makes that."""
