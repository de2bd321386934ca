"""A model goes out and comes in by name: shared and private, tied, wrapped, differenced, converted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import silobus
from tests.unit.silobus.by_hand import RoundByHand

Given = Callable[..., RoundByHand]
Run = Callable[..., RoundByHand]


class Tied(nn.Module):
    """A language model's usual tie, with a bias so that not everything is one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embed.weight

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.embed(letters))
        return logits


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    if left.keys() != right.keys() or any(left[name].dtype != right[name].dtype for name in left):
        return False
    return all(torch.equal(left[name], right[name]) for name in left)


def script(model: Any, **load: Any) -> Callable[[silobus.Round], None]:
    """Loads, adds one to every floating-point tensor, submits."""

    def body(rnd: silobus.Round) -> None:
        rnd.load(model, **load)
        held = model if isinstance(model, dict) else model.state_dict()
        arrays = [torch.from_numpy(one) if isinstance(one, np.ndarray) else one for one in held.values()]
        with torch.no_grad():
            for tensor in {one.data_ptr(): one for one in arrays if one.is_floating_point()}.values():
                tensor.add_(1)
        if rnd.trains:
            rnd.submit(model, samples=10, steps=2)

    return body


def test_a_round_loads_what_came_and_writes_what_was_trained(given: Given, run: Run) -> None:
    received = values(network())
    model = network()
    done = run(given(weights=received), script(model))
    assert same(done.update, values(model))
    for name, tensor in received.items():
        assert torch.equal(done.update[name], tensor + 1 if tensor.is_floating_point() else tensor)
    assert (done.report["samples"], done.report["steps"]) == (10, 2)


def test_initialise_writes_the_model_as_first_constructed(given: Given, run: Run) -> None:
    model = network().to(torch.float64)
    first = values(model)
    transfer = {"form": "delta", "dtype": "bfloat16"}  # for updates; the weights everyone starts from go out whole
    done = run(given("initialise", transfer=transfer), script(model, share=["*", "!2.*"]))
    assert same(done.update, {name: tensor for name, tensor in first.items() if not name.startswith("2.")})
    assert (done.report["samples"], done.report["steps"], done.report["metrics"]) == (0, 0, [])
    assert done.written == {"update.safetensors", "report.json"}


def test_evaluate_loads_and_writes_no_update_and_no_state(given: Given, run: Run) -> None:
    received = values(network())
    model = network()

    def body(rnd: silobus.Round) -> None:
        rnd.load(model, share=["*", "!2.bias"])
        rnd.keep("count", {"n": 1})
        rnd.score(loss=silobus.mean(1.0, 2))

    done = run(given("evaluate", weights=received), body)
    assert torch.equal(model[0].weight, received["0.weight"])
    assert done.written == {"report.json"}
    assert done.report["update"] is None
    assert [metric["name"] for metric in done.report["metrics"]] == ["loss"]


def test_private_tensors_stay_here_and_come_back(given: Given, run: Run) -> None:
    received = values(network())
    share = ["*", "!2.*", "!*.running_*"]
    shared = {name: tensor for name, tensor in received.items() if not name.startswith("2.") and "running" not in name}
    first_model = network()
    constructed = values(first_model)
    first = run(given(weights=shared), script(first_model, share=share))
    assert first.update.keys() == shared.keys()
    private = load_file(first.target / "state" / "model.safetensors")
    assert private.keys() == received.keys() - shared.keys()
    assert torch.equal(private["2.bias"], constructed["2.bias"] + 1)

    second_model = network()
    run(given(weights=shared, state=first.target / "state"), script(second_model, share=share))
    assert torch.equal(second_model.state_dict()["2.bias"], private["2.bias"] + 1)
    assert torch.equal(second_model.state_dict()["0.weight"], shared["0.weight"] + 1)


def test_the_experiment_narrows_what_the_script_shares_and_cannot_widen_it(given: Given, run: Run) -> None:
    received = values(network())
    weights = {name: received[name] for name in ("0.weight", "1.weight", "1.running_mean")}
    made = given(weights=weights, share=["*", "!*.bias", "!*.num_batches_tracked", "!1.running_var"])
    done = run(made, script(network(), share=["0.*", "1.*"]))
    assert done.update.keys() == weights.keys()


def test_a_private_tensor_begins_with_the_one_received_and_then_goes_its_own_way(given: Given, run: Run) -> None:
    received = values(network())
    model = network()
    first = run(given(weights=received), script(model, share=["*", "!2.*"]))
    assert torch.equal(model[2].bias, received["2.bias"] + 1)
    ours = values(model)
    run(given(weights=received, state=first.target / "state"), script(model, share=["*", "!2.*"]))
    assert torch.equal(model[2].bias, ours["2.bias"] + 1)


def test_nothing_shared_is_an_error(given: Given, run: Run) -> None:
    with pytest.raises(silobus.NothingShared, match=r"of 9 tensors none is shared by \['body\.\*'\] and \['\*'\]"):
        run(given(weights=values(network())), script(network(), share=["body.*"]))


# --- tied tensors ------------------------------------------------------------------------------------------------


def test_a_tied_tensor_is_written_once_and_fills_both(given: Given, run: Run) -> None:
    first = run(given("initialise"), script(Tied()))
    assert first.update.keys() == {"embed.weight", "head.bias"}
    model = Tied()
    run(given(weights=first.target / "update.safetensors"), script(model))
    assert torch.equal(model.head.weight, first.update["embed.weight"] + 1)
    assert model.head.weight is model.embed.weight


def test_a_tied_tensor_keeps_the_names_it_came_by(given: Given, run: Run) -> None:
    weight, bias = torch.rand(5, 3), torch.rand(5)
    done = run(given(weights={"head.weight": weight, "head.bias": bias}), script(Tied()))
    assert same(done.update, {"head.weight": weight + 1, "head.bias": bias + 1})
    both = {"embed.weight": weight, "head.weight": weight.clone(), "head.bias": bias}
    assert run(given(weights=both), script(Tied())).update.keys() == both.keys()


def test_a_tie_across_the_border_of_what_is_shared_is_refused(given: Given, run: Run) -> None:
    with pytest.raises(ValueError, match=r"embed\.weight and head\.weight are one tied tensor"):
        run(given("initialise"), script(Tied(), share=["*", "!head.*"]))


def test_views_that_only_overlap_are_tensors_of_their_own(given: Given, run: Run) -> None:
    storage = torch.arange(6.0)
    done = run(given("initialise"), lambda rnd: rnd.load({"low": storage[:4], "high": storage[2:]}))
    assert same(done.update, {"low": torch.arange(4.0), "high": torch.arange(2.0, 6.0)})


# --- wrappers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefixes", [["module."], ["_orig_mod."], ["module.", "_orig_mod."], ["_orig_mod.", "module."]]
)
def test_wrappers_do_not_change_the_names(given: Given, run: Run, prefixes: list[str]) -> None:
    model: nn.Module = nn.Linear(2, 1)
    for prefix in prefixes:
        model = nn.ModuleDict({prefix.rstrip("."): model})
    received = {"weight": torch.rand(1, 2), "bias": torch.rand(1)}
    done = run(given(weights=received), script(model, share=["weight", "bias"]))
    assert same(done.update, {name: tensor + 1 for name, tensor in received.items()})


def test_a_compiled_model_and_a_compiled_part_have_the_plain_names(given: Given, run: Run) -> None:
    plain = network()
    compiled = torch.compile(network())
    assert run(given("initialise"), script(compiled)).update.keys() == plain.state_dict().keys()
    partly = network()
    partly[0] = torch.compile(partly[0])
    assert run(given(weights=values(plain)), script(partly)).update.keys() == plain.state_dict().keys()


def test_a_part_called_module_keeps_its_name_when_it_is_not_all(given: Given, run: Run) -> None:
    model = nn.ModuleDict({"module": nn.Linear(1, 1), "other": nn.Linear(1, 1)})
    assert run(given("initialise"), script(model)).update.keys() == model.state_dict().keys()


def test_two_tensors_that_would_get_one_name_are_refused(given: Given, run: Run) -> None:
    model = {"net._orig_mod.w": torch.ones(1), "net.w": torch.ones(1)}
    with pytest.raises(ValueError, match=r"are both 'net\.w'"):
        run(given("initialise"), script(model))


# --- forms and dtypes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_goes_out_as_the_model_has_it(given: Given, run: Run, dtype: torch.dtype) -> None:
    received = {"w": torch.rand(3, 2).to(dtype), "steps": torch.tensor(1 << 40), "mask": torch.tensor([True, False])}
    model = {name: torch.zeros_like(tensor) for name, tensor in received.items()}
    assert same(run(given(weights=received), script(model)).update, received | {"w": received["w"] + 1})


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_transfer_converts_floating_point_tensors_alone(given: Given, run: Run, name: str) -> None:
    received = {"w": torch.rand(4), "steps": torch.tensor(3)}
    model = {"w": torch.zeros(4), "steps": torch.tensor(0)}
    done = run(given(weights=received, transfer={"form": "weights", "dtype": name}), script(model))
    assert same(done.update, {"w": (received["w"] + 1).to(getattr(torch, name)), "steps": torch.tensor(3)})


def test_a_delta_is_what_was_trained_minus_what_came(given: Given, run: Run) -> None:
    received = values(network()) | {"1.num_batches_tracked": torch.tensor(5)}
    made = given(weights=received, transfer={"form": "delta", "dtype": None})
    model = network()
    done = run(made, script(model))
    trained = values(model)
    for name, tensor in done.update.items():
        expected = trained[name] - received[name] if tensor.is_floating_point() else trained[name]
        assert torch.equal(tensor, expected), name
        assert tensor.dtype == received[name].dtype


def test_a_delta_is_taken_in_float32_and_only_then_narrowed(given: Given, run: Run) -> None:
    received = {"w": torch.tensor([1000.0])}
    made = given(weights=received, transfer={"form": "delta", "dtype": "bfloat16"})

    def body(rnd: silobus.Round) -> None:
        model = {"w": torch.zeros(1)}
        rnd.load(model)
        model["w"] += 0.25  # bfloat16 steps by 4 at 1000: narrowed before, nothing would be left
        rnd.submit(model, samples=1, steps=1)

    assert run(made, body).update["w"].item() == 0.25


def test_a_delta_of_narrow_weights_is_taken_in_float32_too(given: Given, run: Run) -> None:
    received = {"w": torch.tensor([1.0078125], dtype=torch.bfloat16)}

    def body(rnd: silobus.Round) -> None:
        model = {"w": torch.zeros(1, dtype=torch.bfloat16)}
        rnd.load(model)
        model["w"].fill_(300.0)
        rnd.submit(model, samples=1, steps=1)

    made = given(weights=received, transfer={"form": "delta", "dtype": "float32"})
    assert run(made, body).update["w"].item() == 298.9921875


def test_a_delta_of_float64_is_not_taken_in_less(given: Given, run: Run) -> None:
    received = {"w": torch.tensor([1e9], dtype=torch.float64)}
    made = given(weights=received, transfer={"form": "delta", "dtype": None})
    done = run(made, script({"w": torch.zeros(1, dtype=torch.float64)}))
    assert done.update["w"].item() == 1.0


def test_tensors_in_any_memory_order_are_written_by_row(given: Given, run: Run) -> None:
    conv = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = {"conv": conv.weight.detach(), "turned": torch.arange(6.0).reshape(2, 3).T, "scalar": torch.tensor(2.0)}
    assert not model["turned"].is_contiguous()
    assert same(run(given("initialise"), lambda rnd: rnd.load(model)).update, model)


def test_a_parameter_that_requires_gradients_can_be_filled(given: Given, run: Run) -> None:
    weight = torch.zeros(2, requires_grad=True)
    run(given("evaluate", weights={"w": torch.tensor([1.0, 2.0])}), lambda rnd: rnd.load({"w": weight}))
    assert weight.tolist() == [1.0, 2.0]


# --- numpy, and other owners -------------------------------------------------------------------------------------


def test_numpy_arrays_are_filled_in_place_and_written(given: Given, run: Run) -> None:
    coefficients = np.zeros((2, 3), order="F")
    model = {"coef": coefficients, "intercept": np.zeros(())}
    received = {"coef": torch.arange(6.0, dtype=torch.float64).reshape(2, 3), "intercept": torch.tensor(4.0).double()}
    done = run(given(weights=received), script(model))
    assert coefficients.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert same(done.update, {name: tensor + 1 for name, tensor in received.items()})


def test_a_numpy_array_that_cannot_be_written_is_replaced(given: Given, run: Run) -> None:
    frozen = np.zeros(2, dtype=np.float32)
    frozen.flags.writeable = False
    model = {"w": frozen}
    run(given("evaluate", weights={"w": torch.tensor([1.0, 2.0])}), lambda rnd: rnd.load(model))
    assert model["w"].tolist() == [1.0, 2.0]


def test_numpy_rounds_to_bfloat16_as_torch_does(given: Given, run: Run) -> None:
    rng = np.random.default_rng(0)
    hard = [0.0, -0.0, 1.00390625, 1.01171875, 3.4e38, 1e-40, np.inf, -np.inf]  # ties to even, overflow, subnormal
    weights = np.concatenate([np.array(hard), rng.normal(size=1000)]).astype(np.float32)
    model = {"w": weights.copy()}

    def body(rnd: silobus.Round) -> None:
        rnd.load(model)
        rnd.submit(model, samples=1, steps=1)

    made = given(weights={"w": torch.from_numpy(weights)}, transfer={"form": "weights", "dtype": "bfloat16"})
    assert torch.equal(run(made, body).update["w"], torch.from_numpy(weights).to(torch.bfloat16))


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])
def test_what_is_no_number_does_not_become_one_in_bfloat16(given: Given, run: Run, bits: int) -> None:
    model = {"w": np.array([bits], dtype=np.uint32).view(np.float32)}

    def body(rnd: silobus.Round) -> None:
        rnd.load({"w": np.zeros(1, dtype=np.float32)})
        rnd.submit(model, samples=1, steps=1)

    made = given(weights={"w": torch.zeros(1)}, transfer={"form": "weights", "dtype": "bfloat16"})
    assert torch.isnan(run(made, body).update["w"]).all()


def test_an_owner_whose_state_dict_is_a_copy_gets_it_back(given: Given, run: Run) -> None:
    class Estimator:
        def __init__(self) -> None:
            self.slope = 0.0

        def state_dict(self) -> dict[str, np.ndarray]:
            return {"slope": np.array([self.slope])}

        def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
            self.slope = float(state["slope"][0])

    estimator = Estimator()
    run(given("evaluate", weights={"slope": torch.tensor([2.5]).double()}), lambda rnd: rnd.load(estimator))
    assert estimator.slope == 2.5


# --- what does not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"0.weight": torch.rand(4, 2)}, r"'0\.weight': the model has float32 \[3, 2\], but .* has float32 \[4, 2\]"),
        ({"0.weight": torch.rand(3, 2).half()}, r"'0\.weight': the model has float32 \[3, 2\], but .* has float16"),
        ({"0.weight": None, "0.weigth": torch.rand(3, 2)}, r"does not: '0\.weigth' \(the nearest .* '0\.weight'\)"),
        ({"0.weight": None}, r"lacks tensors that the model shares: '0\.weight'"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(
    given: Given, run: Run, wrong: dict[str, torch.Tensor | None], message: str
) -> None:
    received = {name: tensor for name, tensor in (values(network()) | wrong).items() if tensor is not None}
    model = network()
    before = values(model)
    with pytest.raises(ValueError, match=message):
        run(given(weights=received), script(model))
    assert same(values(model), before)


def test_a_model_of_another_shape_cannot_be_submitted(given: Given, run: Run) -> None:
    def body(rnd: silobus.Round) -> None:
        rnd.load(network())
        rnd.submit(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), samples=1, steps=1)

    made = given(weights=values(network()))
    with pytest.raises(ValueError, match=r"'0\.bias': the model has float32 \[4\]"):
        run(made, body)
    assert "report.json" not in made.written


def test_weights_other_than_those_announced_are_not_used(given: Given, run: Run) -> None:
    made = given(weights=values(network()))
    path = made.source / "weights.safetensors"
    path.chmod(0o644)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"not the file that .* describes"):
        run(made, script(network()))


def test_what_is_no_tensor_must_not_be_shared(given: Given, run: Run) -> None:
    model = {"w": torch.ones(1), "note": "text"}
    with pytest.raises(TypeError, match=r"'note' is str, not a tensor; exclude it"):
        run(given("initialise"), script(model))
    done = run(given("initialise"), lambda rnd: rnd.load(model, share=["*", "!note"]))
    assert done.update.keys() == {"w"}


@pytest.mark.parametrize("tensor", [torch.ones(2).to_sparse(), torch.ones(1, device="meta"), torch.ones(1) * 1j])
def test_a_tensor_that_cannot_be_written_is_named(given: Given, run: Run, tensor: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="tensor 'odd':"):
        run(given("initialise"), lambda rnd: rnd.load({"w": torch.ones(1), "odd": tensor}))


def test_names_are_only_names(given: Given, run: Run, tmp_path: Path) -> None:
    hostile = {"../../escape": torch.ones(1), "/abs": torch.ones(1), "a\0b": torch.ones(1), "{'x'}": torch.ones(1)}
    save_file(hostile, tmp_path / "w.safetensors")
    done = run(given(weights=tmp_path / "w.safetensors"), script({k: v.clone() for k, v in hostile.items()}))
    assert done.update.keys() == hostile.keys()
    assert done.written == {"update.safetensors", "report.json"}
