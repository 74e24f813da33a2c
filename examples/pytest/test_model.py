"""Tests that need a GPU: `pytest -n 2 examples/pytest` runs them on two, one for each worker."""

import os
import time

from gpulockd import BlockingLease


def test_the_worker_has_a_gpu(gpu: BlockingLease) -> None:
    """`gpu` is this worker's lease; only its card is visible to CUDA."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == gpu.gpu.uuid


def test_a_model_trains(gpu: BlockingLease) -> None:
    """Every test of the worker has the same GPU, so a model can stay loaded."""
    gpu.progress(50, "training")
    time.sleep(0.2)


def test_something_else() -> None:
    """Tests that do not ask for `gpu` do not wait for one."""
