"""What a start makes of the configuration and of what is stored: settings, rules, and who is restricted."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from servicebus_emulator.beginning import Access, begin
from servicebus_emulator.config import Config, ConfigError, QueueSettings
from servicebus_emulator.rights import Right, Rule
from servicebus_emulator.store import Store, StoredQueue, StoreError
from tests.unit.emulator.test_queues_come_and_go import live, namespace

RULE = Rule("r", ("key",), frozenset({Right.SEND}))
ROTATED = Rule("r", ("another-key", "third-key"), frozenset({Right.SEND, Right.LISTEN}))
GUARDED = Config({"q": QueueSettings(rules=(RULE,))}, (RULE,))
OPEN = Config({"q": QueueSettings()})


@contextmanager
def stored(directory: Path) -> Iterator[Store]:
    with closing(Store(directory)) as store:
        yield store


def start(directory: Path, config: Config | None = None, *, unrestricted: bool = False) -> Access:
    with stored(directory) as store:
        return begin(store, config, 1, unrestricted=unrestricted)


def queue(directory: Path) -> StoredQueue:
    with stored(directory) as store:
        [found] = store.queues()
        return found


# ------------------------------------------------------------------------------------------------------ restriction


@pytest.mark.parametrize("config", [GUARDED, Config(rules=(RULE,)), Config({"q": QueueSettings(rules=(RULE,))})])
def test_who_was_restricted_stays_so_without_the_configuration(tmp_path: Path, config: Config) -> None:
    assert start(tmp_path, config) == Access(config.rules, restricted=True)
    for _ in range(2):
        assert start(tmp_path) == Access(config.rules, restricted=True)


def test_rules_are_taken_back_by_a_configuration_without_any_and_the_option_only(tmp_path: Path) -> None:
    start(tmp_path, GUARDED)
    with pytest.raises(ConfigError, match=r"put them back, .* or add --unrestricted"):
        start(tmp_path, OPEN)
    for config in (None, GUARDED):
        with pytest.raises(ConfigError, match="--unrestricted goes with a --config that has no AuthorizationRules"):
            start(tmp_path, config, unrestricted=True)
    assert queue(tmp_path).settings.rules == (RULE,), "what is refused changes nothing"
    assert start(tmp_path) == Access((RULE,), restricted=True)
    assert start(tmp_path, OPEN, unrestricted=True) == Access((), restricted=False)
    assert start(tmp_path) == Access((), restricted=False)
    assert queue(tmp_path).settings.rules == ()
    assert start(tmp_path, GUARDED).restricted


def test_taking_them_back_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start(tmp_path, OPEN, unrestricted=True)
    assert not caplog.records
    start(tmp_path, GUARDED)
    start(tmp_path, OPEN, unrestricted=True)
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", "rights.unrestricted")]


def test_the_namespaces_rules_are_those_of_the_last_configuration(tmp_path: Path) -> None:
    start(tmp_path, Config(rules=(RULE,)))
    start(tmp_path, Config(rules=(ROTATED,)))
    assert start(tmp_path).rules == (ROTATED,)


async def test_a_rule_made_where_nobody_is_restricted_keeps_nobody_out(tmp_path: Path) -> None:
    async with namespace(tmp_path) as made:
        made.create("q", QueueSettings(rules=(RULE,)))
        assert not made.has_rules()
    async with namespace(tmp_path) as again:
        assert list(again.rules_of("q")) == [("q", RULE)]
        assert not again.has_rules()
    async with namespace(tmp_path, Config({"p": QueueSettings(rules=(RULE,))})) as restricted:
        assert restricted.has_rules()
    async with namespace(tmp_path) as still:
        assert still.has_rules()
        assert list(still.rules_of("q")) == [("q", RULE)]


async def test_the_rules_of_a_queue_are_not_those_of_a_queue_below_it(tmp_path: Path) -> None:
    async with namespace(tmp_path, Config({"q": QueueSettings(rules=(RULE,)), "q/sub": QueueSettings()})) as made:
        assert list(made.rules_of("q/$deadletterqueue")) == [("q", RULE)]
        assert list(made.rules_of("q/sub")) == []
        assert list(made.rules_of("")) == [("q", RULE)]


# --------------------------------------------------------------------------------------------------------- settings


async def test_what_was_administered_outlives_a_start_with_the_same_configuration(tmp_path: Path) -> None:
    config = Config({"q": QueueSettings(max_delivery_count=7, rules=(RULE,))})
    administered = QueueSettings(max_delivery_count=7, status="Disabled", user_metadata="why", rules=(RULE,))
    async with namespace(tmp_path, config) as made:
        made.update(live(made, "q"), administered)
    for now in (2000, 3000):
        async with namespace(tmp_path, config, now=now) as made:
            assert live(made, "q").queue.settings == administered
            assert live(made, "q").updated_at == 1000, "nothing was changed"


async def test_what_the_configuration_changes_is_changed_once(tmp_path: Path) -> None:
    changed = Config({"q": QueueSettings(max_delivery_count=2)})
    async with namespace(tmp_path, OPEN) as made:
        made.update(live(made, "q"), QueueSettings(status="Disabled"))
    async with namespace(tmp_path, changed, now=2000) as made:
        assert live(made, "q").queue.settings == QueueSettings(max_delivery_count=2)
        assert (live(made, "q").created_at, live(made, "q").updated_at) == (1000, 2000)
        made.update(live(made, "q"), QueueSettings(status="SendDisabled"))
    async with namespace(tmp_path, changed, now=3000) as made:
        assert live(made, "q").queue.settings == QueueSettings(status="SendDisabled")


async def test_keys_are_changed_in_the_configuration_and_settings_stay(tmp_path: Path) -> None:
    async with namespace(tmp_path, GUARDED) as made:
        made.update(live(made, "q"), QueueSettings(status="Disabled", rules=(RULE, ROTATED)))
    async with namespace(tmp_path, Config({"Q": QueueSettings(rules=(ROTATED,))})) as made:
        assert live(made, "q").queue.settings == QueueSettings(status="Disabled", rules=(ROTATED,))


async def test_a_configured_queue_that_was_deleted_comes_back_and_another_stays_away(tmp_path: Path) -> None:
    async with namespace(tmp_path, OPEN) as made:
        made.create("other", QueueSettings())
        made.delete(live(made, "q"))
        made.delete(live(made, "other"))
    async with namespace(tmp_path) as made:
        assert made.queues() == []
    async with namespace(tmp_path, OPEN) as made:
        assert [found.name for found in made.queues()] == ["q"]
        made.delete(live(made, "q"))
        made.create("q", QueueSettings(max_delivery_count=3))
    async with namespace(tmp_path, OPEN) as made:
        assert live(made, "q").queue.settings == QueueSettings(), "a client's own queue of that name is the file's now"


def test_a_start_that_fails_halfway_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path, OPEN)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "put_queue", fail)
        with pytest.raises(StoreError, match="disk full"):
            start(tmp_path, GUARDED)
    assert start(tmp_path) == Access((), restricted=False)
