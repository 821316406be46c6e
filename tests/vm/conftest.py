"""The levels of rig.py as fixtures. Each boots when the first test asks for it and lives until the last is done."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.rig import Level, Rig, rig

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vm)
            if uses_host_and_guest(item):
                item.extra_keyword_matches.add("host_and_guest")  # so that -k finds those that are not parametrized too


@pytest.fixture(scope="session")
def machines(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with rig() as started:
        if any(uses_host_and_guest(item) for item in request.session.items):
            started.begin_host_and_guest()
        yield started


def uses_host_and_guest(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    chosen = item.callspec.params.get("level") if hasattr(item, "callspec") else None
    return "host_and_guest" in (chosen, *item.fixturenames)


@pytest.fixture(scope="session")
def loopback(machines: Rig) -> Level:
    return machines.loopback()


@pytest.fixture(scope="session")
def host_and_guest(machines: Rig) -> Level:
    return machines.host_and_guest()


@pytest.fixture(scope="session")
def hybrid(machines: Rig) -> Level:
    return machines.hybrid()


@pytest.fixture(scope="session", params=["loopback", "hybrid", "host_and_guest"])
def level(request: pytest.FixtureRequest) -> Level:
    """Each level in turn, the one that boots longest last. What a test asks of this one must hold on all three."""
    chosen: Level = request.getfixturevalue(request.param)
    return chosen
