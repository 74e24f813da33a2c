"""Which one call gives a task what it holds and what it asks for besides."""

from __future__ import annotations

import pytest

from gpulockd.client.advising import NO_CALL, Hold, one_call, outer_run
from gpulockd.model import Gpu, Wants

ANY, TWO = Wants(), Wants(count=2)


def cards(*sizes_gib: int) -> list[Gpu]:
    """The gpus of a pool."""
    return [Gpu(key=f"gpu_lock:{i}", index=i, memory_mib=1024 * size) for i, size in enumerate(sizes_gib)]


def held(wants: Wants = ANY, *indices: int) -> Hold:
    """A lease on these gpus."""
    return Hold(wants, tuple(f"gpu_lock:{i}" for i in indices or (0,)))


@pytest.mark.parametrize(
    ("hold", "wants", "offered", "advice"),
    [
        (held(), TWO, cards(24, 24), "gpu_lock(count=2)"),
        (held(), TWO, cards(24, 24, 24), "gpu_lock(count=2), or gpu_lock(count=3) if these are wanted beside those"),
        (held(), TWO, (), "gpu_lock(count=2)"),
        (held(Wants(keys=("gpu_lock:1",)), 1), TWO, cards(24, 24), "gpu_lock(gpus=[0, 1])"),
        (held(Wants(keys=("gpu_lock:1",)), 1), TWO, (), "gpu_lock(count=2)"),
        (held(), Wants(keys=("gpu_lock:10",)), cards(*[24] * 11), "gpu_lock(gpus=[0, 10])"),
        (held(), Wants(keys=("gpu_lock:ocr",)), (), "gpu_lock(gpus=[0, 'gpu_lock:ocr'])"),
        (held(Wants(memory_mib=4096, exclusive=False)), ANY, cards(24), "gpu_lock(memory='4GiB', exclusive=True)"),
        (
            held(Wants(memory_mib=4096, exclusive=False)),
            Wants(memory_mib=8448, exclusive=False),
            cards(24),
            "gpu_lock(memory='8448MiB')",
        ),
        (
            held(Wants(keys=("gpu_lock:0",)), 0),
            Wants(memory_mib=40960),
            cards(24, 80),
            "gpu_lock(gpus=[0, 1])",
        ),
    ],
)
def test_the_advice_is_a_call_that_covers_both(hold: Hold, wants: Wants, offered: list[Gpu], advice: str) -> None:
    """Who follows it must not meet the next refusal."""
    assert one_call([hold], wants, offered) == f"ask for all of it in the outer call, {advice}"


def test_where_no_call_gives_both_that_is_said() -> None:
    """Two cards of 40 GiB are not there, nor can a lock of any name stand in a list of GPUs."""
    assert one_call([held(TWO, 0, 1)], Wants(memory_mib=40960), cards(24, 80)) == NO_CALL
    assert one_call([held()], Wants(keys=("ocr",)), cards(24)) == NO_CALL


def test_a_run_is_told_how_large_the_outer_one_must_be() -> None:
    """What the outer run has is not known here; what the inner one lacks is."""
    assert outer_run(Wants(count=3)) == "such as `gpulockd run -n 3`"
    assert outer_run(Wants(memory_mib=8192, exclusive=False)) == "such as `gpulockd run -n 1 --memory 8GiB`"
    assert outer_run(Wants(keys=("gpu_lock:2",))) == "with 2 in its --gpu besides what it has"
