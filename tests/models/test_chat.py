import json
import sys
from dataclasses import replace

import pytest

from refquant.errors import MissingExtraError, ModelError, RefquantError
from refquant.models import chat, embedded
from refquant.models.chat import encode_chat, render_chat
from refquant.models.tokenizer import load_tokenizer

HELLO = [{"role": "user", "content": 'Hello <b>, "é"'}]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def render(template, messages=HELLO, **special):
    return render_chat(template, messages, special)


def test_a_conversation_ends_where_the_answer_begins():
    system = {"role": "system", "content": "Be brief."}
    assert render(CHATML, [system, *HELLO]) == (
        '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello <b>, "é"<|im_end|>\n<|im_start|>assistant\n'
    )


def test_a_message_is_text_and_not_a_template():
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "{{ 1 + 1 }}"}]) == "{{ 1 + 1 }}"


def test_special_tokens_and_the_absent_tools_are_there_by_name():
    assert render("{{ bos_token }}{{ eos_token }}{{ tools is none }}{{ documents is none }}", bos_token="<s>") == (
        "<s>TrueTrue"
    )


def test_blocks_leave_no_blank_lines():
    assert render("{% if true %}\n  a\n  {% endif %}\nb") == "  a\nb"


def test_tojson_escapes_no_html_and_keeps_the_order_of_keys():
    assert render("{{ messages | tojson }}") == json.dumps(HELLO, ensure_ascii=False)
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=2) }}") == '{\n  "b": 1,\n  "a": 2\n}'


def test_loop_controls_generation_blocks_and_the_date_work():
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("a{% generation %}{{ 1 + 1 }}{% endgeneration %}b") == "a2b"
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refused: roles must alternate"),
        ("{% if %}", "failed: TemplateSyntaxError"),
        ("{{ nobody.name }}", "failed: UndefinedError"),
        ("{{ 1 / 0 }}", "failed: ZeroDivisionError"),
        ("{% include '/etc/passwd' %}", "failed: .*no loader"),
    ],
)
def test_a_template_that_fails_is_an_error_that_says_how(template, message):
    with pytest.raises(ModelError, match=message):
        render(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ raise_exception.__globals__['sys'] }}",
        "{{ self._TemplateReference__context.environment.__class__ }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages | map(attribute='__class__') | list | first }}{{ (messages | attr('__class__')).mro() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({}) }}",
    ],
)
def test_a_template_reaches_no_internals_and_changes_nothing(template):
    with pytest.raises(ModelError, match=r"sandbox forbids|UndefinedError"):
        render(template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{% for i in range(99999) %}{{ 'a' * 99 }}{% endfor %}", "more than 4194304 characters"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{" + "(" * 100_000, "RecursionError"),
    ],
)
def test_a_template_that_asks_for_too_much_is_an_error(template, message):
    with pytest.raises(ModelError, match=message):
        render(template)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the limit on memory")
@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10 ** 11 }}",
        "{{ '%99999999999d' % 1 }}",
        "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    ],
)
def test_a_template_that_fills_the_memory_is_an_error(monkeypatch, template):
    monkeypatch.setattr(chat, "BYTES", 2**28)
    with pytest.raises(ModelError, match="more memory"):
        render(template)


@pytest.mark.parametrize(
    "template",
    ["{{ 9 ** (9 ** 9) }}", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"],
)
def test_a_template_that_runs_for_ever_is_stopped(monkeypatch, template):
    monkeypatch.setattr(chat, "SECONDS", 1)
    with pytest.raises(ModelError, match=r"more than 1 seconds|broke the process"):
        render(template)


def test_a_message_that_is_not_unicode_is_an_error():
    with pytest.raises(RefquantError, match="surrogates not allowed"):
        render(CHATML, [{"role": "user", "content": "\udc80"}])


def test_a_conversation_is_encoded_with_the_special_tokens_of_its_template():
    tokenizer = replace(load_tokenizer(embedded.path()), chat_template="{{ messages[0].content }}!")
    hello = [{"role": "user", "content": "Hi"}]
    assert encode_chat(tokenizer, hello).tolist() == tokenizer.encode("Hi!").tolist()


def test_a_model_without_a_template_says_so():
    with pytest.raises(ModelError, match="no chat template"):
        encode_chat(load_tokenizer(embedded.path()), HELLO)


def test_without_jinja2_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"refquant\[chat\]"):
        render("")
