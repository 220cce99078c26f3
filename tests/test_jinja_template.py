"""Published chat templates: what they make, as transformers does, and what they cannot do."""

from __future__ import annotations

import time

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from axon_core import DataError, UsageError
from axon_core.text import ByteTokenizer, JinjaTemplate, Message, template_limits
from axon_core.text.template_sandbox import _compiled, rendered_chat

SAID = [
    Message(role="system", content="Be <b>brief</b> & kind."),
    Message(role="user", content=" Hi\nthere "),
    Message(role="assistant", content="<think>\nHm.\n</think>\n\nHello"),
    Message(role="user", content="And now? é 'x'"),
]
TEXT = "{% set b = 'a' * 2000000 %}"
NEST = "{% set ns = namespace(a=1) %}{% for i in range(40) %}{% set ns.a = [ns.a] %}{% endfor %}"
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
    "llama3": """{{- bos_token }}
{%- if not date_string is defined %}{%- if strftime_now is defined %}
{%- set date_string = strftime_now("%d %b") %}{%- else %}{%- set date_string = "26 Jul" %}{%- endif %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}{{- "Environment: ipython\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.content is mapping or message.content is iterable %}{{- message.content | tojson }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}""",
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("conversation roles must alternate") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" and loop.last and system_message is defined %}
        {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
    {%- elif message["role"] == "user" %}{{- "[INST] " + message["content"] + "[/INST]" }}
    {%- else %}{{- " " + message["content"]|trim + eos_token }}{%- endif %}
{%- endfor %}{{- user_messages | length }}{{- user_messages[-1] == message }}""",
    "qwen3": """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and
        not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- set reasoning_content = '' %}
    {%- if '</think>' in content %}
        {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {%- if loop.index0 > ns.last_query_index or loop.last %}
        {{- '<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
    {%- else %}{{- '<|im_start|>' + message.role + '\n' + content }}{%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}""",
    "macros": """
{%- macro line(text, indent=2) -%}{{ text.replace("\n", " | ") | indent(indent, true) }}{%- endmacro -%}
{% set kinds = {"user": "U", "system": "S"} %}{% set said %}{{ line(messages[1].content) }}{% endset %}
{% for key, value in kinds.items() %}{{ loop.index }}{{ key ~ ": " ~ value }}
{% if not loop.last %}, {% endif %}{% endfor %}
{{ said }}{{ ["a", "b"] + ["c"] }}{{ messages | map(attribute="role") | join(", ") }}{{ "-" * 3 }}
{{ ["x", "y"] | reject("equalto", "x") | list }}{{ kinds | dictsort }}{{ kinds.get("none", "?") }}
{{ 7 // 2 }}{{ 7 / 2 }}
{{ messages | map(attribute="content") | map("trim") | join("\n") | upper }}
{{ "a\nb\n" | indent }}{{ 3.14159 | round(2) }}
{% for m in messages if m.role != "system" %}{% if loop.index > 2 %}{% break %}{% endif %}
{{ m.role | title }}{% endfor %}
{% generation %}{% set kinds = 1 %}{% endgeneration %}{{ kinds | length }}{{ "3" | int + 1 }}{{ ", ".join(["p", "q"]) }}
{{ messages[0].content.splitlines() }}{{ "a,b,c".rsplit(",", 1) }}{{ "abc".partition("b") }}
{{ [3, 1, 2] | sort | first }}
{{ [1, 1, 2] | unique | list }}{{ messages | last }}{{ "x" | default("y") }}{{ nothing | default("z") }}
{{ "%d" in "a%d" }}""",
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
        ("{{ lipsum(1) }}", DataError, "'lipsum' is undefined; use `axon generate` instead, or correct the template"),
        ("{{ [1] | slice(3) | list }}", DataError, "No filter named 'slice'"),
        ("{{ [1] | batch(3, 'x') | list }}", DataError, "No filter named 'batch'"),
        ("{{ [[1]] | sum(start=[]) }}", DataError, "No filter named 'sum'"),
        ("{{ '%9d' % 1 }}", DataError, "computes str % int, which is for numbers alone"),
        ("{{ ('%9d' | safe) % 1 }}", DataError, "computes Markup % int"),
        ("{{ '%9d' is odd }}", DataError, "computes with a text of 3 characters"),
        ("{{ '%9d' is divisibleby(1) }}", DataError, "computes with a text of 3 characters"),
        ("{{ '{:>9}'.format(1) }}", DataError, "calls format, which chat templates may not"),
        ("{{ '{a}'.format_map({'a': 1}) }}", DataError, "calls format_map"),
        ("{{ (1).to_bytes(9, 'big') }}", DataError, "calls int.to_bytes"),
        ("{{ 'a'.translate({97: 'bb'}) }}", DataError, "calls str.translate"),
        ("{{ cycler() }}", DataError, "'cycler' is undefined"),
        ("{{ 'x' | dictsort }}", DataError, "cannot be used: 'str' object has no attribute 'items'"),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, DataError, "too many statically nested blocks"),
        ("{{ " + "(" * 3000 + ")" * 3000 + " }}", DataError, "maximum recursion depth exceeded"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", DataError, "maximum recursion depth exceeded"),
        (TEXT + "{{ b | replace('a', 'xxxxx') }}", DataError, "makes a text of more than 4,194,304 characters"),
        (TEXT + "{{ b.replace('a', 'xxxxx') }}", DataError, "makes a text of more than"),
        (TEXT + "{{ [b, b] | join(b) }}", DataError, "makes a text of more than"),
        (TEXT + "{{ b.join('abc') }}", DataError, "makes a text of more than"),
        (TEXT + "{{ b ~ b ~ b }}", DataError, "makes a text of more than"),
        (TEXT + "{% set x %}{{ b }}{{ b }}{{ b }}{% endset %}", DataError, "makes a text of more than"),
        (TEXT + "{{ [b, b, b, b, b] }}", DataError, "makes a text or list of more than 8 MiB"),
        (TEXT + "{% macro m() %}{{ varargs }}{% endmacro %}{{ m(b, b, b, b, b) }}", DataError, "more than 8 MiB"),
        (TEXT + "{{ b | list }}", DataError, "makes a list of more than 131,072 items"),
        (TEXT + "{{ b | sort }}", DataError, "makes a list of more than 131,072 items"),
        (TEXT + "{{ b.split('a') }}", DataError, "splits a text into more than 131,072 pieces"),
        ("{{ ('\n' * 200000).splitlines() }}", DataError, "splits a text into more than 131,072 pieces"),
        (TEXT + "{% for i in range(300) %}{% set c = b[1:] %}{% endfor %}", DataError, "makes more than 256 MiB"),
        ("{{ 'x'.strip('y' * 300) }}", DataError, "strips or seeks from the right a text of more than 256"),
        ("{{ 'x' | trim('y' * 300) }}", DataError, "strips or seeks from the right"),
        ("{{ 'x'.rfind('y' * 300) }}", DataError, "strips or seeks from the right"),
        ("{{ ('a\n' * 1000) | indent(5000) }}", DataError, "makes a text of more than"),
        ("{{ [1] | tojson(indent=9) }}", DataError, "indents JSON by more than 8"),
        ("{{ [1] | tojson(separators=('a' * 9, ':')) }}", DataError, "separates JSON by more than 8"),
        ("{{ 1.5 | round(17, 'ceil') }}", DataError, "rounds to 17 digits"),
        ("{{ ('9' * 300) | int }}", DataError, "computes with a text of 300 characters"),
        ("{{ strftime_now('%Y' * 200) }}", DataError, "writes the time in a style of more than 256"),
        ("{{ range(0, 9223372036854775807, 4611686018427387904) | list }}", DataError, "counts to more than"),
        ("{{ range(100001) }}", DataError, "counts to more than 100,000"),
        ("{% include 'x' %}", DataError, "uses {% include %}, which chat templates may not"),
        ("{% autoescape true %}{% endautoescape %}", DataError, "uses {% autoescape %}"),
        ("{% block a %}{% endblock %}", DataError, "uses {% block %}"),
        ("{% set ns = namespace(_a=1) %}", DataError, "names _a in a namespace"),
        (NEST + "{{ ns.a }}", DataError, "nests lists more than 32 deep"),
        ("x" * 131073, DataError, "has 131,073 characters, more than 131,072"),
        ("{{ 'x'.ljust(10000000) }}", DataError, "cannot be used"),
        ("{{ 'x' | center(10000000) }}", DataError, "cannot be used"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_templates_that_are_refused(source, error, message):
    with pytest.raises(error, match=message):
        rendered_chat(source, messages=[])


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
        "{% for a in r %}{% for b in r if false %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
        "{% set l = r | list %}{{ r | map('string') | select('in', l) | list }}",
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ([ns] * 999) | map(attribute='a' ~ '.a' * 9999) | list }}",
        "{% set b = [1] * 90000 %}{% set c = [1] * 90000 %}{% if " + " == ".join(["b", "c"] * 4000) + " %}{% endif %}",
    ],
    ids=["loops", "filtered loops", "macros", "tests", "attributes", "comparisons"],
)
def test_time_is_watched_within_each_step(source, monkeypatch):
    monkeypatch.setattr(template_limits, "_SECONDS", 0.1)
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"it runs for more than 0\.1 seconds; use `axon generate`"):
        rendered_chat("{% set r = range(100000) %}" + source)
    assert time.monotonic() - begin < 20  # the second is that of compiling, on a busy machine


def test_lists_that_share_their_parts_count_as_they_would_be_written():
    source = "{% set ns = namespace(a=['x']) %}{% for i in range(26) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}"
    with pytest.raises(DataError, match="makes a text or list of more than 8 MiB"):
        rendered_chat(source)


def test_few_compiled_templates_are_kept():
    for number in range(20):
        assert rendered_chat(f"{number}") == f"{number}"
    assert _compiled.cache_info().currsize <= 8


def test_a_text_that_doubles_is_stopped():
    source = (
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}"
    )
    with pytest.raises(DataError, match="the chat template"):
        rendered_chat(source)
