"""What the orchestrator does with weights: verify an update, put initial weights in place, have a round summed.

Where a blob is follows from run, round, silo and digest; nothing here is told a location. Every result is a blob named
by its content, so whatever is done twice gives the same blob, and `AlreadyExists` means that it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from messages import names
from messages.errors import AlreadyExists, Conflict, InvalidWeights, NotFound, Poison, Stale
from messages.experiments import FromDigest, FromExperiment
from messages.ports import Reader, Store
from messages.schemas import Payload, Purpose, Role
from messages.share import lets_through
from messages.weights import Layout, Scan, TensorSpec, Writer, layout_of, scan_blob, scan_file, verify
from orchestrator.aggregation import strategy_named
from orchestrator.aggregation.driver import Contribution, Source, aggregate, measure
from orchestrator.experiment.checking import Change
from orchestrator.experiment.collecting import transfer_of
from orchestrator.experiment.state import Aggregating, ClosedRound, Collecting, Model, Tombstone
from orchestrator.measuring import scan_measuring
from orchestrator.scratch import Scratch
from orchestrator.store import Documents

_LAYOUTS: Final = 16
_PIECE: Final = 4 << 20
_VERIFIED_AT_ONCE: Final = 3
"""Updates read at the same time, from however many silos: memory must not grow with their number."""


@dataclass(frozen=True, slots=True)
class Verified:
    """An update's weights as they were read."""

    norm: float
    etag: str
    change: Change | None = None
    """What the experiment's checks want to know on arrival."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a round made, in place."""

    payload: Payload
    """The weights."""
    besides: Mapping[str, Payload]
    """Other roles, and what the strategy keeps."""


Files = Mapping[str, tuple[Path, Scan]]
"""What a round made, on this machine: `weights`, other roles, and what the strategy keeps."""


@final
class Weights:
    """Weights of updates, of rounds and of operators, in a store; `scratch` is a directory on this machine."""

    def __init__(self, store: Store, scratch: Path, *, memory_budget: int) -> None:
        self._store, self._memory_budget = store, memory_budget
        self.scratch = Scratch(scratch)
        self._layouts: dict[str, Layout] = {}
        self._verifying, self._summing = asyncio.Semaphore(_VERIFIED_AT_ONCE), asyncio.Semaphore(1)

    async def verify_update(self, state: Collecting, silo: str, payload: Payload, role: Role = "weights") -> Verified:
        """Reads what an update brings in a role once. Raises Poison when it is not what it has to be."""
        name = names.weights_blob(state.run.id, state.round, payload.sha256)
        async with self._as_poison(f"The {role} of {silo} for round {state.round}", state.run.id, state.round):
            expected = await self._expected(state, role)
            async with self._verifying, self._opened(names.updates_of(silo), name) as reader:
                if reader.size != payload.bytes:
                    raise Poison("size-mismatch", f"{silo} announced {payload.bytes} bytes; there are {reader.size}.")
                if role == "weights" and expected is not None and state.purpose is Purpose.TRAIN:
                    scan, change = await scan_measuring(
                        self._store, state, silo, payload=payload, reader=reader, expected=expected
                    )
                else:
                    scan, change = await scan_blob(reader), None
            verify(scan, sha256=payload.sha256, bytes=payload.bytes, layout=expected)
        if scan.layout.digest != payload.layout:
            raise Poison("layout-mismatch", f"{silo} announced another layout than the one its weights have.")
        return Verified(scan.norm, reader.etag, change)

    async def compared(self, state: Aggregating) -> dict[str, float | None]:
        """Of each update of a frozen set the cosine to the others, if the experiment's checks take it: see `Change`."""
        run, closed = state.run, state.closed
        if run.request.checks is None or not run.request.checks.with_others:
            return {}
        contributions = _contributions(state, "weights")
        async with self._as_poison(f"Round {closed.round} of {run.id}", run.id, closed.round), self._summing:
            base = _base(state, "weights")
            if base is None:
                raise Poison("no-base", f"Round {closed.round} of {run.id} started from no weights.")
            distances = await measure(
                self._store, base=base, contributions=contributions, memory_budget=self._memory_budget
            )
        return dict(zip(sorted(c.silo for c in contributions), distances.to_others, strict=True))

    async def aggregate(self, state: Aggregating) -> Made:
        """Puts the frozen set's sum in place, and what else comes of it."""
        run, closed = state.run, state.closed
        what = f"Round {closed.round} of {run.id}"
        async with self._as_poison(what, run.id, closed.round), self.scratch.directory() as directory:
            target = directory / "global.safetensors"
            files = await self.summed(state, target)
            made = {name: await self._put(run.id, closed.round, *file) for name, file in files.items()}
            return Made(made.pop("weights"), made)

    async def summed(self, state: Aggregating, target: Path) -> Files:
        """Writes the frozen set's sum to the new file `target`, what else comes of it beside, and nothing to the store.

        The first model is taken as it is: there is one update, and no base. Raises InvalidWeights, NotFound, Conflict.
        """
        run, closed = state.run, state.closed
        if closed.purpose is Purpose.INITIALISE:
            (update,) = closed.updates
            payload = _given(update.payload)
            name = names.weights_blob(run.id, closed.round, payload.sha256)
            await self._store.fetch(names.updates_of(update.silo), name, target)
            scan = await asyncio.to_thread(scan_file, target)
            verify(scan, sha256=payload.sha256, bytes=payload.bytes, layout=None)
            return {"weights": (target, scan)}
        request = run.request.strategy
        files: dict[str, tuple[Path, Scan]] = {}
        async with self._summing:
            for role, strategy in strategy_named(request.name, request.options, request.weights).roles.items():
                path = target if role == "weights" else target.with_name(f"{target.name}-{role}")
                summed = await aggregate(
                    self._store,
                    strategy,
                    base=_base(state, role),
                    contributions=_contributions(state, role),
                    target=path,
                    kept=_kept(state, strategy.state),
                    members=_members(closed),
                    memory_budget=self._memory_budget,
                )
                files |= {role: (path, summed.scan), **summed.kept}
        return files

    async def place_initial(
        self, run: str, initial: FromExperiment | FromDigest, share: Sequence[str], documents: Documents
    ) -> Payload:
        """Copies what the run shares of the weights an operator named to its round 0: updates will have just that.

        Raises Poison `initial-not-found`, `share-matches-nothing`.
        """
        match initial:
            case FromDigest(sha256=sha256):
                container, name = names.INITIAL, names.initial_blob(sha256)
            case FromExperiment():
                container, name, sha256 = await _weights_of(initial, documents)
        try:
            async with self._as_poison("The initial weights"):
                return await self._copy(container, name, run, 0, sha256, share=share)
        except Poison as poison:
            if poison.reason == "weights-not-found":
                do = (
                    "Retention has deleted it: `last` and `best` are always there."
                    if isinstance(initial, FromExperiment)
                    else "Upload it first."
                )
                raise Poison("initial-not-found", f"There is no {container}/{name}. {do}") from None
            raise

    async def _expected(self, state: Collecting, role: Role) -> Layout | None:
        """The layout an update must have: the model's, as it travels. None for the first model.

        Of `control` it is that of the model's floating tensors, as float32.
        """
        model = state.run.model
        if model is None or state.purpose is Purpose.INITIALISE:
            return None
        layout = self._layouts.get(model.payload.layout)
        if layout is None:
            name = names.weights_blob(state.run.id, model.round, model.payload.sha256)
            async with self._opened(names.GLOBAL, name) as reader:
                layout = await layout_of(reader)
            while len(self._layouts) >= _LAYOUTS:
                del self._layouts[next(iter(self._layouts))]
            self._layouts[model.payload.layout] = layout
        return layout.cast(transfer_of(state).dtype) if role == "weights" else layout.floating()

    async def _copy(
        self, container: str, name: str, run: str, round_number: int, sha256: str, *, share: Sequence[str] | None = None
    ) -> Payload:
        """Copies a blob, or of its tensors those that are shared, to the global weights of a round; checks it first."""
        async with self.scratch.directory() as directory:
            target = directory / "copy.safetensors"
            await self._store.fetch(container, name, target)
            scan = await asyncio.to_thread(scan_file, target)
            verify(scan, sha256=sha256, bytes=scan.bytes, layout=None)
            if share is not None and (shared := _shared(scan.layout, share)) != scan.layout.tensors:
                whole, target = target, directory / "shared.safetensors"
                scan = await asyncio.to_thread(_write_some, whole, scan.layout, shared, target)
            return await self._put(run, round_number, target, scan)

    async def _put(self, run: str, round_number: int, file: Path, scan: Scan) -> Payload:
        with contextlib.suppress(AlreadyExists):
            await self._store.create(names.GLOBAL, names.weights_blob(run, round_number, scan.sha256), file)
        return Payload(sha256=scan.sha256, bytes=scan.bytes, form="weights", layout=scan.layout.digest)

    @contextlib.asynccontextmanager
    async def _as_poison(self, what: str, run: str | None = None, round_number: int = 0) -> AsyncIterator[None]:
        """Weights that are wrong now stay wrong: blobs never change. Those of a round may be deleted, once it is over:
        then a tombstone says so, and whoever still wanted them is late (Stale).
        """
        try:
            yield
        except InvalidWeights as invalid:
            raise Poison(str(invalid.reason), f"{what}: {invalid.description}") from None
        except (NotFound, Conflict) as gone:
            if run is not None:
                said, _ = await Documents(self._store).retained(run)
                if said.dooms_updates(round_number) or said.dooms_weights(max(0, round_number - 1)):
                    raise Stale(f"{what} is deleted: {said.because}") from None
            if isinstance(gone, NotFound):
                raise Poison("weights-not-found", f"{what} are not where they must be: {gone}") from None
            raise Poison("weights-changed", f"{what} changed while they were read: {gone}") from None

    @contextlib.asynccontextmanager
    async def _opened(self, container: str, name: str) -> AsyncIterator[Reader]:
        reader = await self._store.open(container, name)
        try:
            yield reader
        finally:
            await reader.close()


def _shared(layout: Layout, share: Sequence[str]) -> tuple[TensorSpec, ...]:
    """The tensors that are exchanged. Raises Poison when there are none: nothing could ever be trained together."""
    shared = tuple(spec for spec in layout.tensors if lets_through(spec.name, share))
    if not shared:
        patterns = ", ".join(share[:10]) + ("…" if len(share) > 10 else "")
        raise Poison(
            "share-matches-nothing",
            f"Of the {len(layout.tensors)} tensors of the initial weights, `share` ({patterns}) lets none through.",
        )
    return shared


def _write_some(source: Path, layout: Layout, some: Sequence[TensorSpec], target: Path) -> Scan:
    """A file of some of another's tensors; what a scan of it finds."""
    kept = Layout.of((spec.name, spec.dtype, spec.shape) for spec in some)
    with source.open("rb") as file, Writer(target, kept) as writer:
        for spec in writer.layout.in_file_order:
            there = layout.by_name[spec.name]
            file.seek(layout.data_offset + there.begin)
            for begin in range(there.begin, there.end, _PIECE):
                writer.write(file.read(min(_PIECE, there.end - begin)))
        return writer.finish()


async def _weights_of(initial: FromExperiment, documents: Documents) -> tuple[str, str, str]:
    """Container, name and digest of what another experiment's latest run made."""
    name, which = initial.experiment, initial.round
    document = (await documents.load(name)).document
    if document is None or isinstance(document.state, Tombstone):
        raise Poison("initial-not-found", f"There is no experiment {name} to take weights from.")
    run = document.state.run
    made: tuple[int, Payload] | None = None
    match which:
        case "last":
            made = (run.model.round, run.model.payload) if run.model else None
        case "best":
            made = (run.best.round, run.best.payload) if run.best else None
        case int(number):
            record = await documents.round_record(run.id, number)
            made = (number, record.model) if record and record.model else None
    if made is None:
        raise Poison("initial-not-found", f"{run.id} has no weights of round {which!r}.")
    return names.GLOBAL, names.weights_blob(run.id, made[0], made[1].sha256), made[1].sha256


def _base(state: Aggregating, role: Role) -> Source | None:
    """What the round started from; nothing, for a role that starts from zeros."""
    model = state.run.model
    if model is None:
        raise Poison("no-base", f"{state.run.id} has no weights that round {state.closed.round} could start from.")
    if role == "weights":
        return _made(state.run.id, model, model.payload)
    return _made(state.run.id, model, model.besides[role]) if role in model.besides else None


def _kept(state: Aggregating, wanted: Iterable[str]) -> dict[str, Source]:
    """What the strategy kept when it made the model."""
    model = state.run.model
    there = model.besides if model else {}
    return {name: _made(state.run.id, model, there[name]) for name in wanted if model and name in there}


def _made(run: str, model: Model, payload: Payload) -> Source:
    return Source(names.GLOBAL, names.weights_blob(run, model.round, payload.sha256), payload.sha256, payload.bytes)


def _members(closed: ClosedRound) -> int:
    """How many silos took part in the run when the round was opened."""
    return len(closed.draw.among if closed.draw else closed.asked)


def _contributions(state: Aggregating, role: Role) -> list[Contribution]:
    found = []
    for update in state.closed.updates:
        if role == "weights":
            payload, etag = _given(update.payload), update.etag
        else:
            besides = update.besides.get(role)
            payload, etag = _given(besides.payload if besides else None), besides.etag if besides else None
        found.append(
            Contribution(
                silo=update.silo,
                container=names.updates_of(update.silo),
                blob=names.weights_blob(state.run.id, state.closed.round, payload.sha256),
                sha256=payload.sha256,
                bytes=payload.bytes,
                form=payload.form,
                samples=update.samples,
                steps=update.steps,
                etag=etag,
            )
        )
    return found


def _given(payload: Payload | None) -> Payload:
    if payload is None:
        raise Poison("payload-missing", "An update of the frozen set does not bring what the strategy sums.")
    return payload
