import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from refquant.models.chat import render_chat

pytestmark = pytest.mark.peers

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'What is <b> & "é"?'},
    {"role": "assistant", "content": "A tag."},
    {"role": "user", "content": "Thanks\n"},
]
# The constructs of the templates in use: trimming, namespaces, loop variables, tests, filters, inline conditions.
TEMPLATES = [
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}\n"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{{- bos_token }}\n{%- set ns = namespace(n=0) %}\n  {%- for m in messages if m['role'] != 'system' %}\n"
    "    {%- if loop.last %}[LAST]{% endif %}\n    {%- set ns.n = ns.n + 1 %}{{ ns.n }}:{{ m.content }}\n{% endfor %}",
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}{{ system | upper }}\n"
    "{% for m in messages[1:] %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ m | tojson }}{% endfor %}",
    "{% if tools is defined and tools %}no{% endif %}{% for m in messages %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{{ loop.cycle('a', 'b') }}{% endfor %}{{ messages | tojson(indent=2) }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_render_as_in_transformers(template):
    theirs, _ = render_jinja_template(
        [CONVERSATION], chat_template=template, add_generation_prompt=True, bos_token="<s>"
    )
    assert render_chat(template, CONVERSATION, {"bos_token": "<s>"}) == theirs[0]
