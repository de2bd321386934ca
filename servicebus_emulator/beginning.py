"""What a start makes of the configuration file, and of what earlier starts left on disk: queues, rules, restriction.

The file creates queues that are not there, and changes those of which it says something else than at the last start;
what was administered since stays otherwise. Rules of its queues and of the namespace are always those of the file, so
that keys are changed there. Without a file everything is as it was.

Where the file has a rule, nobody does anything without a key from then on, with or without a file: this is on disk.
Only a file without rules and `--unrestricted`, both, take it back.
"""

from dataclasses import dataclass, replace

from servicebus_emulator import log
from servicebus_emulator.config import Config, ConfigError, QueueSettings
from servicebus_emulator.rights import Rule
from servicebus_emulator.store import Store, StoredQueue


@dataclass(frozen=True, slots=True)
class Access:
    """Rules of the namespace, and whether rules restrict anybody."""

    rules: tuple[Rule, ...]
    restricted: bool


def begin(store: Store, config: Config | None, now: int, *, unrestricted: bool = False) -> Access:
    """Puts on disk what the file says. Raises ConfigError, and then nothing has changed."""
    rules, was_restricted = store.access()
    if unrestricted and (config is None or config.has_rules()):
        raise ConfigError("--unrestricted goes with a --config that has no AuthorizationRules, and with nothing else")
    if config is None:
        return Access(rules, was_restricted)
    if was_restricted and not config.has_rules() and not unrestricted:
        raise ConfigError(
            "the data is restricted by AuthorizationRules, and the configuration has none any more: put them back, "
            "start without --config to keep those that are stored, or add --unrestricted to let everybody do everything"
        )
    if was_restricted and unrestricted:
        log.warning("rights.unrestricted", meaning="from now on everybody may do everything here, without a key")
    access = Access(config.rules, config.has_rules())
    stored = {queue.name.lower(): queue for queue in store.queues()}
    with store.at_once():
        store.put_access(access.rules, restricted=access.restricted)
        for name, settings in config.queues.items():
            settled = _settled(settings, stored.get(name.lower()))
            store.put_queue(name, settled, now, settings.digest())
    return access


def _settled(configured: QueueSettings, stored: StoredQueue | None) -> QueueSettings:
    """The file's settings where they are new, else those that are there; the file's rules."""
    if stored is None or stored.configured != configured.digest():
        return configured
    return replace(stored.settings, rules=configured.rules)
