"""The command: reads its options, opens the data, listens, and stops cleanly. Only wiring lives here."""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from servicebus_emulator import log
from servicebus_emulator.config import Config, ConfigError, read_config
from servicebus_emulator.connection import Connection
from servicebus_emulator.faults import Faults, FaultsError
from servicebus_emulator.journal import GroupCommit
from servicebus_emulator.namespace import Namespace
from servicebus_emulator.places import NamespacePlaces
from servicebus_emulator.store import Store, StoreError

MIB = 1024 * 1024


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="servicebus-emulator", description="A Service Bus for one machine.")
    parser.add_argument("--port", type=int, default=5673, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the queues are kept")
    parser.add_argument("--config", type=Path, metavar="FILE", help="queues to create, as JSON")
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


async def serve(options: argparse.Namespace, config: Config, store: Store, faults: Faults) -> int:
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
    namespace = Namespace(store, journal, config, faults=faults)
    places = NamespacePlaces(namespace, options.max_message_size)
    connections: set[Connection] = set()

    def connect() -> Connection:
        connection = Connection(places, connections.discard)
        connections.add(connection)
        return connection

    server = await loop.create_server(connect, options.host, options.port, backlog=512)
    port = server.sockets[0].getsockname()[1]
    sys.stdout.write(f"listening on {options.host}:{port}\n")
    sys.stdout.flush()
    log.info("emulator.listening", host=options.host, port=port, data=str(options.data))
    if faults.are_on:
        log.warning("faults.on", faults=faults.asked, seed=faults.seed)
    await stop.wait()
    server.close()
    namespace.close()
    await journal.drained()  # whoever waits for an acknowledgement still gets it
    for connection in list(connections):
        connection.close()
    await journal.close()
    await asyncio.sleep(0)  # let the last frames go out
    if faults.struck:
        log.info("faults.struck", **faults.struck)
    log.info("emulator.stopped", status=status)
    return status


def main() -> None:
    options = parse_arguments()
    log.configure(options.log_level)
    try:
        config = read_config(options.config) if options.config is not None else Config()
        faults = Faults(options.fault, options.seed)
        store = Store(options.data)
    except (ConfigError, FaultsError, StoreError, OSError) as error:
        sys.exit(f"servicebus-emulator: {error}")
    sys.setswitchinterval(0.0005)  # the thread that commits must not wait for the one that talks
    try:
        status = asyncio.run(serve(options, config, store, faults))
    except OSError as error:
        sys.exit(f"servicebus-emulator: cannot listen on {options.host}:{options.port}: {error.strerror}")
    finally:
        store.close()
    sys.exit(status)


if __name__ == "__main__":
    main()
