from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nupes_core.checkpoint import ShardReader, ShardWriter
from nupes_core.diskfile import write_file
from nupes_core.errors import DiskFullError, NupesError, UnsafeFileError
from nupes_core.header import TensorSpec, build_header
from tests.models import checkpoint, gaussian

SPECS = [TensorSpec("w", "BF16", (4, 6)), TensorSpec("codes", "U8", (2, 5)), TensorSpec("b", "F32", (3,))]
CONTENT = {
    "w": gaussian(4, 6, dtype=torch.bfloat16),
    "codes": torch.arange(10, dtype=torch.uint8).view(2, 5),
    "b": gaussian(3),
}


def write(path: Path, order: list[str]) -> None:
    with ShardWriter(path, *build_header(SPECS, {"format": "pt"})) as writer:
        for name in order:
            writer.write(name, CONTENT[name])


def test_the_reference_library_reads_what_was_written_in_any_order(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", ["w", "codes", "b"])
    write(tmp_path / "b.safetensors", ["b", "codes", "w"])
    loaded = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(loaded[name], CONTENT[name]) for name in CONTENT)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_tensor_can_be_written_in_parts(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "m.safetensors", *build_header(SPECS, {})) as writer:
        writer.write("codes", CONTENT["codes"][1], offset=5)
        writer.write("codes", CONTENT["codes"][0], offset=0)
        writer.write("w", CONTENT["w"])
        writer.write("b", CONTENT["b"])
    assert torch.equal(load_file(tmp_path / "m.safetensors")["codes"], CONTENT["codes"])


def test_a_transposed_tensor_is_written_in_its_own_order(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "m.safetensors", *build_header([TensorSpec("w", "BF16", (6, 4))], {})) as writer:
        writer.write("w", CONTENT["w"].t())
    assert torch.equal(load_file(tmp_path / "m.safetensors")["w"], CONTENT["w"].t())


def test_a_file_that_was_not_filled_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(NupesError, match="'codes'"):
        write(tmp_path / "m.safetensors", ["w", "b"])
    assert list(tmp_path.iterdir()) == []


def test_more_bytes_than_announced_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NupesError, match="do not fit"), ShardWriter(tmp_path / "m", *build_header(SPECS, {})) as writer:
        writer.write("b", gaussian(4))
    assert list(tmp_path.iterdir()) == []


def test_reads_tensors_rows_and_chunks(tmp_path: Path) -> None:
    w = gaussian(5, 3, 2, dtype=torch.float16)
    folder = checkpoint(tmp_path / "m", {"w": w, "ids": torch.arange(7)})
    with ShardReader(folder / "model.safetensors") as reader:
        assert torch.equal(reader.read("w"), w)
        assert torch.equal(reader.read_rows("w", 1, 3), w[1:3])
        parts = list(reader.chunks("ids", size=10))
        assert [offset for offset, _ in parts] == [0, 10, 20, 30, 40, 50]
        assert b"".join(bytes(part) for _, part in parts) == torch.arange(7).numpy().tobytes()


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "m", {"w": gaussian(64, 64)}) / "model.safetensors"
    with ShardReader(path) as reader:
        with path.open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(UnsafeFileError, match="ended inside 'w'"):
            reader.read("w")


# A limit on file sizes makes writes fail as on a full disk, without one being filled.
LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from nupes_core.checkpoint import ShardWriter
from nupes_core.diskfile import write_file
from nupes_core.errors import DiskFullError
from nupes_core.header import TensorSpec, build_header
path = Path(sys.argv[1])
try:
    if sys.argv[2] == "small":
        write_file(path, bytes(10_000))
    with ShardWriter(path, *build_header([TensorSpec("w", "U8", (10_000,))], {})) as writer:
        writer.write("w", bytes(10_000))
except DiskFullError as error:
    assert error.hint and path.name in error.message
    sys.exit(7)
"""


@pytest.mark.parametrize("kind", ["shard", "small"])
def test_no_room_is_a_typed_error_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "m.safetensors"), kind], check=False)
    assert done.returncode == 7
    assert list(tmp_path.iterdir()) == []


def test_small_files_replace_what_was_there(tmp_path: Path) -> None:
    write_file(tmp_path / "a.json", b"1")
    write_file(tmp_path / "a.json", b"2")
    assert (tmp_path / "a.json").read_bytes() == b"2"
    assert isinstance(DiskFullError("x"), OSError)
