"""Where everything is: names that cannot be confused with each other, and cannot lead outside."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messages import names

experiments = st.from_regex(names.NAME_PATTERN.rstrip("$"), fullmatch=True).filter(lambda n: len(n) <= 40)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)


@given(experiments, st.text(max_size=50), st.binary(max_size=50))
def test_a_run_is_named_after_its_experiment_and_its_start(experiment: str, message_id: str, body: bytes) -> None:
    run = names.run_id(experiment, message_id, body)
    assert re.fullmatch(names.RUN_PATTERN, run)
    assert names.experiment_of(run) == experiment
    assert names.run_id(experiment, message_id, body) == run
    assert names.run_id(experiment, message_id, body + b" ") != run
    assert names.run_id(experiment, message_id + "x", body) != run


def test_message_id_and_body_of_a_start_are_kept_apart() -> None:
    assert names.run_id("e", "ab", b"c") != names.run_id("e", "a", b"bc")


@pytest.mark.parametrize(
    "text", ["", "mnist", "mnist_", "mnist_0123ABCD", "Mnist_0123abcd", "a/b_0123abcd", "mnist_0123abcd\n"]
)
def test_what_is_no_run_id_has_no_experiment(text: str) -> None:
    with pytest.raises(ValueError, match="not a run id"):
        names.experiment_of(text)


@given(experiments, digests, st.integers(0, 99_999))
def test_blobs_are_where_the_documents_say(experiment: str, digest: str, number: int) -> None:
    run = f"{experiment}_0123abcd"
    assert names.weights_blob(run, number, digest) == f"{run}/{number:05d}/{digest}.safetensors"
    assert names.publication_blob(run, number) == f"{run}/{number:05d}/update.json"
    assert names.initial_blob(digest) == f"{digest}.safetensors"
    assert names.head_blob(run) == f"{run}/head.json"
    assert names.experiment_blob(experiment) == f"experiments/{experiment}.json"
    assert names.round_blob(run, number) == f"rounds/{run}/{number:05d}.json"
    assert names.run_blob(run) == f"runs/{run}.json"
    assert names.presence_blob(experiment) == f"presence/{experiment}.json"


def test_rounds_sort_by_name_as_by_number() -> None:
    blobs = [names.round_blob("e_0123abcd", n) for n in (0, 9, 10, 99, 100, 99_999)]
    assert blobs == sorted(blobs)


@given(st.lists(experiments, max_size=6, unique=True))
def test_every_silo_has_queues_and_a_container_of_its_own(silos: list[str]) -> None:
    queues, containers = names.queues(silos), names.containers(silos)
    assert len(set(queues)) == len(queues) == 2 + 2 * len(silos)
    assert len(set(containers)) == len(containers) == 3 + len(silos)
    for silo in silos:
        assert {names.to_silo(silo), names.from_silo(silo)} <= set(queues)
        assert names.updates_of(silo) in containers
        assert names.to_silo(silo) == f"to-{silo}"
        assert names.from_silo(silo) == f"from-{silo}"
    assert names.dead_letters_of("work") == "work/$DeadLetterQueue"


@pytest.mark.parametrize("text", ["", "-a", "a-", "A", "a_b", "a.b", "a/b", "..", "a" * 41, "a\n", "ä"])
def test_what_is_no_name(text: str) -> None:
    assert not re.fullmatch(names.NAME_PATTERN.rstrip("$"), text)
