"""What the SDK's tests import of Azure's test tools: a base class, and a credential."""

import time
from collections.abc import Callable
from typing import Any

from azure.core.credentials import AccessToken


class AzureMgmtRecordedTestCase:
    """Nothing is recorded."""


class AzureRecordedTestCase:
    """Nothing is recorded."""

    @staticmethod
    def await_prepared_test(test: Callable[..., Any]) -> Callable[..., Any]:
        return test


class _Credential:
    """A token that no key has signed: the emulator takes it where it has no rules."""

    def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
        return AccessToken("a token", int(time.time()) + 3600)

    def close(self) -> None:
        """Holds nothing."""


class _AsyncCredential:
    async def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
        return AccessToken("a token", int(time.time()) + 3600)

    async def close(self) -> None:
        """Holds nothing."""

    async def __aenter__(self) -> "_AsyncCredential":
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Holds nothing."""


def get_credential(*, is_async: bool = False, **_options: Any) -> _Credential | _AsyncCredential:
    return _AsyncCredential() if is_async else _Credential()
