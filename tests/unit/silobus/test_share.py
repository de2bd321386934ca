"""Which names go out: the contract's rule for patterns."""

import pytest

from silobus.share import checked, is_shared


@pytest.mark.parametrize(
    ("patterns", "shared", "private"),
    [
        (["*"], ["a", "a.b.c", "with space", "line\nbreak", "", "ß/../x"], []),
        ([], [], ["a"]),
        (["body.*"], ["body.0.weight", "body."], ["body", "Body.0", "xbody.0"]),
        (["*", "!head.*"], ["body.w", "overhead.w"], ["head.w", "head.a.b"]),
        (["!head.*", "*"], ["head.w"], []),  # the last match wins
        (["*", "!head.*", "head.bias"], ["head.bias"], ["head.weight"]),
        (["*", "!*.running_*", "!*.num_batches_tracked"], ["bn.weight"], ["bn.running_var", "bn.num_batches_tracked"]),
        (["layer.[0-2].w"], ["layer.1.w"], ["layer.3.w", "layer.[0-2].w"]),
        (["block?.w"], ["block1.w"], ["block10.w"]),
    ],
)
def test_the_last_pattern_that_matches_decides(patterns: list[str], shared: list[str], private: list[str]) -> None:
    assert [name for name in shared + private if is_shared(name, patterns)] == shared


def test_lists_narrow_each_other_and_never_widen() -> None:
    script, experiment = ["*", "!head.*"], ["*", "!*.bias", "head.bias"]
    names = ["body.weight", "body.bias", "head.weight", "head.bias"]
    assert [name for name in names if is_shared(name, script, experiment)] == ["body.weight"]


@pytest.mark.parametrize("patterns", [["!"], [""], ["*", 3], [None]])
def test_what_is_no_pattern_is_refused_with_its_owner(patterns: list[str]) -> None:
    with pytest.raises(ValueError, match=r"load\(\): .* is not a pattern"):
        checked(patterns, whose="load()")


def test_one_string_is_not_taken_for_a_list_of_letters() -> None:
    with pytest.raises(TypeError, match="not one string"):
        checked("head.*", whose="load()")
