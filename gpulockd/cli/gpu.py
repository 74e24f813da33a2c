"""`gpulockd gpu drain|resume`: take a GPU out of the pool for a while, and put it back."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gpulockd.cli import http
from gpulockd.cli.options import Parser
from gpulockd.cli.records import name_of, no_such_gpu
from gpulockd.cli.talk import OK

DOES = {
    "drain": "GPU {} is drained: nobody begins on it; who holds it keeps it to the end",
    "resume": "GPU {} is back in the pool (it was {})",
}


def main(words: Sequence[str]) -> int:
    """Drain or resume one GPU; exit code 1 if there is none."""
    parser = Parser("gpu", "Take a GPU out of the pool for a while (drain), or put it back (resume).")
    parser.add_argument("what", metavar="drain|resume", choices=tuple(DOES))
    parser.add_argument("gpu", metavar="GPU", help="its index, key or UUID")
    parser.json_flag()
    args = parser.parse_args(words)
    with http.find() as daemon:
        try:
            said = daemon.ask("POST", f"/api/v1/gpus/{http.segment(args.gpu)}/{args.what}")
        except http.Refused as refused:
            if refused.status == 404:
                raise no_such_gpu(args.gpu) from refused
            raise
    if args.json:
        print(json.dumps(said, indent=2))
    elif args.what == "resume" and said.get("was") == "ready":
        print(f"GPU {name_of(said['key'])} is in the pool, as before")
    else:
        print(DOES[args.what].format(name_of(said["key"]), said.get("was")))
    return OK
