"""The command: reads its options, opens the data, listens, and stops cleanly. Only wiring lives here."""

import argparse
import asyncio
import os
import signal
import ssl
import sys
from contextlib import suppress
from pathlib import Path

try:  # most of its first moments go into these, and Ctrl-C may come then as well
    from servicebus_emulator import log
    from servicebus_emulator.administration import Administration
    from servicebus_emulator.config import Config, ConfigError, read_config
    from servicebus_emulator.connection import Connection
    from servicebus_emulator.door import Door, TlsError, is_local, tls_context
    from servicebus_emulator.fault_switch import FaultSwitch
    from servicebus_emulator.faults import Faults, FaultsError
    from servicebus_emulator.hosts import own_names
    from servicebus_emulator.journal import GroupCommit
    from servicebus_emulator.namespace import Namespace
    from servicebus_emulator.places import NamespacePlaces
    from servicebus_emulator.store import Store, StoreError
except KeyboardInterrupt:
    sys.stderr.write("Stopped.\n")
    raise SystemExit(130) from None

MIB = 1024 * 1024
PATIENCE = 8.0  # seconds for the disk, once we are told to stop
STUCK = -1


def port_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text} is no port; ports are 0 (a free one) to 65535")
    return int(text)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="servicebus-emulator", description="A Service Bus for one machine.")
    parser.add_argument("--port", type=port_number, default=5673, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the queues are kept")
    parser.add_argument("--config", type=Path, metavar="FILE", help="queues and rights, as JSON (default: as stored)")
    parser.add_argument(
        "--unrestricted",
        action="store_true",
        help="with a --config without AuthorizationRules: take back those that the data was restricted by",
    )
    parser.add_argument("--cert", type=Path, metavar="FILE", help="TLS: the certificate and its chain, as PEM")
    parser.add_argument("--key", type=Path, metavar="FILE", help="TLS: the certificate's private key, as PEM")
    parser.add_argument(
        "--plain-anywhere", action="store_true", help="serve other machines without TLS too: anyone between reads along"
    )
    parser.add_argument("--max-message-size", type=int, default=MIB, metavar="BYTES")
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NAME=RATE[:TIME]",
        help="make this happen now and then: detach=2%%, delay=5%%:80ms, lock-max-age=20s, all=1%%, ...",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the faults: the same again")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser.parse_args(arguments)


def tls_of(options: argparse.Namespace) -> ssl.SSLContext | None:
    """TLS as the options say. Raises TlsError, also where nothing would protect what other machines send."""
    if (options.cert is None) != (options.key is None):
        raise TlsError("--cert and --key go together; give both, or neither")
    if options.cert is not None:
        return tls_context(options.cert, options.key)
    try:
        only_here = is_local(options.host)
    except OSError as error:
        raise TlsError(f"--host {options.host} means nothing here: {error.strerror}") from None
    if not only_here and not options.plain_anywhere:
        raise TlsError(
            f"without TLS only this machine is served, and --host {options.host} is not only this machine: "
            "give --cert and --key, or --plain-anywhere if everybody on the network may read along"
        )
    return None


def announce(text: str) -> None:
    """For whoever started this and listens; where nobody does, or cannot be told, the log says the same."""
    try:
        if sys.stdout is not None:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
    except OSError as error:
        sys.stdout = None  # what waits in it cannot be written later either
        log.warning("stdout.gone", reason=error.strerror)


async def serve(
    options: argparse.Namespace, config: Config | None, store: Store, faults: Faults, tls: ssl.SSLContext | None
) -> int:
    """Run until told to stop; the exit status."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    status = 0

    def fail(error: BaseException) -> None:
        nonlocal status
        status = 1
        log.error("store.failed", exc_info=error)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    journal = GroupCommit(store, fail)
    namespace = Namespace(store, journal, config, faults=faults, unrestricted=options.unrestricted)
    places = NamespacePlaces(namespace, options.max_message_size)
    connections: set[Connection] = set()

    def connect() -> Connection:
        connection = Connection(places, connections.discard)
        connections.add(connection)
        return connection

    administration = Administration(namespace, places.keyring, options.max_message_size)
    site = FaultSwitch(faults, places.keyring, namespace.now, administration)
    if faults.are_on:
        log.warning("faults.on", faults=faults.asked, seed=faults.seed)
    hosts = None if namespace.has_rules() else own_names(options.host)  # with rules, it is keys that tell who may
    door = Door(connect, site, tls, plain_anywhere=options.plain_anywhere, hosts=hosts)
    port = await door.open(options.host, options.port)
    announce(f"listening on {options.host}:{port}")
    log.info(
        "emulator.listening",
        host=options.host,
        port=port,
        tls=tls is not None,
        restricted=hosts is None,
        data=str(options.data),
    )
    await stop.wait()
    door.shut()
    namespace.close()
    deadline = loop.time() + PATIENCE
    with suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            await journal.drained()  # whoever waits for an acknowledgement still gets it
    for connection in list(connections):
        connection.close()
    door.clear()
    try:
        async with asyncio.timeout_at(deadline):
            await journal.close()
    except TimeoutError:
        status = STUCK
        log.error("store.stuck", seconds=PATIENCE)
    await asyncio.sleep(0)  # let the last frames go out
    if faults.struck:
        log.info("faults.struck", **faults.struck)
    log.info("emulator.stopped", status=status)
    return status


def main() -> None:
    options = parse_arguments()
    log.configure(options.log_level)
    try:
        tls = tls_of(options)
        config = read_config(options.config) if options.config is not None else None
        faults = Faults(options.fault, options.seed)
        store = Store(options.data)
    except (TlsError, ConfigError, FaultsError, StoreError) as error:
        sys.exit(f"servicebus-emulator: {error}")
    except OSError as error:
        told = f"--data {options.data} cannot be used: {error.strerror} ({error.filename})"
        sys.exit(f"servicebus-emulator: {told}; make it this user's, or give another --data")
    sys.setswitchinterval(0.0005)  # the thread that commits must not wait for the one that talks
    try:
        status = asyncio.run(serve(options, config, store, faults, tls))
        if status == STUCK:
            os._exit(1)  # even to close the store would be to wait for the disk
    except (ConfigError, StoreError) as error:
        sys.exit(f"servicebus-emulator: {options.data}: {error}")
    except OSError as error:
        sys.exit(f"servicebus-emulator: cannot listen on {options.host}:{options.port}: {error.strerror}")
    finally:
        store.close()
    sys.exit(status)


if __name__ == "__main__":
    main()
