"""What a training process sees: a list of what is allowed, and nothing of the agent's own."""

import subprocess
import sys
from pathlib import Path

import pytest

from silo_agent.runners.environment import environment, lay_out
from tests.unit.agent.making import task

AGENTS = {
    "PATH": "/usr/bin",
    "LANG": "de_DE.UTF-8",
    "HOME": "/home/agent",
    "SILOBUS_CONNECTION": "SharedAccessKey=secret",
    "AZURE_CLIENT_SECRET": "secret",
    "PYTHONPATH": "/agents",
    "LD_PRELOAD": "/x.so",
}


def test_nothing_of_the_agents_environment_is_passed_on_but_path_and_language(tmp_path: Path) -> None:
    seen = environment(task(), AGENTS, runtime=tmp_path, contract={"SILOBUS_INPUT": "/in"})
    assert set(seen) == {"PATH", "LANG", "HOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "SILOBUS_INPUT"}
    assert "secret" not in str(seen)
    assert seen["PATH"].endswith(":/usr/bin")
    assert seen["LANG"] == "de_DE.UTF-8"
    assert seen["HOME"] == str(tmp_path / "home")
    assert seen["PYTHONPATH"] == str(tmp_path / "lib")


def test_the_owners_variables_are_added_and_cannot_hide_silobus(tmp_path: Path) -> None:
    owners = {"OMP_NUM_THREADS": "1", "PYTHONPATH": "/mine", "HOME": "/my/home"}
    seen = environment(task(environment=owners), AGENTS, runtime=tmp_path, contract={})
    assert seen["OMP_NUM_THREADS"] == "1"
    assert seen["HOME"] == "/my/home"
    assert seen["PYTHONPATH"] == f"{tmp_path / 'lib'}:/mine"


def test_silobus_comes_alone(tmp_path: Path) -> None:
    lay_out(tmp_path)
    lay_out(tmp_path)
    assert [path.name for path in (tmp_path / "lib").iterdir()] == ["silobus"]
    script = "import silobus, sys; print(silobus.__file__)\ntry:\n import messages\nexcept ImportError: print('alone')"
    seen = environment(task(), {}, runtime=tmp_path, contract={})
    # -S: without the site directory, where this project itself may be installed.
    printed = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path += [{str(_site())!r}]\n{script}"],
        env=seen,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert printed == [str(tmp_path / "lib" / "silobus" / "__init__.py"), "alone"]


@pytest.mark.skipif(sys.platform != "linux", reason="there is no such thing elsewhere")
def test_trainers_cannot_read_the_agents_environment_either() -> None:
    script = "import ctypes; from silo_agent.app import hide_from_others as h; h(); print(ctypes.CDLL(None).prctl(3))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "0", "the process is not dumpable, so its /proc is root's"


def _site() -> Path:
    import safetensors

    return Path(safetensors.__file__).parent.parent
