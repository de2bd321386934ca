"""Files of a round: what the format's own library reads back, digests, and JSON that is never seen half written."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from silobus.files import Entry, TensorFile, write_json, write_tensors


def entry(name: str, array: np.ndarray, code: str = "F32") -> Entry:
    return Entry(name, code, array.shape, lambda: [array.tobytes()])


def taken(file: TensorFile, name: str, *sizes: int) -> bytes:
    """A tensor's bytes, read in pieces of these sizes."""
    pieces = [bytearray(size) for size in sizes]
    with file.reading(name) as take:
        for piece in pieces:
            take(memoryview(piece))
    return b"".join(pieces)


def test_the_formats_own_library_reads_what_was_written(tmp_path: Path) -> None:
    arrays = {
        "scalar": np.array(3.5, dtype=np.float32),
        "empty": np.zeros((0, 4), dtype=np.float32),
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        'hostile "name"\n\\ ü/../..': np.ones(1, dtype=np.float32),
        "": np.ones(2, dtype=np.float32),
    }
    write_tensors(tmp_path / "t", [entry(name, array) for name, array in arrays.items()], hashes=True)
    read = load_file(tmp_path / "t")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].shape == array.shape
        assert (read[name] == array).all()


def test_size_and_digest_are_those_of_the_file(tmp_path: Path) -> None:
    written = write_tensors(tmp_path / "t", [entry("a", np.ones(3, dtype=np.float32))], hashes=True)
    raw = (tmp_path / "t").read_bytes()
    assert (written.bytes, written.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())


def test_order_does_not_change_the_bytes_and_wide_dtypes_come_first(tmp_path: Path) -> None:
    entries = [
        entry("b", np.ones(1, np.uint8), "U8"),
        entry("a", np.ones(3, np.float64), "F64"),
        entry("c", np.ones(2, np.float32)),
    ]
    assert write_tensors(tmp_path / "1", entries, hashes=True) == write_tensors(
        tmp_path / "2", entries[::-1], hashes=True
    )
    header = json.loads((tmp_path / "1").read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert list(header) == ["a", "c", "b"]  # so that every tensor is aligned to its items


@pytest.mark.parametrize("names", [["__metadata__"], ["a", "a"]])
def test_a_name_that_the_format_cannot_hold_is_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ValueError, match="no tensor of a safetensors file can be named"):
        write_tensors(tmp_path / "t", [entry(name, np.ones(1, np.float32)) for name in names], hashes=True)


def test_a_tensor_that_changes_its_size_while_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a' changed while"):
        write_tensors(tmp_path / "t", [Entry("a", "F32", (2,), lambda: [b"1234"])], hashes=True)


def test_one_tensor_is_read_without_the_others(tmp_path: Path) -> None:
    save_file({"a": np.arange(4, dtype=np.int64), "b": np.ones(2, np.float32)}, tmp_path / "t", metadata={"by": "me"})
    file = TensorFile(tmp_path / "t")
    assert file.names == {"a", "b"}
    assert (file.code("a"), file.shape("a")) == ("I64", (4,))
    assert np.frombuffer(taken(file, "a", 8, 24), np.int64).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("raw", [b"", b"\x10", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}trailing"])
def test_what_is_no_safetensors_file_is_named(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "t").write_bytes(raw)
    with pytest.raises(ValueError, match="t is not a safetensors file"):
        TensorFile(tmp_path / "t")


def test_a_file_cut_short_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", [entry("a", np.ones(100, np.float32))], hashes=True)
    file = TensorFile(tmp_path / "t")
    (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:-8])
    with pytest.raises(ValueError, match="changed while it was read"):
        taken(file, "a", 400)


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "j", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "j", {"a": float("nan")})
    assert json.loads((tmp_path / "j").read_text()) == {"a": 1}


def test_json_is_put_in_place_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "j", {"a": 1})
    with (tmp_path / "j").open() as reader:  # one that came before the second
        write_json(tmp_path / "j", {"a": 2})
        assert json.load(reader) == {"a": 1}
    assert json.loads((tmp_path / "j").read_text()) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["j"]
