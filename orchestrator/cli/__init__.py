"""The `silobus` command: what operators and the demo use. Each module here holds one command, or what several share.

Commands speak to a federation through its queues and blobs alone, as any tool could. This file only says which
there are.
"""

from __future__ import annotations

import sys
from typing import Annotated

try:  # most of a command's first moments go into these, and Ctrl-C may come then as well
    import typer

    from messages.log import last_words, leave_words_to_us, speak_anywhere
    from orchestrator.cli import dead_letters, demo, experiments, hold, maintenance, queues, replay, status, up, watch
except KeyboardInterrupt:
    sys.stderr.write("Stopped.\n")
    raise SystemExit(130) from None

app = typer.Typer(
    name="silobus",
    help="Federated training over message queues: one model, data that never moves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback is a bug of ours, and local variables may hold secrets
    rich_markup_mode=None,
)
for function in (
    up.up,
    demo.demo,
    experiments.start,
    status.status,
    watch.watch,
    status.model,
    experiments.cancel,
    experiments.pause,
    experiments.resume,
    hold.hold,
    hold.release,
    maintenance.orchestrator,
    maintenance.reconcile,
    replay.replay,
    maintenance.schema,
):
    app.command()(function)
app.add_typer(queues.app, name="queues")
app.add_typer(dead_letters.app, name="dead-letters")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version as version_of

        sys.stdout.write(f"silobus {version_of('silobus')}\n")
        raise typer.Exit


@app.callback()
def _silobus(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Its version.")] = False,
) -> None:
    """Federated training over message queues: one model, data that never moves."""
    leave_words_to_us()


def main() -> None:
    """The entry point of `silobus`."""
    speak_anywhere()
    with last_words():
        app()
