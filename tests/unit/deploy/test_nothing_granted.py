"""AzureML's compute and whoever deploys have identities, and no part in the exchange."""

from __future__ import annotations

from messages.rights import COMPUTE, DEPLOYER, principals, table


def test_compute_and_deployer_are_in_the_table_and_are_granted_nothing() -> None:
    for role in (COMPUTE, DEPLOYER):
        assert table().root[role].patterns == []


def test_who_is_granted_nothing_gets_no_key() -> None:
    assert {who.role for who in principals(["north"])} == {"orchestrator", "agent", "operator"}
