"""What the parts of `contrib` say where their library is not installed, or a word is another's."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("library", "statement", "extra"),
    [
        ("celery", "import gpulockd.contrib.celery", "celery"),
        ("starlette", "import gpulockd.contrib.asgi", "fastapi"),
        ("fastapi", "from gpulockd.contrib.asgi import gpu", "fastapi"),
    ],
)
def test_a_library_that_is_missing_is_said_with_the_extra_that_brings_it(
    library: str, statement: str, extra: str
) -> None:
    """The client alone is installed without them."""
    if library != "celery":
        pytest.importorskip("starlette")
    program = f"import sys; sys.modules[{library!r}] = None\n{statement}"
    ran = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True)
    assert ran.returncode == 1
    assert f"pip install 'gpulockd[{extra}]'" in ran.stderr.splitlines()[-1]


def test_a_routes_limit_is_called_as_its_own_argument_is() -> None:
    """It is `wait` there, and an error that speaks of `max_wait_time` is of what nobody wrote."""
    pytest.importorskip("fastapi")
    from gpulockd.contrib.asgi import gpu
    from gpulockd.errors import ConfigError

    with pytest.raises(TypeError, match="it is called 'wait' here"):
        gpu(max_wait_time=5)  # type: ignore[call-arg] # what is meant
    with pytest.raises(ConfigError, match=r"^wait: '2 s' is not a duration"):
        gpu(wait="2 s")
