"""From settings to a bus and a store: the only place that picks an adapter. Nothing is sent yet.

The Azure SDK is imported here when, and only when, settings ask for it: it takes longer than everything else together.
"""

from __future__ import annotations

from messages.ports import Bus, Store
from messages.settings import BusSettings, SettingsError, StoreSettings
from messages.transport.credentials import open_credential


def open_bus(settings: BusSettings) -> Bus:
    """The bus that `settings` speak of. Raises SettingsError when a secret is not where they say."""
    from messages.transport.servicebus import ServiceBus, client_options

    try:
        options = client_options(
            websocket=settings.transport == "amqp-over-websocket",
            proxy=_proxy(settings),
            ca_file=None if settings.ca_file is None else str(settings.ca_file),
        )
    except OSError as error:  # ssl's errors are of this kind
        raise SettingsError(f"bus.ca_file: {settings.ca_file} holds no certificates: {error.strerror}") from None
    connection_string = settings.connection_string()
    if connection_string is not None:
        try:
            return ServiceBus.from_connection_string(connection_string, **options)
        except ValueError as error:
            raise SettingsError(f"bus: {error}") from None
    if settings.namespace is None or settings.credential is None:
        raise SettingsError("bus: neither a connection string nor a namespace and a credential are given")
    return ServiceBus.from_credential(settings.namespace, open_credential(settings.credential), **options)


def open_store(settings: StoreSettings) -> Store:
    """The store that `settings` speak of. Raises SettingsError when a secret is not where they say."""
    if settings.directory is not None:
        from messages.transport.directory import DirectoryStore

        return DirectoryStore(settings.directory)
    from messages.transport import azure_blob

    connection_string, sas, by_container = settings.connection_string(), settings.sas(), settings.sas_by_container()
    if connection_string is not None:
        try:
            return azure_blob.connect(connection_string=connection_string.get_secret_value(), ca_file=settings.ca_file)
        except ValueError:
            raise SettingsError("store: the connection string is malformed; copy it again from the portal") from None
    if sas is not None:
        return azure_blob.connect(
            account_url=settings.account_url, sas=sas.get_secret_value(), ca_file=settings.ca_file
        )
    if by_container is not None:
        signatures = {name: signature.get_secret_value() for name, signature in by_container.items()}
        return azure_blob.connect(account_url=settings.account_url, sas=signatures, ca_file=settings.ca_file)
    if settings.account_url is None or settings.credential is None:
        raise SettingsError("store: none of a directory, an account and a connection string is given")
    credential = open_credential(settings.credential)
    store = azure_blob.connect(account_url=settings.account_url, credential=credential, ca_file=settings.ca_file)
    close_store = store.close

    async def close() -> None:
        await close_store()
        await credential.close()

    store.close = close  # type: ignore[method-assign]  # it leaves the credential to whoever made it
    return store


def _proxy(settings: BusSettings) -> dict[str, str | int] | None:
    if settings.proxy is None:
        return None
    proxy: dict[str, str | int] = {"proxy_hostname": settings.proxy.host, "proxy_port": settings.proxy.port}
    user, password = settings.proxy.user(), settings.proxy.password()
    if user is not None:
        proxy["username"] = user
    if password is not None:
        proxy["password"] = password.get_secret_value()
    return proxy
