import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from refquant.errors import RefquantError, UnknownNameError
from refquant.evaluation.windows import METHODS, Window, check_windows, chunked_windows, sliding_windows, windows_of

sizes = st.integers(2, 40)


@given(st.integers(0, 200), sizes, st.data())
def test_sliding_windows_score_every_token_but_the_first_exactly_once(n, window, data):
    stride = data.draw(st.integers(1, window - 1))
    scored = [t for w in sliding_windows(n, window, stride) for t in range(w.first, w.end)]
    assert scored == list(range(1, n))


@given(st.integers(2, 200), sizes, st.data())
def test_every_token_is_seen_after_as_many_others_as_the_overlap_promises(n, window, data):
    stride = data.draw(st.integers(1, window - 1))
    for w in sliding_windows(n, window, stride):
        assert w.end - w.begin <= window
        assert w.fed + 1 == w.end - w.begin
        for t in range(w.first, w.end):
            assert t - w.begin >= min(t, window - stride)


@given(st.integers(2, 200), sizes)
def test_the_smallest_stride_gives_every_token_the_whole_window_before_it(n, window):
    for w in sliding_windows(n, window, 1):
        assert w.begin == max(0, w.end - window)


@given(st.integers(0, 200), sizes)
def test_chunked_windows_are_disjoint_and_score_all_but_their_first_tokens(n, window):
    windows = chunked_windows(n, window)
    scored = [t for w in windows for t in range(w.first, w.end)]
    assert scored == [t for t in range(n) if t % window]
    assert all(w.begin % window == 0 and w.first == w.begin + 1 for w in windows)


def test_windows_are_those_of_the_page():
    assert sliding_windows(10, 4, 2) == [Window(0, 4, 1), Window(2, 6, 4), Window(4, 8, 6), Window(6, 10, 8)]
    assert sliding_windows(3, 4, 2) == [Window(0, 3, 1)]
    assert chunked_windows(9, 4) == [Window(0, 4, 1), Window(4, 8, 5)]
    assert chunked_windows(10, 4)[-1] == Window(8, 10, 9)


@given(st.integers(0, 200), sizes)
def test_per_document_scores_what_one_window_from_the_start_holds(n, window):
    expected = [Window(0, min(n, window), 1)] if n > 1 else []
    assert windows_of("per-document", n, window, window) == expected


@given(st.sampled_from(METHODS), st.integers(-3, 20), st.integers(-3, 20))
def test_numbers_that_make_no_windows_are_refused_with_the_numbers_given(method, window, stride):
    fine = window >= 2 and (1 <= stride < window if method == "sliding" else stride == window)
    assume(not fine)
    with pytest.raises(RefquantError, match=f"{window} given|stride = {stride} given"):
        check_windows(method, window, stride)


def test_a_misspelt_method_is_told_the_near_name():
    with pytest.raises(UnknownNameError, match="'sliding'"):
        check_windows("slidng", 4, 2)
