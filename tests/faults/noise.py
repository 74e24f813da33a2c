"""Noise: what is nearly right, from a seed that is printed, so that a failure can be had again.

Pure nonsense is refused at the first byte; what was once right and is damaged in one place goes deep.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator, Sequence

SOAK = os.environ.get("GPULOCKD_SOAK") == "1"

ODD = (
    *(b"\x00", b"\n", b"\r\n", b"\x1b[2J", b"\xff\xfe", b"\xc0\x80", b"\xe2\x80\xae", b" ", b"'", b'"', b"{", b"}"),
    *(b"-1", b"NaN", b"1e309", b"-0.0", b"9" * 40, b"null", b"true", b"[]", b"[" * 300, b"%s%n", b"../../etc/passwd"),
    *(b"!!python/object/apply:os.system", b"&a [*a]", b"x" * 5000),
)


def seed_of(name: str) -> int:
    """The seed of this run, printed with how to repeat it.

    Every run takes the same one, so that what passed here passes elsewhere; FUZZ_SEED names another, and in a soak
    (GPULOCKD_SOAK=1) each run has its own.
    """
    own = random.SystemRandom().randrange(1, 2**31) if SOAK else zlib.crc32(name.encode()) or 1
    seed = int(os.environ.get("FUZZ_SEED", "0")) or own
    print(f"REPRO: FUZZ_SEED={seed} {name}")
    return seed


def damaged(chance: random.Random, whole: bytes) -> bytes:
    """The bytes with one to four damages: a cut, a flip, a doubled part, something odd in a place."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(whole))
        to = min(len(whole), at + chance.randint(0, 12))
        how = chance.randrange(6)
        if how == 0:
            whole = whole[:at]
        elif how == 1:
            whole = whole[:at] + bytes([chance.randrange(256)]) + whole[at + 1 :]
        elif how == 2:
            whole = whole[:to] + whole[at:]
        elif how == 3:
            whole = whole[:at] + whole[to:]
        else:
            whole = whole[:at] + chance.choice(ODD) + whole[to:]
    return whole


def noise(name: str, examples: Sequence[bytes], count: int = 2000) -> Iterator[bytes]:
    """`count` damaged examples."""
    chance = random.Random(seed_of(name))
    for _ in range(count):
        yield damaged(chance, chance.choice(examples))
