"""Files of a checkpoint quantized one by one, and the artifact put together from them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from nupes_core import ExponentConfig, Progress, QuantizationConfig, WeightConfig, quantize, quantize_shard
from nupes_core import plan as planning
from nupes_core.errors import InvalidConfigError, NupesError
from nupes_core.modelfolder import CONFIG_NAME, open_folder
from tests.models import llama

CONFIG = QuantizationConfig(weights=WeightConfig(bits=3, group_size=32))
FORMATS = ("nupes", "dense")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five files."""
    return llama(tmp_path_factory.mktemp("model") / "llama", shard_bytes=90_000)


def split(model: Path, target: Path) -> list[Path]:
    """One folder per file, as a worker fetches it."""
    folders = []
    for name in open_folder(model).headers:
        folder = target / name
        folder.mkdir(parents=True)
        for each in (name, CONFIG_NAME):
            shutil.copy(model / each, folder / each)
        folders.append(folder)
    return folders


def quantize_parts(model: Path, target: Path, config: QuantizationConfig = CONFIG, **options: Any) -> list[Path]:
    done = []
    for part in split(model, target / "in"):
        done.append(target / "done" / part.name)
        quantize_shard(part, done[-1], config, formats=FORMATS, **options)
    return done


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_artifact_of_parts_is_that_of_one_run_to_the_byte(model: Path, tmp_path: Path) -> None:
    done = quantize_parts(model, tmp_path)
    assert len(done) > 3
    whole = quantize(model, tmp_path / "whole", CONFIG, formats=FORMATS)
    work = tmp_path / "work"
    joined = quantize(model, tmp_path / "joined", CONFIG, formats=FORMATS, finished=done, workdir=work)
    assert joined.layers == whole.layers
    assert contents(tmp_path / "joined") == contents(tmp_path / "whole")
    assert not list(work.rglob("*.safetensors")), "nothing was quantized again"


def test_what_is_missing_is_done_by_the_run_that_joins(model: Path, tmp_path: Path) -> None:
    done = quantize_parts(model, tmp_path)[::2]
    quantize(model, tmp_path / "whole", CONFIG, formats=FORMATS)
    steps: list[Progress] = []
    quantize(model, tmp_path / "joined", CONFIG, formats=FORMATS, finished=done, progress=steps.append)
    assert contents(tmp_path / "joined") == contents(tmp_path / "whole")
    quantizing = [step for step in steps if step.phase == "quantizing"]
    assert quantizing[-1].current == quantizing[-1].total


def test_parts_of_other_settings_or_of_another_release_are_passed_over(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = quantize_parts(model, tmp_path / "other", QuantizationConfig(weights=WeightConfig(bits=5, group_size=32)))
    with monkeypatch.context() as context:
        context.setattr("nupes_core.sharded.code_version", lambda: "older")
        old = quantize_parts(model, tmp_path / "old")
    quantize(model, tmp_path / "whole", CONFIG, formats=FORMATS)
    quantize(model, tmp_path / "joined", CONFIG, formats=FORMATS, finished=[*other, *old])
    assert contents(tmp_path / "joined") == contents(tmp_path / "whole")


def test_a_part_that_holds_something_else_than_planned_is_refused(model: Path, tmp_path: Path) -> None:
    done = quantize_parts(model, tmp_path)
    file = done[0] / "nupes" / "model.safetensors"
    file.unlink()
    shutil.copy(done[1] / "nupes" / "model.safetensors", file)
    with pytest.raises(NupesError, match="not laid out as planned"):
        quantize(model, tmp_path / "joined", CONFIG, formats=FORMATS, finished=done)
    assert not (tmp_path / "joined").exists()


@pytest.mark.parametrize(
    "config",
    [
        QuantizationConfig(optimize="data_driven"),
        QuantizationConfig(weights=WeightConfig(exponent=ExponentConfig(scope="global"))),
    ],
)
def test_settings_that_need_all_files_at_once_are_not_split(
    config: QuantizationConfig, model: Path, tmp_path: Path
) -> None:
    assert not config.splits
    with pytest.raises(InvalidConfigError, match="all files"):
        quantize_shard(split(model, tmp_path)[0], tmp_path / "done", config)


def test_a_plan_says_what_each_file_takes(model: Path) -> None:
    plan = planning.plan_folder(model, CONFIG)
    shards = plan.shards()
    assert [shard.name for shard in shards] == sorted(open_folder(model).headers)
    assert sum(shard.params for shard in shards) == plan.params
    assert max(shard.peak_memory_bytes for shard in shards) == plan.peak_memory_bytes
