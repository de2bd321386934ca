"""What travels, over a whole federation: weights and deltas in each dtype, the proximal term, control variates."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

import silobus
from messages import names
from tests.scenario.whole import Body, Whole

Tensors = dict[str, torch.Tensor]

PRECISION = {None: 0.0, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
"""The relative error of rounding to a dtype; float16 has it down to 2⁻¹⁴."""


def model() -> Tensors:
    """Two floating dtypes, an integer buffer, a scalar, an empty tensor, and one that stays."""
    return {
        "w": torch.linspace(-1, 1, 12).reshape(3, 4),
        "wide": torch.tensor([1 / 3, 2 / 3], dtype=torch.float64),
        "scalar": torch.tensor(1.0),
        "empty": torch.empty(0, 3),
        "batches": torch.tensor(7),
        "own": torch.tensor([1.0]),
    }


def moves(by: float, trained: Tensors) -> Body:
    """Moves every floating number, and counts; what it makes is in `trained` as well."""

    def body(rnd: silobus.Round) -> None:
        tensors = model()
        rnd.load(tensors, share=["*", "!own"])
        if rnd.trains:
            generator = torch.Generator().manual_seed(rnd.seed)
            for tensor in tensors.values():
                if tensor.is_floating_point():
                    tensor.add_(by * (1 + torch.rand(tensor.shape, generator=generator)))
            tensors["batches"].add_(2)
            trained.update(tensors)
            rnd.submit(tensors, samples=10, steps=1)

    return body


@pytest.mark.parametrize("form", ["weights", "delta"])
@pytest.mark.parametrize("dtype", PRECISION)
async def test_what_is_sent_is_as_asked_and_what_comes_of_it_is_as_exact(
    form: str, dtype: str | None, tmp_path: Path
) -> None:
    """Training moves numbers near 1 by a thousandth: a delta that was made of rounded weights would be far off."""
    trained: dict[str, Tensors] = {"north": {}, "south": {}}
    whole = Whole(tmp_path, {silo: moves(by, trained[silo]) for silo, by in (("north", 1e-3), ("south", 2e-3))})
    run = await whole.run(transfer={"form": form, "dtype": dtype})
    start = load(whole.blob(names.GLOBAL, run, 0, _made(whole, run, 0)))
    assert start.keys() == model().keys() - {"own"}
    sizes = {"w": 12, "wide": 2, "scalar": 1, "empty": 0}
    width = {None: 4, "float32": 4, "bfloat16": 2, "float16": 2}[dtype]
    sums = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in start.items()}
    for update in whole.record(run, 1).updates:
        data = whole.blob(names.updates_of(update.silo), run, 1, update.payload.sha256)
        header = 8 + int.from_bytes(data[:8], "little")
        wide = 8 if dtype is None else width
        assert len(data) - header == width * (sizes["w"] + sizes["scalar"]) + wide * sizes["wide"] + 8
        sent = load(data)
        made = trained[update.silo]
        for name, tensor in sent.items():
            if name == "batches":
                assert tensor.equal(torch.tensor(9)), "integers travel whole, as they are"
                continue
            assert tensor.dtype == (getattr(torch, dtype) if dtype else start[name].dtype)
            exact = made[name].double() - (start[name].double() if form == "delta" else 0)
            made_in = 2.0**-24 if start[name].dtype == torch.float32 else 2.0**-53
            slack = made_in * exact.abs()  # a difference is made in float32, or wider
            assert ((tensor.double() - exact).abs() <= PRECISION[dtype] * exact.abs() + slack).all(), name
            sums[name] += (tensor.double() + (start[name].double() if form == "delta" else 0)) / 2
    after = load(whole.blob(names.GLOBAL, run, 1, _made(whole, run, 1)))
    assert after["batches"].item() == 9
    for name in sums.keys() - {"batches"}:
        assert after[name].dtype == start[name].dtype
        torch.testing.assert_close(after[name], sums[name].to(start[name].dtype), rtol=2.0**-23, atol=0)


def _made(whole: Whole, run: str, number: int) -> str:
    record = whole.record(run, number)
    assert record.model is not None
    return record.model.sha256


# --- FedProx and SCAFFOLD ----------------------------------------------------------------------------------------

LR, STEPS, ROUNDS = 0.1, 4, 3
SILOS = {"north": 1, "south": 2}


def task(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, generator=generator), torch.randn(6, generator=generator)


def regression(seed: int) -> Body:
    """One script for FedAvg, FedProx and SCAFFOLD."""

    def body(rnd: silobus.Round) -> None:
        weights = {"w": torch.zeros(3, requires_grad=True)}
        rnd.load(weights)
        if rnd.trains:
            w = weights["w"]
            x, y = task(seed)
            for _ in range(STEPS):
                loss = (x @ w - y).square().mean() + rnd.proximal(weights)
                w.grad = None
                loss.backward()
                rnd.correct(weights)
                with torch.no_grad():
                    w -= LR * w.grad  # type: ignore[operator]  # backward() has made it
            rnd.submit(weights, samples=6, steps=STEPS, lr=LR)

    return body


def steps(seed: int, start: torch.Tensor, extra: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    x, y = (tensor.double() for tensor in task(seed))
    w = start.clone()
    for _ in range(STEPS):
        w -= LR * (2 * x.T @ (x @ w - y) / len(y) + extra(w))
    return w


def fedprox(mu: float) -> torch.Tensor:
    """Li et al. 2020, Algorithm 2, in float64."""
    w = torch.zeros(3, dtype=torch.float64)
    for _ in range(ROUNDS):
        w = sum((steps(seed, w, lambda v, w=w: mu * (v - w)) for seed in SILOS.values()), torch.zeros(3)) / len(SILOS)
    return w


def scaffold() -> torch.Tensor:
    """Karimireddy et al. 2020, Algorithm 1 with option II, every silo in every round, in float64."""
    x = torch.zeros(3, dtype=torch.float64)
    c, own = torch.zeros(3).double(), {seed: torch.zeros(3).double() for seed in SILOS.values()}
    for _ in range(ROUNDS):
        made = {seed: steps(seed, x, lambda _, c_i=c_i, c=c: c - c_i) for seed, c_i in own.items()}
        renewed = {seed: own[seed] - c + (x - y) / (STEPS * LR) for seed, y in made.items()}
        c = c + sum(renewed[seed] - own[seed] for seed in own) / len(own)
        own, x = renewed, sum(made.values(), torch.zeros(3)) / len(own)
    return x


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ({"name": "fedavg"}, fedprox(0.0)),
        ({"name": "fedprox", "options": {"mu": 0.7}}, fedprox(0.7)),
        ({"name": "scaffold"}, scaffold()),
    ],
    ids=["fedavg", "fedprox", "scaffold"],
)
async def test_one_script_trains_by_the_papers_algorithm(
    strategy: dict[str, object], expected: torch.Tensor, tmp_path: Path
) -> None:
    silos = {silo: regression(seed) for silo, seed in SILOS.items()}
    whole = Whole(tmp_path, silos, roles=["weights", "control"])
    run = await whole.run(strategy=strategy, rounds=ROUNDS)
    after = load(whole.blob(names.GLOBAL, run, ROUNDS, _made(whole, run, ROUNDS)))["w"]
    torch.testing.assert_close(after.double(), expected, rtol=1e-5, atol=1e-6)
    update = whole.record(run, 1).updates[0]
    sent = whole.egress(update.silo)
    (line,) = [one for one in sent if one["what"] == "update" and one["asked"]["round"] == 1]
    assert update.bytes == sum(line[role]["bytes"] for role in ("weights", "control") if role in line)
    roles = {"weights", "control"} if strategy["name"] == "scaffold" else {"weights"}
    for silo in SILOS:
        updates = [line for line in whole.egress(silo) if line["what"] == "update" and line["asked"]["round"] == 1]
        assert [set(line["message"]["payloads"]) for line in updates] == [roles]


# --- FedBN and FedPer: the snippets of docs/strategies.md --------------------------------------------------------

SNIPPET = re.compile(r"^```python file=personal\.py\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STAYS = {
    "fedbn": {f"body.1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")},
    "fedper": {"head.weight", "head.bias"},
}


@pytest.mark.parametrize("method", STAYS)
async def test_what_is_not_shared_stays_in_its_silo_from_round_to_round(method: str, tmp_path: Path) -> None:
    found = SNIPPET.search((Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8"))
    assert found is not None
    snippet: dict[str, Any] = {}
    exec(found[1], snippet)  # noqa: S102  # it is our own document
    came: dict[str, list[Tensors]] = {"north": [], "south": []}

    def trains(silo: str) -> Body:
        def train(model: torch.nn.ModuleDict) -> tuple[int, int]:
            came[silo].append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(SILOS[silo])) + SILOS[silo]
            model["head"](model["body"](inputs)).square().mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(0.1 * torch.as_tensor(parameter.grad))
            came[silo].append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            return len(inputs), 1

        return lambda rnd: snippet["one_round"](rnd, snippet["build"](), snippet[method], train)

    whole = Whole(tmp_path, {silo: trains(silo) for silo in SILOS})
    run = await whole.run(rounds=2)
    model = snippet["build"]()
    assert set(load(whole.blob(names.GLOBAL, run, 2, _made(whole, run, 2)))) == set(model.state_dict()) - STAYS[method]
    for silo in SILOS:
        _, trained, came_back, _ = came[silo]
        assert all(torch.equal(came_back[name], trained[name]) for name in STAYS[method])
        assert not torch.equal(came_back["body.0.weight"], trained["body.0.weight"]), "it is the mean of both"
    for name in STAYS[method] - {"body.1.num_batches_tracked"}:
        assert not torch.equal(came["north"][-1][name], came["south"][-1][name])
