"""Whatever comes in at a front door of the configuration, it is settings or a ConfigError, and never half of it.

The doors: a tree as the API and the command line bring it, the text of a file, the environment.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpulockd.client.published import gpu_lock_for
from gpulockd.daemon.configuration import Layers, environment, parsed
from gpulockd.errors import ConfigError
from gpulockd.settings import Settings, Tree, checked, fitted, flat, leaves, merged, nested, without
from gpulockd.settings.variables import variables

Result = TypeVar("Result")

FUZZ = settings(
    max_examples=100,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

DURATIONS = st.sampled_from(["250ms", "5m", "1h30m", "2h", "10%", "inf", "nan", "-1", "1e400", "", " 7 ", "yes", "off"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**310)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.floats(0, 10_000)
    | DURATIONS
    | st.text(max_size=12)
    | st.binary(max_size=4)
)
SAID = ("live", "candidate", "below", "rollout", "revision")
NAMES = st.sampled_from([*Settings.__struct_fields__, "poll_interval", "max_wait_time", "rules", *SAID]) | st.text(
    max_size=6
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
PATHS = st.sampled_from(sorted(leaves())).map(lambda path: path.replace("*", "some.task"))
TREES = st.dictionaries(PATHS, VALUES, max_size=4).map(nested) | st.dictionaries(NAMES, VALUES, max_size=3)
GOOD = st.sampled_from(
    [
        {},
        {"gpu_lock": {"poll_interval": 1.0}},
        {"tasks": {"some.task": {"hard_timeout": 60.0}}},
        {"gpu_lock_monitor": {"timeout_levels": {"warning": 60.0}}},
    ]
)


def tried(attempt: Callable[[], Result]) -> tuple[Result | None, str]:
    """What comes out, and the words of the refusal if nothing does."""
    try:
        return attempt(), ""
    except ConfigError as refused:
        return None, refused.message


def fits(tree: Any) -> Settings | None:
    """The settings of a tree, or None where it is refused as it should be."""
    found, trouble = tried(lambda: fitted(checked(tree)))
    assert len(trouble) < 1000
    if found is not None:
        sane(found)
    return found


def sane(found: Settings) -> None:
    """Every number can be sent, counted in ms and compared."""
    decoded = json.loads(msgspec.json.encode(found))
    for value in flat(decoded).values():
        assert not isinstance(value, float) or 0 <= value * 1000 < 2**53
    assert found.gpu_lock.poll_interval <= found.gpu_lock.max_poll_interval
    assert msgspec.convert(decoded, Settings) == found


@FUZZ
@given(TREES | VALUES)
def test_a_tree_is_settings_or_refused_and_stays_as_it_is(tree: Any) -> None:
    """An API body is never a crash."""
    before = copy.deepcopy(tree)
    fits(tree)
    assert repr(tree) == repr(before)


@FUZZ
@given(TREES, GOOD)
def test_a_live_change_is_taken_whole_or_not_at_all(change: Tree, base: Tree) -> None:
    """What stands afterwards is what stood before, or that with all of the change."""
    layers = Layers(file="config.yml", file_tree=base)
    before = layers.settings()
    try:
        after = layers.settings(change)
    except ConfigError:
        assert layers.settings() == before
        return
    sane(after)
    assert after == fitted(merged(base, checked(change)))
    said = {path for path, origin in layers.origins(change).items() if origin.layer == "live"}
    empty = {path for path, value in flat(checked(change)).items() if value == {}}
    assert said == flat(checked(change)).keys() - empty
    assert fitted(merged(base, without(checked(change), *flat(checked(change))))) == before


@FUZZ
@given(TREES.map(lambda tree: json.dumps(tree, default=str)) | st.text(max_size=60), st.binary(max_size=4))
def test_a_file_is_settings_or_an_error_that_names_it(text: str, noise: bytes) -> None:
    """JSON is YAML; and an editor may leave anything for a moment."""
    content = text.encode("utf-8", "surrogatepass")
    for cut in (content, content[: len(content) // 2], content + noise):
        found, trouble = tried(functools.partial(parsed, cut, "config.yml"))
        assert found is not None or trouble.startswith("config.yml")
        assert found is None or checked(found.tree) == found.tree


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(sorted(variables())),
        VALUES.map(lambda v: v if isinstance(v, str) else json.dumps(v, default=str)),
    )
)
def test_an_environment_is_settings_or_an_error_that_names_the_variable(env: dict[str, str]) -> None:
    """A unit file is written by hand."""
    said, trouble = tried(lambda: environment.read(env))
    if said is None:
        assert trouble.partition(":")[0] in env
        return
    assert said.variables.keys() <= {path for path, _ in variables().values()}
    fits(said.tree)


@FUZZ
@given(VALUES, st.text(max_size=8), st.sampled_from(["", "some.task"]))
def test_a_client_goes_by_whatever_its_pool_has_published(said: Any, session: str, task: str) -> None:
    """The daemon may be of another version; a program that wants a GPU must not fail for it."""
    parts = {"gpu_lock": said, "tasks": {"some.task": said}, "live": {"gpu_lock": said}, "candidate": said}
    for defaults in (parts, {**parts, "candidate": {"below": 1.0, "rollout": "r", "live": said}}, {"live": said}):
        block = gpu_lock_for(defaults, session, task).gpu_lock
        assert block.poll_interval <= block.max_poll_interval
