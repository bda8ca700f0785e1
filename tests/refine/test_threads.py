from __future__ import annotations

import os
import threading

import pytest
import torch

from tagmask.errors import TagmaskError
from tagmask.refine import PAMR, PAR, VARM
from tagmask.refine.threads import for_each, worker_count

CPU = torch.device("cpu")


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("build", [PAR, PAMR, VARM])
def test_same_result_on_any_number_of_threads(build) -> None:
    images, maps = torch.rand(2, 3, 90, 70), torch.rand(2, 12, 20, 20)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(build(iterations=3)(images, maps))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-6)


def test_threads_work_alone_and_torch_keeps_its_number(three_threads) -> None:
    if worker_count(CPU) == 1:
        pytest.skip("this torch shares its threads differently")
    seen, lock, barrier = [], threading.Lock(), threading.Barrier(3)

    def work(part: slice) -> None:
        barrier.wait(timeout=20)  # passes only if three parts are worked on at once
        with lock:
            seen.append((part.start, torch.get_num_threads(), torch.is_grad_enabled()))

    for_each(work, [slice(i, i + 1) for i in range(3)], CPU)
    assert sorted(seen) == [(0, 1, False), (1, 1, False), (2, 1, False)]
    assert torch.get_num_threads() == 3
    fresh: list[int] = []
    thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert fresh == [3]


def test_inference_mode_and_errors_cross_threads(three_threads) -> None:
    images, maps = torch.rand(3, 3, 40, 40), torch.rand(3, 30, 10, 10)
    expected = PAR(iterations=2)(images, maps)
    with torch.inference_mode():
        torch.testing.assert_close(PAR(iterations=2)(images.clone(), maps.clone()), expected)
    maps[2, 0, 0, 0] = float("nan")
    with pytest.raises(TagmaskError, match="the maps hold NaN"):
        PAR()(images, maps)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore")
def test_works_after_a_fork(three_threads) -> None:
    PAR(iterations=1)(torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8))  # the parent's threads exist
    child = os.fork()
    if child == 0:
        done: list[int] = []
        try:
            for_each(lambda part: done.append(part.start), [slice(i, i + 1) for i in range(3)], CPU)
        finally:
            os._exit(0 if sorted(done) == [0, 1, 2] else 1)
    for _ in range(200):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        threading.Event().wait(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the forked process hangs")
    assert os.waitstatus_to_exitcode(status) == 0
