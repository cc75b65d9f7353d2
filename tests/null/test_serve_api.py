"""The server against OpenAI's own client, and against what the runtime gives without a server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import openai
import pytest

from dsv2_compile.runtime import Engine, Sampling
from tests import toy_engine
from tests.cli_tools import cli, resealed
from tests.serving import served

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
BOS = {"id": "<bos>", "ids": [257], "tokens": ["<bos>"]}
START = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
BEFORE_TEXTS = {"type": "TemplateProcessing", "single": START, "pair": START, "special_tokens": {"<bos>": BOS}}
"""A text begins with the bos token, as the tokenizers of `synth` have it."""
SETTINGS = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "chat_template": TEMPLATE}


def _with_chat(root, manifest):
    tokenizer = json.loads((root / "tokenizer.json").read_text())
    (root / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": BEFORE_TEXTS}))
    (root / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    return replace(manifest, files={**manifest.files, "tokenizer_config.json": manifest.files["config.json"]})


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    base = tmp_path_factory.mktemp("toy")
    toy_engine.build(base / "plain")
    return resealed(base / "plain", base / "toy", _with_chat)


@pytest.fixture(scope="module")
def engine(toy):
    with Engine.load(toy, threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(toy):
    with served(toy, "--threads", 1) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def greedy(client, prompt="hello", **options):
    return client.completions.create(model="toy", prompt=prompt, temperature=0, **options)


def texts(stream):
    """The text of each choice of a stream of completions, and why it ended."""
    found: dict[int, str] = {}
    finish = {}
    for chunk in stream:
        for c in chunk.choices:
            found[c.index] = found.get(c.index, "") + c.text
            if c.finish_reason:
                assert c.index not in finish
                finish[c.index] = c.finish_reason
    return found, finish


def test_greedy_text_is_that_of_run(client, toy):
    (run,) = cli("run", toy, "hello", "--max-new-tokens", 40, "--json").answer()["completions"]
    whole = greedy(client, max_tokens=40)
    assert whole.choices[0].text == run["text"]
    assert whole.choices[0].finish_reason == run["finish"] == "length"
    assert whole.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 6,
        "completion_tokens": 40,
        "total_tokens": 46,
    }
    assert texts(greedy(client, max_tokens=40, stream=True)) == ({0: run["text"]}, {0: "length"})


def test_a_stream_can_end_with_its_usage(client):
    options = {"max_tokens": 3, "stream": True}
    *chunks, last = greedy(client, **options, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.completion_tokens == 3
    assert all(c.usage is None and c.choices for c in chunks)
    assert all(c.usage is None for c in greedy(client, **options))


def test_prompts_of_every_kind_and_several_answers_to_each(client, engine):
    alone = [greedy(client, p).choices[0].text for p in ("ab", "hello")]
    ids = [engine.text.encode(p) for p in ("ab", "hello")]
    for prompts in (ids, ["ab", "hello"]):
        found = greedy(client, prompts, n=2)
        assert [c.text for c in found.choices] == [alone[0], alone[0], alone[1], alone[1]]
        assert [c.index for c in found.choices] == [0, 1, 2, 3]
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (9, 64)
        streamed, finish = texts(greedy(client, prompts, n=2, stream=True))
        assert [streamed[i] for i in range(4)] == [c.text for c in found.choices]
        assert set(finish.values()) == {"length"}
    assert greedy(client, ids[0]).choices[0].text == alone[0]


def test_token_ids_are_told_on_request(client, engine):
    ids = [t.id for t in engine.generate([[1, 2, 3]], 9)]
    found = greedy(client, [1, 2, 3], max_tokens=9, extra_body={"return_token_ids": True})
    assert found.choices[0].token_ids == ids
    streamed = greedy(client, [1, 2, 3], max_tokens=9, stream=True, extra_body={"return_token_ids": True})
    assert [i for chunk in streamed for i in chunk.choices[0].token_ids] == ids
    assert not hasattr(greedy(client, [1, 2, 3]).choices[0], "token_ids")


def test_random_text_is_that_of_the_runtime_for_the_same_seed(client, engine):
    options = {"prompt": "hello", "max_tokens": 20, "temperature": 5.0, "top_p": 0.9, "extra_body": {"top_k": 50}}

    def text(seed, **more):
        return [c.text for c in client.completions.create(model="toy", seed=seed, **options, **more).choices]

    (wanted,) = engine.generate("hello", 20, Sampling(5.0, 50, 0.9, seed=7)).completions()
    assert text(7) == text(7) == [wanted.text]
    assert text(8) != text(7)
    assert text(None) != text(None)
    several = text(7, n=3)
    assert several[0] == wanted.text
    assert len(set(several)) == 3


@pytest.mark.parametrize("start", [0, 1, 7])
def test_a_stop_string_over_several_tokens_ends_the_text_before_it(client, start):
    """Every token is a byte or less of the text."""
    full = greedy(client, max_tokens=40).choices[0].text
    stop = full[start : start + 3]
    wanted = full[: full.find(stop)]
    stops = ["never to be seen", stop]
    found = greedy(client, max_tokens=40, stop=stops)
    assert (found.choices[0].text, found.choices[0].finish_reason) == (wanted, "stop")
    assert found.usage.completion_tokens < 40
    assert texts(greedy(client, max_tokens=40, stop=stops, stream=True)) == ({0: wanted}, {0: "stop"})


def test_a_text_that_only_begins_a_stop_string_is_whole(client):
    full = greedy(client, max_tokens=40).choices[0].text
    stop = full[-1] + "never"
    assert greedy(client, max_tokens=40, stop=stop).choices[0].text == full
    assert texts(greedy(client, max_tokens=40, stop=stop, stream=True)) == ({0: full}, {0: "length"})


def test_a_stop_token_ends_the_text_and_is_not_in_it(client, engine):
    tokens = [*engine.generate("hello", 9)]
    first = next(i for i, t in enumerate(tokens) if t.id == tokens[4].id)
    found = greedy(client, max_tokens=9, extra_body={"stop_token_ids": [tokens[4].id]})
    assert found.choices[0].text == "".join(t.text for t in tokens[:first])
    assert found.choices[0].finish_reason == "stop"


def test_a_text_ends_where_the_context_is_full(client):
    found = greedy(client, [1] * (toy_engine.MAX_SEQ - 3), max_tokens=100)
    assert found.choices[0].finish_reason == "length"
    assert found.usage.completion_tokens == 4


MESSAGES = [
    {"role": "developer", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]},
]


def test_a_chat_goes_by_the_template_of_the_model(client, engine):
    """Without a second bos token."""
    chat = client.chat.completions.create(model="toy", messages=MESSAGES, temperature=0, max_completion_tokens=20)
    prompt = engine.text.encode("[system]be brief[user]hello[assistant]")
    assert prompt.count(257) == 1
    same = greedy(client, prompt, max_tokens=20)
    assert chat.choices[0].message.content == same.choices[0].text
    assert chat.choices[0].message.role == "assistant"
    assert chat.usage.prompt_tokens == same.usage.prompt_tokens
    assert chat.object == "chat.completion"


def test_a_chat_in_a_stream(client):
    options = {"model": "toy", "messages": MESSAGES, "temperature": 0, "max_tokens": 20, "n": 2}
    whole = client.chat.completions.create(**options)
    said, roles, finish = ["", ""], [], []
    for chunk in client.chat.completions.create(stream=True, **options):
        assert chunk.object == "chat.completion.chunk"
        (c,) = chunk.choices
        said[c.index] += c.delta.content or ""
        roles += [(c.index, c.delta.role)] if c.delta.role else []
        finish += [c.finish_reason] if c.finish_reason else []
    assert said == [c.message.content for c in whole.choices]
    assert roles == [(0, "assistant"), (1, "assistant")]
    assert finish == ["length", "length"]


def test_a_chat_without_a_limit_fills_the_context(client):
    long = [{"role": "user", "content": "x" * (toy_engine.MAX_SEQ - 60)}]
    usage = client.chat.completions.create(model="toy", messages=long, temperature=0).usage
    assert usage.total_tokens == toy_engine.MAX_SEQ + 1


def test_many_at_once_get_what_each_would_get_alone(server, client):
    prompts = ["a" * (1 + i % 7) + "b" * (i % 5) for i in range(48)]
    alone = {p: greedy(client, p).choices[0].text for p in {*prompts}}

    async def one(client, prompt, stream):
        found = await client.completions.create(model="toy", prompt=prompt, temperature=0, stream=stream)
        return "".join([c.choices[0].text async for c in found]) if stream else found.choices[0].text

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60) as client:
            return await asyncio.gather(*(one(client, p, i % 2 == 0) for i, p in enumerate(prompts)))

    assert asyncio.run(all_of_them()) == [alone[p] for p in prompts]


def test_models(client):
    (only,) = client.models.list().data
    assert only.id == "toy"
    assert client.models.retrieve("toy") == only
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_the_client_knows_our_errors(client):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt-9", prompt="x")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match=r"2049 tokens, the engine takes 2048") as long:
        client.completions.create(model="toy", prompt=[1] * 2049)
    assert long.value.code == "context_length_exceeded"


def test_what_fails_in_the_engine_fails_alone(client):
    """A NaN in one sequence of a batch."""
    with pytest.raises(openai.InternalServerError) as failed:
        client.completions.create(model="toy", prompt=[[1, 2], [toy_engine.NAN], [3]], temperature=0)
    assert failed.value.code == "NotANumber"
    with pytest.raises(openai.APIError, match="NaN"):
        list(client.completions.create(model="toy", prompt=[toy_engine.NAN], stream=True))
    assert greedy(client).choices[0].text


def test_metrics_add_up(server, client):
    def values():
        names = ("new_tokens_total", "time_to_first_token_seconds_count", "time_per_output_token_seconds_count")
        return [server.metric(n) for n in names] + [
            server.metric('http_responses_total{path="/v1/completions",code="200"}')
        ]

    before = values()
    greedy(client, ["a", "b"], max_tokens=5)
    assert [after - b for after, b in zip(values(), before, strict=True)] == [10, 2, 8, 1]
    assert server.metric("requests_live") == server.metric("requests_waiting") == 0
    assert server.metric("slots") == toy_engine.MAX_BATCH
    assert server.metric('time_to_first_token_seconds_bucket{le="+Inf"}') == values()[1]
