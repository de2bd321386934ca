"""FedProx's term and SCAFFOLD's control variates, against the papers' formulas in float64."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import silobus
from silobus.federated import FederatedRound
from tests.unit.silobus.by_hand import RoundByHand

Given = Callable[..., RoundByHand]
Run = Callable[..., RoundByHand]
Tensors = dict[str, torch.Tensor]

BOTH = ["weights", "control"]
SHARE = ["*", "!own.*"]


class Net(nn.Module):
    """Everything a model may have: buffers of both kinds, a frozen layer, a private one, a scalar, an empty tensor."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.own = nn.Linear(4, 1)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.idle = nn.Parameter(torch.ones(2))  # its gradient is None in some silos
        self.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.own(self.frozen(self.norm(self.body(x)))) * self.scale
        return out


TRAINED = {"body.weight", "body.bias", "norm.weight", "norm.bias", "scale", "idle"}


def shared(model: nn.Module) -> Tensors:
    return {name: one.clone() for name, one in model.state_dict().items() if not name.startswith("own.")}


def batch(seed: int = 0) -> torch.Tensor:
    return torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- FedProx -----------------------------------------------------------------------------------------------------


def test_the_proximal_term_and_its_gradient_are_the_papers(given: Given, run: Run) -> None:
    received, model, mu = shared(Net()), Net(), 0.3

    def body(rnd: silobus.Round) -> None:
        rnd.load(model, share=SHARE)
        assert rnd.proximal(model).item() == 0
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        term = rnd.proximal(model)
        term.backward()
        named = dict(model.named_parameters())
        expected = sum(((named[name].detach() - received[name]) ** 2).sum() for name in TRAINED)
        torch.testing.assert_close(term.detach(), mu / 2 * expected, rtol=1e-12, atol=0)
        for name, parameter in named.items():
            if name in TRAINED:
                assert parameter.grad is not None
                pull = mu * (parameter.detach() - received[name])
                torch.testing.assert_close(parameter.grad, pull, rtol=1e-12, atol=0)
            else:
                assert parameter.grad is None
        rnd.submit(model, samples=8, steps=1)

    run(given(weights=received, hyperparameters={"proximal_mu": mu}), body)


def test_the_term_waits_for_its_gradient_without_a_third_copy_of_the_model(given: Given, run: Run) -> None:
    model = Net(torch.float32)
    kept: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    def body(rnd: silobus.Round) -> None:
        rnd.load(model, share=SHARE)
        rnd.proximal(model)  # reads the references
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            rnd.proximal(model)
            first = {tensor.data_ptr() for tensor in kept}
            rnd.proximal(model)
        assert {tensor.data_ptr() for tensor in kept} == first
        assert {p.data_ptr() for name, p in model.named_parameters() if name in TRAINED} < first
        assert len(first) == 2 * len(TRAINED)
        rnd.submit(model, samples=8, steps=1)

    run(given(weights=shared(model), hyperparameters={"proximal_mu": 1}), body)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_term_is_at_least_float32(dtype: torch.dtype, given: Given, run: Run) -> None:
    model = {"w": torch.zeros(300, dtype=dtype, requires_grad=True)}

    def body(rnd: silobus.Round) -> None:
        rnd.load(model)
        with torch.no_grad():
            model["w"] += 1
        term = rnd.proximal(model)
        assert (term.dtype, term.item()) == (torch.float32, 150.0)
        term.backward()
        assert model["w"].grad is not None
        assert model["w"].grad.dtype == dtype
        rnd.submit({"w": model["w"].detach()}, samples=1, steps=1)

    run(given(weights={"w": torch.zeros(300, dtype=dtype)}, hyperparameters={"proximal_mu": 1}), body)


def test_a_script_stays_the_same_for_other_strategies_and_alone(
    given: Given, run: Run, alone: Callable[..., None]
) -> None:
    model = Net()

    def body(rnd: silobus.Round) -> None:
        rnd.load(model, share=SHARE)
        if rnd.trains:
            loss = model(batch()).square().mean()
            (loss + rnd.proximal(model)).backward()
            before = [one.grad.clone() for one in model.parameters() if one.grad is not None]
            rnd.correct(model)
            after = [one.grad for one in model.parameters() if one.grad is not None]
            assert all(map(torch.equal, before, after))
            rnd.submit(model, samples=8, steps=1, lr=0.1)

    alone(body)
    done = run(given(weights=shared(model)), body)
    assert done.written == {"update.safetensors", "state/model.safetensors", "report.json"}
    assert "control" not in done.report


def test_a_script_that_knows_nothing_of_the_term_fails_a_round_that_wants_it(given: Given, run: Run) -> None:
    """It would be FedAvg, and nobody would notice."""
    model = Net()

    def body(rnd: silobus.Round) -> None:
        rnd.load(model, share=SHARE)
        rnd.submit(model, samples=8, steps=1)

    with pytest.raises(
        silobus.NoProximalTerm, match=r"wants FedProx's term \(proximal_mu is 0\.5\), and the script has none"
    ):
        run(given(weights=shared(model), hyperparameters={"proximal_mu": 0.5}), body)
    run(given(weights=shared(model), hyperparameters={"proximal_mu": 0}), body)
    run(given(weights=shared(model), hyperparameters={"lr": 0.5}), body)


def test_a_script_may_add_the_term_by_a_formula_of_its_own(given: Given, run: Run, alone: Callable[..., None]) -> None:
    model, found = Net(), []

    def body(rnd: silobus.Round) -> None:
        rnd.load(model, share=SHARE)
        if rnd.trains:
            found.append(rnd.proximal_mu)
            rnd.submit(model, samples=8, steps=1)

    run(given(weights=shared(model), hyperparameters={"proximal_mu": 0.5}), body)
    run(given(weights=shared(model)), body)
    alone(body)
    assert found == [0.5, 0.0, 0.0]


def test_what_is_called_in_the_wrong_place_says_so(given: Given, run: Run) -> None:
    weights = shared(Net())

    def early(rnd: silobus.Round) -> None:
        with pytest.raises(RuntimeError, match=r"proximal\(\) came before load"):
            rnd.proximal(Net())
        rnd.load(Net(), share=SHARE)
        with pytest.raises(TypeError, match="none of the shared tensors is a torch parameter"):
            rnd.proximal({"body.weight": torch.zeros(4, 3)})
        rnd.submit(Net(), samples=1, steps=1)

    def evaluating(rnd: silobus.Round) -> None:
        rnd.load(Net(), share=SHARE)
        for call in (rnd.proximal, rnd.correct):
            with pytest.raises(RuntimeError, match="is for rounds that train, not to evaluate"):
                call(Net())

    run(given(weights=weights, hyperparameters={"proximal_mu": 0.1}), early)
    run(given("evaluate", weights=weights), evaluating)
    with pytest.raises(ValueError, match="proximal_mu is -1"):
        run(given(weights=weights, hyperparameters={"proximal_mu": -1}), _asks_for_the_term)


def _asks_for_the_term(rnd: silobus.Round) -> None:
    model = Net()
    rnd.load(model, share=SHARE)
    rnd.proximal(model)


# --- SCAFFOLD ----------------------------------------------------------------------------------------------------

LR, STEPS = 0.05, 3


def loss(model: Net, seed: int) -> torch.Tensor:
    """One silo has no gradient for `idle`, and moves it with the others all the same."""
    error = model(batch(seed)).square().mean()
    return error if seed == 0 else error + (model.idle - 3).square().sum()


def trains(model: Net, seed: int, *, corrects: bool = True) -> Callable[[silobus.Round], None]:
    def body(rnd: silobus.Round) -> None:
        rnd.load(model, share=SHARE)
        for _ in range(STEPS):
            model.zero_grad()
            loss(model, seed).backward()
            if corrects:
                rnd.correct(model)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(LR * parameter.grad)
        rnd.submit(model, samples=8, steps=STEPS, lr=LR)

    return body


def by_the_paper(start: Tensors, c: Tensors, c_i: Tensors, own: Tensors, seed: int) -> tuple[Tensors, Tensors, Tensors]:
    """Algorithm 1, lines 8 to 13, in float64: y_i, the new c_i, and the model's private tensors."""
    model = Net()
    model.load_state_dict({**start, **own})
    named = {name: p for name, p in model.named_parameters() if p.requires_grad and p.numel()}
    for _ in range(STEPS):
        grads = torch.autograd.grad(loss(model, seed), list(named.values()), allow_unused=True)
        with torch.no_grad():
            for (name, parameter), grad in zip(named.items(), grads, strict=True):
                step = torch.zeros_like(parameter) if grad is None else grad
                parameter.sub_(LR * (step - c_i.get(name, 0) + c.get(name, 0)))
    trained = shared(model)
    renewed = {name: c_i[name] - c[name] + (start[name] - trained[name]) / (STEPS * LR) for name in TRAINED}
    return trained, renewed, {name: t for name, t in model.state_dict().items() if name.startswith("own.")}


def test_control_variates_over_rounds_are_the_papers(given: Given, run: Run) -> None:
    """Two silos, three rounds; the server does what Algorithm 1 says, with both silos in every round."""
    torch.manual_seed(0)
    x = shared(Net())
    own = [{name: t.clone() for name, t in Net().state_dict().items() if name.startswith("own.")} for _ in range(2)]
    zeros = {name: torch.zeros(x[name].shape, dtype=torch.float64) for name in TRAINED}
    c, c_i = zeros, [zeros, zeros]
    told: Tensors | None = None
    states: list[Path | None] = [None, None]
    for number in range(3):
        trained, changes, after = [], [], []
        for silo in range(2):
            model = Net()
            model.load_state_dict({**x, **own[silo]})
            made = given(weights=x, control=told, state=states[silo], roles=BOTH, round=number + 1)
            done = run(made, trains(model, seed=silo))
            expected, renewed, own[silo] = by_the_paper(x, c, c_i[silo], own[silo], silo)
            for name, tensor in expected.items():
                torch.testing.assert_close(done.update[name], tensor, rtol=1e-6, atol=1e-7)
            assert done.change.keys() == {name for name, t in x.items() if t.is_floating_point()}
            for name, tensor in done.change.items():
                assert tensor.dtype == torch.float32
                if name in TRAINED:
                    change = (renewed[name] - c_i[silo][name]).float()
                    torch.testing.assert_close(tensor, change, rtol=1e-4, atol=1e-5)
                else:
                    assert not tensor.any()
            trained.append(done.update)
            changes.append(done.change)
            after.append(renewed)
            states[silo] = done.target / "state"
        x = {
            name: (trained[0][name] + trained[1][name]) / 2 if x[name].is_floating_point() else trained[0][name]
            for name in x
        }
        c = {name: c[name] + sum(after[silo][name] - c_i[silo][name] for silo in range(2)) / 2 for name in TRAINED}
        told = told or {name: torch.zeros_like(tensor) for name, tensor in changes[0].items()}
        told = {name: tensor + (changes[0][name] + changes[1][name]) / 2 for name, tensor in told.items()}
        c_i = after


def test_a_try_that_is_made_again_gives_the_same_change(given: Given, run: Run) -> None:
    torch.manual_seed(0)
    model, weights = Net(), shared(Net())
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = run(given(weights=weights, roles=BOTH), trains(model, 1))
    for state in (None, first.target / "state"):
        done = []
        for _ in range(2):
            model.load_state_dict(start)
            done.append(run(given(weights=weights, roles=BOTH, state=state), trains(model, 1)))
        names = [path.relative_to(done[0].target) for path in done[0].target.rglob("*.safetensors")]
        assert len(names) == 4
        assert all((done[0].target / name).read_bytes() == (done[1].target / name).read_bytes() for name in names)


def test_control_variates_without_a_correction_of_every_step_are_refused(given: Given, run: Run) -> None:
    weights = shared(Net())
    made = given(weights=weights, roles=BOTH)
    with pytest.raises(silobus.NotCorrected, match=r"3 steps were submitted, but correct\(\) was called 0 times"):
        run(made, trains(Net(), 1, corrects=False))
    assert not (made.target / "report.json").exists()

    def without_lr(rnd: silobus.Round) -> None:
        model = Net()
        rnd.load(model, share=SHARE)
        rnd.correct(model)
        with pytest.raises(RuntimeError, match=r"correct\(\) was given another model"):
            rnd.correct(Net())
        with pytest.raises(ValueError, match="a learning rate is greater than 0"):
            rnd.submit(model, samples=1, steps=1, lr=0)
        rnd.submit(model, samples=1, steps=1)

    with pytest.raises(silobus.NotCorrected, match=r"give submit\(\) the learning rate"):
        run(given(weights=weights, roles=BOTH), without_lr)


def test_control_variates_that_do_not_fit_are_refused(given: Given, run: Run) -> None:
    weights = shared(Net())
    control = {name: torch.zeros(t.shape) for name, t in weights.items() if t.is_floating_point()}
    for name, wrong in (("scale", torch.zeros(1)), ("scale", torch.zeros((), dtype=torch.float64))):
        with pytest.raises(ValueError, match=r"'scale' is no float32 control variate of shape \[\]"):
            run(given(weights=weights, roles=BOTH, control={**control, name: wrong}), trains(Net(), 1))


@pytest.mark.parametrize("role", ["weights", "control"])
def test_a_file_other_than_the_one_announced_is_not_loaded(role: str, given: Given, run: Run) -> None:
    weights = shared(Net())
    made = given(weights=weights, roles=BOTH, control={"scale": torch.zeros(())})
    path = made.source / f"{role}.safetensors"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{role}\.safetensors is not the file that round\.json describes"):
        run(made, trains(Net(), 1))


def test_an_agent_on_this_machine_has_verified_what_it_gives_and_verifies_what_it_gets(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its bytes is read once here, and written once; no digest is made of any."""
    made = given(weights=shared(Net()), roles=BOTH, control={"scale": torch.zeros(())})
    monkeypatch.setattr("silobus.files.hashlib", None)
    rnd = FederatedRound(made.source, made.target, defaults={}, writes=True, hashes=False)
    trains(Net(), 1)(rnd)
    rnd.finish()
    report = json.loads((made.target / "report.json").read_text())
    for role in ("update", "control"):
        assert report[role] == {"bytes": (made.target / f"{role}.safetensors").stat().st_size}
