"""`gpulockd config set|unset`: change values while everything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpulockd.cli import http
from gpulockd.cli.configuring.telling import Record, ask_slowly, change_lines, diff_lines, printed, value_text
from gpulockd.cli.options import Parser, revision
from gpulockd.cli.talk import OK, USAGE, CommandError, say


def set(words: Sequence[str]) -> int:  # the command's own name
    """Set values: `K=V …`, or `K V`."""
    parser = Parser("config set", "Change values now: new requests use them at once, running ones keep theirs.")
    parser.add_argument("values", nargs="+", metavar="SETTING=VALUE", help="or one SETTING VALUE")
    add_flags(parser)
    args = parser.parse_args(words)
    return send(args, _change(_assigned(args.values)), json=args.json)


def _change(said: dict[str, str]) -> Record:
    """What is said by SETTING=VALUE: texts, and blocks and lists as a file would have them."""
    change: Record = {"assign": {}, "set": {}}
    for name, text in said.items():
        block = _block(name, text) if text[:1] in ("{", "[") else None
        if block is None:
            change["assign"][name] = text
        else:
            change["set"][name] = block
    return {part: values for part, values in change.items() if values}


def _block(name: str, text: str) -> Any:
    """A block or a list as plain values; None if nothing is installed that reads it.

    :raises CommandError: if it is not YAML
    """
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError
    except ImportError:
        return None
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        what = f"config set: {name}: the value is not YAML"
        raise CommandError(what, "such as: {max_wait_time: 2h}", USAGE) from None


def unset(words: Sequence[str]) -> int:
    """Take values back to what file and environment say."""
    parser = Parser("config unset", "Take live values back: what file and environment say is in force again.")
    parser.add_argument("settings", nargs="+", metavar="SETTING", help="a setting or a block that is set live")
    add_flags(parser)
    args = parser.parse_args(words)
    return send(args, {"unset": args.settings}, json=args.json)


def add_flags(parser: Parser) -> None:
    """Add what every change takes."""
    parser.add_argument("--pool", metavar="NAME", help="only for this pool; default: the whole fleet")
    parser.add_argument("--reason", metavar="TEXT", default="", help="why, for history and audit")
    parser.add_argument("--expect", metavar="N", type=revision, help="only if revision N is still in force")
    parser.add_argument("--dry-run", action="store_true", help="say what would change, and what it would have done")
    parser.add_argument("--unvalidated", action="store_true", help="also where config.require_validation is on")
    parser.json_flag()


def send(args: object, change: Record, *, json: bool) -> int:
    """Send a change with the flags of `add_flags`, and print what it did."""
    flags = vars(args)
    body = change | {
        "scope": flags["pool"] or "all",
        "reason": flags["reason"],
        "expect": change.get("expect") if flags["expect"] is None else flags["expect"],
        "dry_run": flags["dry_run"],
        "unvalidated": flags["unvalidated"],
        "origin": "cli",
    }
    with http.find() as daemon:
        said = ask_slowly(daemon, "POST", "/api/v1/config", body)
    if json:
        printed(said)
    else:
        tell(said)
    return OK


def tell(said: Record) -> None:
    """Print what a change did, or would do."""
    if not said["diff"]:
        print(said["message"])
    elif said["dry_run"]:
        print("--- now\n+++ proposed")
        print("\n".join(diff_lines(said["diff"])))
        _tell_replay(said.get("replay"))
    else:
        number = (said.get("revision") or {}).get("number")
        print("\n".join([f"revision {number}", *(f"  {line}" for line in change_lines(said["diff"]))]))
    if said["waits_for_restart"]:
        say(f"waits for a restart of the daemon: {', '.join(said['waits_for_restart'])}")


def _tell_replay(replay: object) -> None:
    """Print what the change would have done to what was recorded."""
    if isinstance(replay, dict) and "text" in replay:
        replay = [replay["text"], *(f"note: {note}" for note in replay.get("notes") or ())]
    if isinstance(replay, dict):
        print("\n".join(f"{name}: {value_text(value)}" for name, value in replay.items()))
    elif isinstance(replay, list):
        print("\n".join(str(line) for line in replay))
    elif replay:
        print(replay)


def _assigned(values: Sequence[str]) -> dict[str, str]:
    if len(values) == 2 and "=" not in values[0]:
        values = ["=".join(values)]
    found: dict[str, str] = {}
    for text in values:
        name, is_set, value = text.partition("=")
        if not is_set or not name.strip():
            raise CommandError(
                f"config set: {text!r} is no SETTING=VALUE", "such as: gpu_lock.poll_interval=500ms", USAGE
            )
        name, value = name.strip(), value.strip()
        if not value:
            cure = f"'gpulockd config unset {name}' takes it back to what file and environment say"
            raise CommandError(f"config set: {name} has no value", cure, USAGE)
        if found.setdefault(name, value) != value:
            raise CommandError(f"config set: {name} is said twice, and differently", "say it once", USAGE)
    return found
