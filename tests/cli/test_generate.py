import io
import json
import shutil
import subprocess
import sys

import pytest

from refquant.cli import main
from refquant.cli.generate import _guard, _stream
from refquant.models import embedded
from refquant.models.tokenizer import load_tokenizer

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."


def generate(capsys, *arguments):
    code = main(["generate", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_without_arguments_the_embedded_model_tells_its_story(capsys):
    code, out, err = generate(capsys, "--max-tokens", "30")
    assert (code, err) == (0, "")
    assert out == STORY[: len(out) - 1] + "\n"
    assert len(out) > 60


def test_a_prompt_is_continued_and_not_repeated(capsys):
    _, out, _ = generate(capsys, "--prompt", "Once upon a time", "--max-tokens", "12")
    assert out.startswith(", there was a little girl")


def test_a_model_is_a_folder(capsys):
    _, out, _ = generate(capsys, str(embedded.path()), "--max-tokens", "12")
    assert out.startswith("Once upon a time")


def test_json_is_one_document_with_what_was_asked_and_what_came(capsys):
    _, out, err = generate(capsys, "--max-tokens", "5", "--json")
    document = json.loads(out)
    assert err == ""
    assert document["model"] == "stories260K (embedded)"
    assert document["prompt_ids"] == [1]
    assert document["text"] == "Once upon a time,"
    assert len(document["ids"]) == 5
    assert document["finish_reason"] == "max_tokens"
    assert (document["temperature"], document["top_k"], document["top_p"], document["min_p"]) == (0, None, 1, 0)
    assert document["tokens_per_second"] > 0


def test_the_model_stops_at_the_end_of_its_story(capsys):
    document = json.loads(generate(capsys, "--max-tokens", "512", "--json")[1])
    assert document["finish_reason"] in ("eos", "max_positions")
    assert "<s>" not in document["text"]


def test_sampling_repeats_with_the_seed(capsys):
    options = ("--temperature", "1", "--top-k", "40", "--top-p", "0.95", "--min-p", "0.01", "--max-tokens", "30")
    first = generate(capsys, *options, "--seed", "1")
    assert first == generate(capsys, *options, "--seed", "1")
    assert first != generate(capsys, *options, "--seed", "2")


def test_no_bos_changes_what_the_model_sees(capsys):
    document = json.loads(generate(capsys, "--prompt", "Lily", "--no-bos", "--max-tokens", "1", "--json")[1])
    assert document["prompt_ids"][0] != 1


@pytest.fixture
def chat_model(tmp_path):
    """The embedded model with a chat template."""
    folder = shutil.copytree(embedded.path(), tmp_path / "model")
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def test_a_chat_is_rendered_through_the_template(capsys, chat_model):
    arguments = [str(chat_model), "--chat", "Hello", "--system", "Be brief.", "--max-tokens", "1", "--json"]
    document = json.loads(generate(capsys, *arguments)[1])
    expected = load_tokenizer(embedded.path()).encode("<s>system: Be brief.\nuser: Hello\n").tolist()
    assert document["prompt_ids"] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-tokens", "0"], "max_tokens 0 given; it must be at least 1"),
        (["--temperature", "-1"], "temperature -1.0 given; it must be 0"),
        (["--temperature", "nan"], "temperature nan given"),
        (["--top-k", "0"], "top-k 0 given; it must be at least 1"),
        (["--top-p", "2"], "top-p 2.0 given; it must be above 0 and at most 1"),
        (["--min-p", "-1"], "min-p -1.0 given; it must be at least 0"),
        (["--seed", "-1"], "seed -1 given; it must be at least 0"),
        (["--no-bos"], "nothing to start from"),
        (["--prompt", "a\udc80"], "surrogates not allowed"),
        (["--prompt", "a" * 600], "601 tokens given; the model has 512 positions"),
        (["--system", "x"], "--system given without --chat"),
        (["--chat", "x", "--no-bos"], "the chat template says where BOS goes"),
        (["--chat", "x"], "no chat template"),
        (["/nowhere"], "/nowhere"),
    ],
)
def test_bad_usage_is_one_line_that_names_the_limit(capsys, arguments, message):
    code, out, err = generate(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("refquant: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_model_without_a_tokenizer_says_what_is_missing(capsys, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(embedded.path() / name, tmp_path)
    code, _, err = generate(capsys, str(tmp_path))
    assert code == 2
    assert "no tokenizer; generate needs one" in err


@pytest.mark.parametrize("bad", [["--max-tokens", "many"], ["--prompt", "a", "--chat", "b"], ["--nonsense"]])
def test_what_the_parser_refuses_exits_with_2(capsys, bad):
    with pytest.raises(SystemExit) as stopped:
        main(["generate", *bad])
    assert stopped.value.code == 2


class Pipe(io.StringIO):
    """Standard output as its reader sees it: only what was flushed."""

    read_so_far = ""

    def flush(self):
        self.read_so_far = self.getvalue()


def test_each_piece_is_out_before_the_next_token_is_computed(monkeypatch):
    tokenizer = load_tokenizer(embedded.path())
    pipe = Pipe()
    monkeypatch.setattr(sys, "stdout", pipe)

    def tokens():
        text = ""
        for token in tokenizer.encode("was happy 😀"):
            assert pipe.read_so_far == text
            yield token
            text += stream.push(token)

    stream = tokenizer.stream([1])
    _stream(tokens(), tokenizer, [1])
    assert pipe.read_so_far == "was happy 😀\n"


def test_a_reader_that_goes_away_early_is_no_error():
    command = [sys.executable, "-m", "refquant", "generate", "--max-tokens", "200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout.read(4) == b"Once"
        program.stdout.close()  # as `head` does
        assert program.stderr.read() == b""
        assert program.wait(60) == 0


def test_a_terminal_gets_control_characters_as_escapes_and_line_breaks_as_they_are():
    assert _guard("a\x1b[2J\tb\né\x9b\u202e") == "a\\x1b[2J\tb\né\\x9b\\u202e"
