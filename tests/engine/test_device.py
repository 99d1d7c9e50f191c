"""Which device a process takes."""

import pytest
import torch

from da.config import UserError
from da.engine.dist import pick_device


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert pick_device("auto", long_work=True) == torch.device("cpu")
    assert pick_device("auto") == torch.device("cpu")


def test_a_gpu_that_slurm_gave_and_torch_does_not_see_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    with pytest.raises(UserError, match=r"sees none; install a torch that does, or say run\.device=cpu"):
        pick_device("auto")
    assert pick_device("cpu") == torch.device("cpu")


def test_long_work_in_a_slurm_job_without_a_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert pick_device("auto") == pick_device("cpu", long_work=True) == torch.device("cpu")
    with pytest.raises(UserError, match=r"has no GPU; submit it with --gpus-per-node=1, or say run\.device=cpu"):
        pick_device("auto", long_work=True)
