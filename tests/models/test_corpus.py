import hashlib

import numpy as np
import pytest

from refquant.errors import ModelError, RefquantError, UnknownNameError
from refquant.models.corpus import make_corpus, split_documents
from tests.evaluation.memory_model import Letters

LETTERS = Letters()


def ids(corpus):
    return [document.tolist() for document in corpus.documents]


def test_one_text_is_one_document_and_a_list_of_texts_is_many():
    assert ids(make_corpus("abc", LETTERS, 11)) == [[0, 1, 2, 3]]
    assert ids(make_corpus(["ab", "c"], LETTERS, 11)) == [[0, 1, 2], [0, 3]]


@pytest.mark.parametrize("given", [[1, 2, 3], (1, 2, 3), np.array([1, 2, 3]), np.array([1, 2, 3], np.uint16)])
def test_ids_come_in_any_integer_type_and_are_taken_as_they_are(given):
    corpus = make_corpus(given, LETTERS, 11)
    assert ids(corpus) == [[1, 2, 3]]
    assert corpus.bos == "never"
    assert corpus.documents[0].dtype == np.int64


def test_lists_of_ids_and_rows_of_an_array_are_documents():
    assert ids(make_corpus([[1, 2], np.array([3, 4, 5])], None, 11)) == [[1, 2], [3, 4, 5]]
    assert ids(make_corpus(np.array([[1, 2], [3, 4]]), None, 11)) == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("bos", "adds", "given", "expected"),
    [
        ("auto", True, "ab", [0, 1, 2]),
        ("auto", False, "ab", [1, 2]),
        ("auto", True, [1, 2], [1, 2]),
        ("always", False, "ab", [0, 1, 2]),
        ("always", True, [1, 2], [0, 1, 2]),
        ("always", True, [0, 1, 2], [0, 1, 2]),
        ("never", True, "ab", [1, 2]),
    ],
)
def test_bos_stands_where_the_rule_puts_it_and_never_twice(bos, adds, given, expected):
    corpus = make_corpus(given, Letters(adds_bos=adds), 11, bos)
    assert ids(corpus) == [expected]
    assert corpus.bos == ("never" if expected[0] else "always" if bos != "never" else "never")


def test_the_limit_counts_tokens_over_all_documents_but_not_bos():
    assert ids(make_corpus(["abc", "def"], LETTERS, 11, limit=4)) == [[0, 1, 2, 3], [0, 4]]
    assert ids(make_corpus(["abc", "def"], LETTERS, 11, limit=3)) == [[0, 1, 2, 3]]
    assert ids(make_corpus("abc", LETTERS, 11, limit=9)) == [[0, 1, 2, 3]]


def test_the_hash_is_that_of_little_endian_int64_ids():
    expected = hashlib.sha256(b"".join(i.to_bytes(8, "little") for i in (0, 1, 2))).hexdigest()
    assert make_corpus("ab", LETTERS, 11).ids_sha256 == expected
    assert make_corpus([0, 1, 2], None, 11).ids_sha256 == expected


def test_the_hash_tells_where_one_document_ends():
    apart = make_corpus([[1, 2], [3, 4]], None, 11).ids_sha256
    stream = b"".join(i.to_bytes(8, "little", signed=True) for i in (1, 2, -1, 3, 4))
    assert apart == hashlib.sha256(stream).hexdigest()
    assert len({apart, make_corpus([1, 2, 3, 4], None, 11).ids_sha256}) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "empty text"),
        ([], "empty list"),
        (["ab", ""], "document 1: an empty text"),
        ([5], "1 token given; at least 2"),
        (np.array([], np.int64), "0 token"),
        ([[1, 2], [3]], "document 1: 1 token"),
        ([1, 11], "id 11 at index 1 given; the model's vocabulary has ids 0 … 10"),
        ([1, -1], "id -1 at index 1"),
        (np.array([1, 2**64 - 1], np.uint64), "id 18446744073709551615 at index 1"),
        ([1.0, 2.0], "document 0: float64|integers in one row"),
        (np.array([1.0, 2.0]), "float64 of shape"),
        (np.array([True, False]), "bool of shape"),
        (np.zeros((2, 2, 2), np.int64), "in one row"),
        (3, "1 token given"),
        (None, "in one row"),
    ],
)
def test_what_cannot_be_scored_is_refused_and_named(given, message):
    with pytest.raises(RefquantError, match=message):
        make_corpus(given, LETTERS, 11, bos="auto")


def test_a_model_without_tokenizer_or_bos_says_what_to_do():
    with pytest.raises(ModelError, match="no tokenizer: give token ids"):
        make_corpus("ab", None, 11)
    with pytest.raises(ModelError, match="no tokenizer: use 'never'"):
        make_corpus([1, 2], None, 11, bos="always")
    with pytest.raises(ModelError, match="no BOS token"):
        make_corpus("ab", Letters(bos_id=None), 11, bos="always")
    assert make_corpus("ab", Letters(bos_id=None), 11).bos == "never"


def test_a_misspelt_rule_and_a_limit_of_nothing_are_refused():
    with pytest.raises(UnknownNameError, match="'always'"):
        make_corpus("ab", LETTERS, 11, bos="alway")
    with pytest.raises(RefquantError, match="limit = 0"):
        make_corpus("ab", LETTERS, 11, limit=0)


def test_documents_of_a_file_stand_between_separators():
    assert split_documents(" one\n<|e|>\ntwo \nlines\n<|e|>\n\n<|e|>", "<|e|>") == ["one", "two \nlines"]
    with pytest.raises(RefquantError, match="separator"):
        split_documents("one", "")
