"""What is kept comes back as it was, through safetensors and JSON, and only with the round it belongs to."""

import json
import math
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

import silobus
from tests.unit.silobus.by_hand import RoundByHand

Given = Callable[..., RoundByHand]
Run = Callable[..., RoundByHand]
WEIGHTS = {"w": torch.zeros(1)}


def keeping(name: str, obj: Any, work: Callable[[], object] = lambda: None) -> Callable[[silobus.Round], None]:
    """A script that keeps one thing, and works on it when the round trains."""

    def body(rnd: silobus.Round) -> None:
        model = {"w": torch.zeros(1)}
        rnd.load(model)
        rnd.keep(name, obj)
        if rnd.trains:
            work()
            rnd.submit(model, samples=1, steps=1)

    return body


def there_and_back(given: Given, run: Run, saved: Any, restored: Any) -> RoundByHand:
    done = run(given(weights=WEIGHTS), keeping("it", saved))
    run(given("evaluate", weights=WEIGHTS, state=done.target / "state"), keeping("it", restored))
    return done


def steps(model: nn.Module, optimizer: Optimizer, number: int, *after: LRScheduler | ReduceLROnPlateau) -> None:
    x = torch.linspace(-1, 1, 8).reshape(4, 2)
    for _ in range(number):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        for scheduler in after:
            scheduler.step(1.0) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda params: SGD(params, lr=0.1),
    "momentum": lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda params: Adam(params, lr=0.1, amsgrad=True),
    "adamw": lambda params: AdamW(params, lr=torch.tensor(0.1)),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer_goes_on_where_it_stopped(given: Given, run: Run, make: Callable[[Any], Optimizer]) -> None:
    model = nn.Linear(2, 1)
    optimizer = make(model.parameters())
    steps(model, optimizer, 3)
    other = deepcopy(model)
    restored = make(other.parameters())
    there_and_back(given, run, optimizer, restored)
    steps(model, optimizer, 2)
    steps(other, restored, 2)
    assert torch.equal(model.weight, other.weight)


SCHEDULERS: dict[str, Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]] = {
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, T_max=9),
    "steps": lambda optimizer: MultiStepLR(optimizer, milestones=[2, 2, 5]),
    "plateau": lambda optimizer: ReduceLROnPlateau(optimizer, patience=2),
    "one-cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=1.0, total_steps=20),
    "sequence": lambda optimizer: SequentialLR(
        optimizer, [CosineAnnealingLR(optimizer, T_max=3), MultiStepLR(optimizer, [4])], milestones=[3]
    ),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_scheduler_goes_on_where_it_stopped(given: Given, run: Run, make: Callable[[Any], Any]) -> None:
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = make(optimizer)
    steps(model, optimizer, 3, scheduler)
    other = deepcopy(model)
    other_optimizer = SGD(other.parameters(), lr=0.1, momentum=0.9)
    other_scheduler = make(other_optimizer)
    there_and_back(given, run, optimizer, other_optimizer)
    there_and_back(given, run, scheduler, other_scheduler)
    assert other_scheduler.state_dict() == scheduler.state_dict()
    for _ in range(3):
        steps(model, optimizer, 1, scheduler)
        steps(other, other_optimizer, 1, other_scheduler)
        assert other_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert torch.equal(model.weight, other.weight)


def test_a_dict_comes_back_with_its_types(given: Given, run: Run) -> None:
    saved = {
        "none": None,
        "flags": [True, False, 0, 1],
        "numbers": (1, -(1 << 70), 1.5, 1e-320, -0.0),
        "not finite": [math.inf, -math.inf],
        "text": "ü \0 \n \" '",
        "nested": {1: {"a": [{}, [], ()]}, "1": "a key of text is not a key of number"},
        "seen": Counter({"a": 2, 3: 1}),
        "numpy": {"i": np.int64(3), "f": np.float32(0.5), "b": np.bool_(True)},
    }
    restored: dict[str, Any] = {}
    there_and_back(given, run, saved, restored)
    assert restored == saved | {"numpy": {"i": 3, "f": 0.5, "b": True}}
    assert [type(one) for one in restored["flags"]] == [bool, bool, int, int]
    assert type(restored["seen"]) is Counter
    assert math.copysign(1, restored["numbers"][4]) == -1


def test_a_dict_comes_back_with_nothing_added(given: Given, run: Run) -> None:
    restored = {"a": 0, "made by the script": 1}
    there_and_back(given, run, {"a": 5}, restored)
    assert restored == {"a": 5}


def test_two_tensors_whose_paths_read_alike_stay_two(given: Given, run: Run) -> None:
    restored: dict[str, Any] = {}
    there_and_back(given, run, {"a.b": torch.zeros(1), "a": {"b": torch.ones(2)}}, restored)
    assert (restored["a.b"].tolist(), restored["a"]["b"].tolist()) == ([0.0], [1.0, 1.0])


def test_nan_comes_back(given: Given, run: Run) -> None:
    restored: dict[str, Any] = {}
    there_and_back(given, run, {"loss": math.nan}, restored)
    assert math.isnan(restored["loss"])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3),
        torch.zeros(0, 2),
        torch.rand(2, 3).T,
        torch.rand(3, dtype=torch.float64),
        torch.rand(3).to(torch.bfloat16),
        torch.tensor([True]),
        torch.get_rng_state(),
        np.arange(6.0).reshape(2, 3).T,
    ],
    ids=["scalar", "empty", "not-contiguous", "float64", "bfloat16", "bool", "generator", "numpy"],
)
def test_a_tensor_comes_back_with_its_dtype_and_shape(given: Given, run: Run, tensor: Any) -> None:
    restored: dict[str, Any] = {}
    there_and_back(given, run, {"t": tensor, "again": [tensor]}, restored)
    for one in (restored["t"], restored["again"][0]):
        assert type(one) is type(tensor)
        assert (one.dtype, one.shape) == (tensor.dtype, tensor.shape)
        assert bool((one == tensor).all())


@pytest.mark.parametrize("key", ["torch", "float", "dict", "tuple", "__metadata__", "", "../../x", "a\0b", "3.it.t", 7])
def test_no_key_of_the_users_is_taken_for_one_of_ours(given: Given, run: Run, key: str | int) -> None:
    saved = {key: "0.it", "inner": {key: torch.ones(1)}, "list": [{key: [1, 2]}]}
    restored: dict[Any, Any] = {}
    done = there_and_back(given, run, saved, restored)
    assert restored == saved
    assert {path for path in done.written if "state" in path} == {"state/keep.it.json", "state/keep.it.safetensors"}


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "/abs", "a\0b", "a\n", "-x", "x" * 65, "ü", None, 3])
def test_a_name_that_could_be_a_path_is_refused(given: Given, run: Run, name: Any) -> None:
    with pytest.raises(ValueError, match="a name has up to 64"):
        run(given(weights=WEIGHTS), keeping(name, {}))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"f": print}, r"it\.f is builtin_function_or_method.*never pickled"),
        ({"a": [{"s": {1, 2}}]}, r"it\.a\.0\.s is set"),
        ({"z": 1j}, r"it\.z is complex"),
        ({(1, 2): 3}, r"it has the key \(1, 2\)"),
        ({True: 3}, r"it has the key True"),
        ([1, 2], r"keep\('it'\): list has no state_dict"),
        (object(), r"keep\('it'\): object has no state_dict"),
    ],
)
def test_what_would_need_a_pickle_is_refused_by_path(given: Given, run: Run, value: Any, message: str) -> None:
    made = given(weights=WEIGHTS)
    with pytest.raises(TypeError, match=message):
        run(made, keeping("it", value))
    assert "report.json" not in made.written


def test_alone_the_same_is_refused(alone: Callable[..., None]) -> None:
    with pytest.raises(TypeError, match="never pickled"):
        alone(keeping("it", {"f": print}))


def test_state_is_saved_as_it_is_when_the_body_returns(given: Given, run: Run) -> None:
    kept = {"n": 1}

    def body(rnd: silobus.Round) -> None:
        keeping("it", kept)(rnd)
        kept["n"] = 2  # after submit

    done = run(given(weights=WEIGHTS), body)
    assert json.loads((done.target / "state/keep.it.json").read_text())["state"] == {"dict": [["n", 2]]}


def test_one_name_keeps_one_thing(given: Given, run: Run) -> None:
    def body(rnd: silobus.Round) -> None:
        rnd.keep("it", {})
        rnd.keep("it", {})

    with pytest.raises(RuntimeError, match="was called before"):
        run(given(weights=WEIGHTS), body)


def test_a_round_that_keeps_nothing_leaves_the_old_state_alone(given: Given, run: Run) -> None:
    def body(rnd: silobus.Round) -> None:
        model = {"w": torch.zeros(1)}
        rnd.load(model)
        rnd.submit(model, samples=1, steps=1)

    assert run(given(weights=WEIGHTS), body).written == {"update.safetensors", "report.json"}


def test_state_of_a_later_version_is_not_guessed_at(given: Given, run: Run) -> None:
    done = run(given(weights=WEIGHTS), keeping("it", {"n": 1}))
    (done.target / "state/keep.it.json").write_text('{"schema_version": 2, "state": null}')
    with pytest.raises(ValueError, match="schema version 2"):
        run(given(weights=WEIGHTS, state=done.target / "state"), keeping("it", {}))
