"""Parts of the server by themselves: stop strings, chat templates, histograms."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv2_compile.errors import ModelError
from dsv2_compile.serve import chat
from dsv2_compile.serve.errors import ApiError
from dsv2_compile.serve.metrics import Histogram
from dsv2_compile.serve.stops import StopStrings
from tests import toy_engine

DEEPSEEK = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""What DeepSeek-V2-Chat's does."""
SPACED = """
{%- for message in messages %}
    {%- if loop.index0 > 2 %}{% break %}{% endif %}
    {% if message.role == "user" %}
<user>{{ message | tojson }} {{ message.content | trim }}
    {% else %}
<{{ message.role }}>{{ message.content[:4] }}{{ unk_token is defined }}
    {% endif %}
{% endfor %}
{% if tools is not none %}tools{% endif %}
"""
MESSAGES = [
    {"role": "system", "content": "Be <brief> & äö."},
    {"role": "user", "content": " What is 'MLA'? "},
    {"role": "assistant", "content": "Attention."},
    {"role": "user", "content": "Why?"},
]
SETTINGS = {"bos_token": "<bos>", "eos_token": "<eos>"}


@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_end_a_text_where_they_would_in_the_whole(pieces, stops):
    streamed, seen = "", StopStrings(stops)
    for piece in pieces:
        streamed += seen.push(piece)
        assert not any(stop in streamed for stop in stops)
        if seen.found:
            break
    else:
        streamed += seen.end()
    # by the first piece that completes one; of several, the one that begins first
    first = (n for n in range(len(pieces) + 1) if any(s in "".join(pieces[:n]) for s in stops))
    text = "".join(pieces[: next(first, None)])
    places = [text.find(s) for s in stops if s in text]
    assert seen.found == bool(places)
    assert streamed == (text[: min(places)] if places else text)


def test_what_could_be_a_stop_is_held_back_and_no_more():
    seen = StopStrings(["abc", "bd"])
    assert [seen.push(c) for c in "xabbd"] == ["x", "", "", "ab", ""]
    assert seen.found


@pytest.mark.parametrize("template", [DEEPSEEK, SPACED])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_prompts_are_those_of_transformers(tmp_path, template, count):
    from transformers import PreTrainedTokenizerFast

    (tmp_path / "tokenizer.json").write_text(toy_engine.tokenizer_json())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SETTINGS | {"chat_template": template}))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    wanted = tokenizer.apply_chat_template(MESSAGES[:count], tokenize=False, add_generation_prompt=True)
    found = chat.find(tmp_path)
    assert found is not None
    assert found.prompt(MESSAGES[:count]) == wanted


def write(tmp_path, settings=None, alone=None):
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if alone is not None:
        (tmp_path / "chat_template.jinja").write_text(alone)
    return chat.find(tmp_path)


@pytest.mark.parametrize(
    ("settings", "alone"),
    [
        ({"chat_template": "{{ eos_token }}!", "eos_token": {"content": "E"}}, None),
        ({"chat_template": "other", "eos_token": "E"}, "{{ eos_token }}!"),
        ({"chat_template": [{"name": "t", "template": "x"}, {"name": "default", "template": "E!"}]}, None),
        (None, "E!"),
    ],
)
def test_where_a_template_may_be(tmp_path, settings, alone):
    assert write(tmp_path, settings, alone).prompt([]) == "E!"


@pytest.mark.parametrize("settings", [None, {}, {"chat_template": None}, {"chat_template": []}])
def test_models_without_a_template(tmp_path, settings):
    assert write(tmp_path, settings) is None


@pytest.mark.parametrize("template", ["{% if %}", "{{ a", "{% include 'x' %}{% bad %}"])
def test_what_is_no_template_is_an_error_of_the_model(tmp_path, template):
    with pytest.raises(ModelError, match="malformed"):
        write(tmp_path, {"chat_template": template})


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_what_a_template_refuses_or_may_not_do_is_an_error_of_the_request(tmp_path, template):
    with pytest.raises(ApiError) as e:
        write(tmp_path, {"chat_template": template}).prompt([{"role": "user", "content": "a"}])
    assert e.value.status == 400


def test_a_histogram_counts_up_to_each_bound():
    histogram = Histogram("x", "help", (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.add(value)
    assert [line.partition(" ")[2] for line in histogram.lines() if not line.startswith("#")] == [
        "2",
        "3",
        "4",
        "12.0",
        "4",
    ]
