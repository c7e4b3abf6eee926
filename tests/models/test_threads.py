import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from refquant.models.threads import spread
from tests.models.random_models import LLAMA, random_ids, random_model


def blas_threads():
    return max(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_slices_cover_every_item_once_and_in_order(count, threads):
    with threadpool_limits(threads, user_api="blas"):
        parts = spread(lambda some: list(range(count))[some], count)
    assert [item for part in parts for item in part] == list(range(count))
    assert len(parts) == max(1, min(count, threads))


def test_each_slice_has_a_thread_of_its_own_and_blas_on_one():
    meeting = threading.Barrier(2, timeout=20)

    def work(some):
        meeting.wait()  # a lone thread would wait in vain
        return blas_threads()

    with threadpool_limits(2, user_api="blas"):
        assert spread(work, 2) == [1, 1]
        assert blas_threads() == 2


def test_the_limit_is_lifted_after_an_error():
    def work(some):
        raise KeyError(some.start)

    with threadpool_limits(2, user_api="blas"):
        with pytest.raises(KeyError):
            spread(work, 2)
        assert blas_threads() == 2
        assert len(spread(lambda some: some, 2)) == 2


def test_a_call_within_a_call_runs_at_once():
    with threadpool_limits(2, user_api="blas"):
        assert spread(lambda some: spread(lambda inner: (inner.start, inner.stop), 3), 2) == [[(0, 3)], [(0, 3)]]


def test_hidden_states_do_not_depend_on_the_number_of_threads():
    model, ids = random_model(LLAMA), random_ids(5, 40)
    found = []
    for threads in (1, 2, 4):
        with threadpool_limits(threads, user_api="blas"):
            found.append(model.hidden(ids))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
