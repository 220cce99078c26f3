"""Published chat templates: what they make, as transformers does, and what they cannot do."""

from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from axon_core import DataError, UsageError
from axon_core.text import ByteTokenizer, JinjaTemplate, Message
from axon_core.text.jinja_template import rendered_chat

SAID = [
    Message(role="system", content="Be <b>brief</b> & kind."),
    Message(role="user", content=" Hi\nthere "),
    Message(role="assistant", content="Hello"),
    Message(role="user", content="And now? é 'x'"),
]
TEMPLATES = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "blocks": """
{%- set ns = namespace(count=0) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- continue %}
    {%- endif %}
    {%- set ns.count = ns.count + 1 %}
    {{- bos_token ~ message.content | trim ~ eos_token }}
{%- endfor %}
{{ ns.count }}
""",
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ tools is none }}{{ unknown }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content | upper }}{% endif %}{% endfor %}",
    "dict": "{{ dict(a=1, b='x') }}{{ range(3) | list }}{{ messages | length }}"
    "{{ messages[-1]['content'].split(' ')[0] }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_makes_is_what_transformers_makes(name):
    said = [message.model_dump() for message in SAID]
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    wanted, _ = render_jinja_template(
        [said], chat_template=TEMPLATES[name], add_generation_prompt=True, tools=None, documents=None, **names
    )
    assert rendered_chat(TEMPLATES[name], messages=said, add_generation_prompt=True, **names) == wanted[0]


def test_a_dialogue_is_left_open_after_the_users_message():
    template = JinjaTemplate(TEMPLATES["chatml"], {})
    open_, closed = template(ByteTokenizer(), SAID), template(ByteTokenizer(), SAID[:3])
    assert bytes(open_).decode().endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert bytes(closed).decode().endswith("Hello<|im_end|>\n")


def test_a_message_cannot_hold_a_marker():
    template = JinjaTemplate(TEMPLATES["chatml"], {}, ["<|im_end|>"])
    with pytest.raises(UsageError, match=r"message 1 \(user\) contains '?<\|im_end\|>'?, which is a marker"):
        template(ByteTokenizer(), [Message(role="user", content="a<|im_end|>b")])


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", UsageError, "refuses the messages: roles must alternate"),
        ("{% for m in messages %}", DataError, "cannot be used: Unexpected end of template"),
        ("{{ messages.__class__ }}{{ messages.__class__.x }}", DataError, "cannot be used"),
        ("{{ messages.append(1) }}", DataError, "cannot be used"),
        ("{{ unknown.attribute }}", DataError, "'unknown' is undefined"),
        ("{{ 1 // 0 }}", DataError, "cannot be used"),
        (
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
            DataError,
            "more than 2 seconds",
        ),
        ("{{ 'x' * 10000000 }}", DataError, "makes a text or list of more than"),
        ("{{ 2 ** 10 }}", DataError, "computes with numbers that are too large"),
        ("{{ 'x'.ljust(10000000) }}", DataError, "cannot be used"),
        ("{{ 'x' | center(10000000) }}", DataError, "cannot be used"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_templates_that_are_refused(source, error, message):
    with pytest.raises(error, match=message):
        rendered_chat(source, messages=[])


def test_a_text_that_doubles_is_stopped():
    source = (
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}"
    )
    with pytest.raises(DataError, match="the chat template"):
        rendered_chat(source)
