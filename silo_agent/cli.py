"""`silobus-agent`: what a silo's owner types. Here lives what is asked and what is shown; the doing is elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

try:  # most of a command's first moments go into these, and Ctrl-C may come then as well
    import typer
    from rich.console import Console
    from rich.table import Table

    from messages.errors import SilobusError
    from messages.fields import Name
    from messages.log import last_words, speak_anywhere, system_said
    from messages.settings import BusSettings, SettingsError, SettingsPath, StoreSettings, load_yaml
    from silo_agent import egress as log
    from silo_agent.code_digest import CodeUnreadable, code_digest
    from silo_agent.home import Home, HomeInUse
    from silo_agent.settings import SiloSettings
except KeyboardInterrupt:
    sys.stderr.write("Stopped.\n")
    raise SystemExit(130) from None


class _OwnersFile(SiloSettings):
    """An owner's file as `silobus up --silos-dir` takes it, which says itself what silo, bus, store and home are."""

    silo: Name = "any"
    bus: BusSettings = BusSettings(connection_string_env="ANY")
    store: StoreSettings = StoreSettings(account_url="https://any", sas_env="ANY")
    home: SettingsPath = Path("any")


app = typer.Typer(
    name="silobus-agent",
    help="The agent of one silo: trains here what its owner allows, and lets out nothing else.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Config = Annotated[Path, typer.Option("--config", "-c", help="The silo's file.")]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]
_SILO_YAML = Path("silo.yaml")
_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)


@contextlib.contextmanager
def _complaints() -> Iterator[None]:
    """What a person can put right is told in a sentence, without a traceback."""
    from silo_agent.egress import EgressBroken

    try:
        yield
    except EgressBroken as error:
        _fail(
            f"egress.jsonl is not as it was written: {error}. What left this silo cannot be shown any more: find "
            "out who changed it, move egress.jsonl and egress.head aside, and start again."
        )
    except (SilobusError, HomeInUse, CodeUnreadable) as error:
        _fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _fail(system_said(error))


def _fail(text: str) -> NoReturn:
    _err.print(text, markup=False, soft_wrap=True)
    raise typer.Exit(1)


@app.command()
@_complaints()
def run(config: Config = _SILO_YAML) -> None:
    """Listens on the silo's queue until stopped."""
    from silo_agent.app import run as run_agent

    asyncio.run(run_agent(config))


@app.command()
@_complaints()
def check(config: Config = _SILO_YAML, as_json: AsJson = False) -> None:
    """Tries every connection, right and task, and shows what would leave."""
    from messages.log import leave_words_to_us
    from silo_agent.check import check_file

    leave_words_to_us()
    findings = asyncio.run(check_file(config))
    if as_json:
        _print_json([finding.as_json() for finding in findings])
    else:
        marks = {"ok": "[green]ok[/]  ", "FAIL": "[red]FAIL[/]", "not tried": "[yellow]--[/]  "}
        for finding in findings:
            _out.print(f"{marks[finding.state]} {finding.what}: ", end="")
            said = finding.found if finding.state != "not tried" else f"not tried: {finding.found}"
            _out.print(said, markup=False, soft_wrap=True)
            for line in finding.details:
                _out.print(f"       {line}", markup=False, soft_wrap=True)
    if any(finding.state == "FAIL" for finding in findings):
        raise typer.Exit(1)


@app.command(name="check-files", hidden=True)
def check_files(files: list[Path]) -> None:
    """Reads owners' files and says what is wrong in them; tries nothing. `silobus up` asks before it starts."""
    problems = []
    for file in files:
        try:
            load_yaml(file, _OwnersFile)
        except SettingsError as error:
            problems.append(str(error))
    if problems:
        _fail("\n".join(problems))


@app.command()
@_complaints()
def rounds(config: Config = _SILO_YAML, as_json: AsJson = False) -> None:
    """Lists the rounds whose directories are still there, and how they ended."""
    home = Home(load_yaml(config, SiloSettings).home)
    rows = [
        {"run": run, "round": number, **(at.ended or {"how": "unfinished"}), "directory": str(at.path)}
        for run, number, at in home.rounds()
    ]
    if as_json:
        _print_json(rows)
        return
    _table(["run", "round", "how", "why", "at", "directory"], rows)


@app.command()
@_complaints()
def rerun(run: str, round_number: Annotated[int, typer.Argument(metavar="ROUND")], config: Config = _SILO_YAML) -> None:
    """Runs a round again from its directory, into a scratch directory beside it; nothing is sent."""
    from silo_agent.rerun import rerun as run_again

    good, lines = asyncio.run(run_again(load_yaml(config, SiloSettings), run, round_number))
    for line in lines:
        _out.print(line, markup=False, soft_wrap=True)
    if not good:
        raise typer.Exit(1)


@app.command()
@_complaints()
def egress(
    config: Config = _SILO_YAML,
    verify: Annotated[bool, typer.Option("--verify", help="Check that nothing was changed or taken out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Shows everything that has left the silo."""
    path = Home(load_yaml(config, SiloSettings).home).egress
    problem = log.verify(path) if verify else None
    if problem is not None:
        if as_json:
            _print_json({"good": False, "problem": problem})
        else:
            _err.print(f"{path}: {problem}", markup=False, soft_wrap=True)
        raise typer.Exit(1)
    lines = log.read(path)
    if as_json:
        _print_json({"good": True, "lines": len(lines)} if verify else lines)
    elif verify:
        _out.print(f"{path}: {len(lines)} lines, and the chain holds", markup=False, soft_wrap=True)
    else:
        _table(["n", "at", "what", "run", "round", "bytes", "said"], [_egress_row(line) for line in lines])


@app.command(name="code-digest")
@_complaints()
def digest(path: Path) -> None:
    """Prints the digest of a script or directory, as it goes into silo.yaml once its owner has read the code."""
    found = code_digest(path)
    _out.print(f"code: {{path: {path}, sha256: {found}}}", markup=False, soft_wrap=True)


@app.command()
@_complaints()
def pause(config: Config = _SILO_YAML) -> None:
    """Takes part in no new round until resumed; a round in progress is finished."""
    home = Home(load_yaml(config, SiloSettings).home)
    home.path.mkdir(parents=True, exist_ok=True)
    home.pause_file.touch()
    _out.print("paused: new rounds are declined")


@app.command()
@_complaints()
def resume(config: Config = _SILO_YAML) -> None:
    """Takes part again."""
    Home(load_yaml(config, SiloSettings).home).pause_file.unlink(missing_ok=True)
    _out.print("resumed")


def main() -> None:
    """The entry point."""
    speak_anywhere()
    with last_words():
        app()


def _egress_row(line: dict[str, Any]) -> dict[str, Any]:
    asked = line.get("asked") or {}
    message = line.get("message") or {}
    said = message.get("reason") or message.get("category") or message.get("doing") or ""
    if metrics := message.get("metrics"):
        said = ", ".join(f"{m['name']}={m.get('value', m['kind'])}" for m in metrics)
    what = message.get("kind", line["what"])
    run, number = asked.get("run", message.get("run")), asked.get("round", message.get("round"))
    files = sum((line.get(role) or {}).get("bytes", 0) for role in ("weights", "control"))
    return {**line, "what": what, "run": run, "round": number, "bytes": line["bytes"] + files, "said": said}


def _table(columns: list[str], rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if row.get(c) is None else str(row[c]) for c in columns))
    _out.print(table)


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
