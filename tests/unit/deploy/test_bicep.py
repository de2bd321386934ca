"""The reader itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.deploy.bicep import deploy
from tests.unit.deploy.bicep_syntax import Wrong


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("param a string\n", "needs the parameter a"),
        ("param a string = 1\nvar b = a\noutput c string = b\n", "should be of type string"),
        ("@allowed(['x'])\nparam a string = 'y'\noutput b string = a\n", "may be"),
        ("output a string = b\n", "nothing is called b"),
        ("var a = 1\n", "nothing uses"),
        ("output a string = foo('x')\n", "no function foo"),
        ("output a string = {b: 1}.c\n", "there is no c"),
        ("resource a 'X.Y/z@1' = {\n", "not Bicep"),
        ("module a 'b.bicep' = {\n  name: 'b'\n  params: {\n    c: 1\n  }\n}\n", "has no parameter"),
    ],
)
def test_a_slip_in_a_template_is_seen(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "b.bicep").write_text("param d int = 1\noutput e int = d\n")
    (tmp_path / "a.bicep").write_text(text)
    with pytest.raises(Wrong, match=why):
        deploy(tmp_path / "a.bicep", "group", {})


def test_precedence_is_that_of_bicep(tmp_path: Path) -> None:
    (tmp_path / "a.bicep").write_text(
        "var x = { b: 'y', c: 2 }\n"
        "output a bool = x.b == 'y' && x.c != 1 || false\n"
        "output b int = !empty(x.b) && x.c == 3 ? 1 : x.b == 'z' ? 2 : 3\n"
        "output c array = filter([1, 2], n => n == x.c && x.b != '}${x.b}')\n"
    )
    _, told = deploy(tmp_path / "a.bicep", "group", {})
    assert told == {"a": True, "b": 3, "c": [2]}
