"""Child that quantizes files of a sharded model: `python -m worker.runner_shard`, each folder a line of its input.

As the runner it has no network, no database and no secrets. Its memory is bounded by the largest tensor of a file.
"""

from __future__ import annotations

import shutil
from typing import Any

import nupes_core
from nupes_core.config import QuantizationConfig
from nupes_core.modelfolder import open_folder
from nupes_core.plan import plan_headers
from worker.childmain import run_told
from worker.emitter import Emitter
from worker.limits import limit_files
from worker.runner import QUANTIZE_PHASES, Reporter, check_disk
from worker.workfolder import SHARD, JobFolder


def run(folder: JobFolder, emitter: Emitter) -> None:
    """Quantize the file; matrices committed by an earlier attempt on this machine are taken as they are."""
    orders: dict[str, Any] = folder.read_orders()
    config = QuantizationConfig.from_dict(orders["config"])
    model = open_folder(folder.model)
    plan = plan_headers(model.headers, model.config, config, formats=orders["formats"])
    check_disk(folder, plan, orders["min_free_disk_bytes"])
    limit_files(plan)
    shutil.rmtree(folder.out / SHARD, ignore_errors=True)
    nupes_core.quantize_shard(
        folder.model,
        folder.out / SHARD,
        config,
        progress=Reporter(emitter, QUANTIZE_PHASES),
        workdir=orders["pieces"],
        formats=orders["formats"],
    )


if __name__ == "__main__":
    run_told(run)
