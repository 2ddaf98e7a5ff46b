"""The Snakefile through an engine that exists: jobs are submitted to SLURM, finish, and one that was killed runs again (`tests/slurm.sh` starts a SLURM)."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGIN = importlib.util.find_spec("snakemake_executor_plugin_slurm")
RUNS = bool(PLUGIN and shutil.which("sbatch") and subprocess.run(["sinfo", "--noheader"], capture_output=True, check=False).returncode == 0)
PAGE = "book/runs/smoke/02_search-s0.ipynb"


@pytest.mark.skipif(not RUNS, reason="no SLURM on this machine (sh tests/slurm.sh starts one of one node)")
def test_slurm_finishes_a_job_that_was_killed_once(tmp_path):
    for name in ("book", "georeps"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("runs", "__pycache__", "smoke"))
    for name in ("Snakefile", "_config.yml"):
        shutil.copy(ROOT / name, tmp_path)
    slurm = "--executor slurm --jobs 1 --slurm-no-account --slurm-status-command squeue --slurm-jobname-prefix test --slurm-init-seconds-before-status-checks 3"
    rest = f"--slurm-logdir {tmp_path}/logs --default-resources mem_mb=3000 runtime=20 --config profile=smoke threads=1 --rerun-incomplete -- {PAGE}"
    command = [sys.executable, "-m", "snakemake", *slurm.split(), *rest.split()]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        until = time.monotonic() + 120
        while not (job := running()) and first.poll() is None and time.monotonic() < until:
            time.sleep(1)
        assert job, (tmp_path / "first.log").read_text()[-2000:]
        subprocess.run(["scancel", job], check=True)
        assert first.wait(timeout=180) != 0 and not (tmp_path / PAGE).exists()
    second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert second.returncode == 0 and (tmp_path / PAGE).is_file(), second.stderr[-2000:]


def running() -> str:
    """The number of this test's job that runs, if one does."""
    listed = subprocess.run(["squeue", "--noheader", "--states=RUNNING", "--format=%i %j"], capture_output=True, text=True, check=True).stdout
    return next((line.split()[0] for line in listed.splitlines() if line.split()[1].startswith("test")), "")
