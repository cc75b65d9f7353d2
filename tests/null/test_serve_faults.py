"""The server against clients that are wrong, slow, too many or gone, and its own end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import pytest

from tests import toy_engine
from tests.cli_tools import cli, ended, told
from tests.serving import SLOW, body, served

LONG = {"max_tokens": 2000, "temperature": 0}
"""20 s on the slow server."""
LIMITS = ("--max-batch", 2, "--max-waiting", 3, "--client-timeout", 1, "--max-body", 20_000)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "toy"
    toy_engine.build(out)
    return out


@pytest.fixture(scope="module")
def server(toy):
    with served(toy, "--threads", 1) as server:
        yield server


@pytest.fixture(scope="module")
def slow(toy):
    with served(toy, "--threads", 1, *LIMITS, setup=SLOW) as server:
        yield server


def until(holds, seconds=10):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def read(s: socket.socket) -> bytes:
    """Up to the end of the connection."""
    found = b""
    while piece := s.recv(1 << 16):
        found += piece
    return found


def quiet(server):
    return server.metric("requests_live") == server.metric("requests_waiting") == 0


def alive(server):
    return server.post("/v1/completions", {"prompt": "hello"}).status == 200


WRONG = {
    "not JSON": (b'{"prompt": "hel', 400, None),
    "not UTF-8": (b'{"prompt": "\xff"}', 400, None),
    "a lone surrogate": (b'{"prompt": "\\ud800"}', 400, None),
    "twice the same": (b'{"prompt": "a", "prompt": "b"}', 400, None),
    "no number": (b'{"prompt": "a", "temperature": NaN}', 400, None),
    "too deep": (b"[" * 100_000, 400, None),
    "no object": (b"[]", 400, None),
    "empty": (b"", 400, None),
    "no prompt": (b"{}", 400, "prompt"),
    "an empty prompt": (body(""), 400, "prompt"),
    "an empty list": (body([]), 400, "prompt"),
    "mixed": (body(["a", 1]), 400, "prompt"),
    "flags as ids": (body([True]), 400, "prompt"),
    "a token that is none": (body([260]), 400, "prompt"),
    "a negative token": (body([-1]), 400, "prompt"),
    "too long": (body([1] * 2049), 400, "prompt"),
    "too many": (body(["a"] * 100, n=2), 400, "n"),
    "an unknown model": (body("a", model="gpt-9"), 404, "model"),
    "an unknown field": (body("a", min_p=0.1), 400, "min_p"),
    "no text": (body("a", model=3), 400, "model"),
    "no tokens": (body("a", max_tokens=0), 400, "max_tokens"),
    "half a token": (body("a", max_tokens=1.5), 400, "max_tokens"),
    "a flag as number": (body("a", max_tokens=True), 400, "max_tokens"),
    "a text as number": (body("a", temperature="1"), 400, "temperature"),
    "colder than greedy": (body("a", temperature=-1), 400, "temperature"),
    "nothing to draw from": (body("a", top_p=0), 400, "top_p"),
    "a text as flag": (body("a", stream="yes"), 400, "stream"),
    "an empty stop": (body("a", stop=""), 400, "stop"),
    "stop among others": (body("a", stop=["x", ""]), 400, "stop"),
    "too many stops": (body("a", stop=["x"] * 17), 400, "stop"),
    "stop ids of text": (body("a", stop_token_ids=["x"]), 400, "stop_token_ids"),
    "usage without a stream": (body("a", stream_options={"include_usage": True}), 400, "stream_options"),
    "log probabilities": (body("a", logprobs=0), 400, "logprobs"),
    "echo": (body("a", echo=True), 400, "echo"),
    "a penalty": (body("a", presence_penalty=0.5), 400, "presence_penalty"),
    "a bias": (body("a", logit_bias={"1": 1}), 400, "logit_bias"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_are_told_what_is_wrong(server, name):
    data, status, param = WRONG[name]
    answer = server.post("/v1/completions", data)
    assert answer.status == status, answer.text
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["param"] == param


def test_what_changes_nothing_is_let_through(server):
    plain = server.post("/v1/completions", body("a", temperature=0)).json["choices"]
    more = {"user": "me", "metadata": {"a": "b"}, "store": True, "echo": False, "logprobs": None, "n": 1, "best_of": 1}
    more |= {"presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "suffix": None, "seed": -3, "stop": []}
    answer = server.post("/v1/completions", body("a", temperature=0, **more))
    assert answer.json["choices"] == plain, answer.text


def test_a_chat_without_a_template_is_refused(server):
    answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})
    assert (answer.status, answer.error["param"]) == (400, "messages")
    assert "no chat template" in answer.error["message"]


@pytest.mark.parametrize(
    ("path", "data", "headers", "status"),
    [
        ("/v1/completions", b"{}", {"content_type": "text/plain"}, 415),
        ("/v1/completions", b"{}", {"content_type": ""}, 415),
        ("/v1/completion", b"{}", {}, 404),
        ("/", b"{}", {}, 404),
        ("/health", b"{}", {}, 405),
    ],
)
def test_wrong_paths_and_types(server, path, data, headers, status):
    answer = server.post(path, data, **headers)
    assert answer.status == status
    assert answer.error["type"] == "invalid_request_error"


def test_405_for_the_wrong_method(server):
    answer = server.get("/v1/completions")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert answer.error


def test_a_body_said_to_be_huge_is_refused_before_it_comes(server):
    with server.raw(None, length=10**12) as s:
        assert s.recv(1 << 16).startswith(b"HTTP/1.1 413 ")


def test_a_hundred_megabytes_are_refused_and_not_kept(server):
    def resident():
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))

    before = resident()
    answer = server.post("/v1/completions", b'{"prompt": "' + b"a" * (100 << 20) + b'"}')
    assert answer.status == 413
    assert answer.error["code"] == "body_too_large"
    assert resident() - before < 30_000
    assert alive(server)


def test_chunks_without_a_length_are_counted(slow):
    with socket.create_connection(("127.0.0.1", slow.port), timeout=30) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        s.sendall(b"transfer-encoding: chunked\r\n\r\n" + b"1000\r\n" + b"a" * 4096 + b"\r\n")
        s.sendall((b"1000\r\n" + b"a" * 4096 + b"\r\n") * 4)
        assert s.recv(1 << 16).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_sends_too_slowly_is_let_go(slow):
    with slow.raw(b'{"prompt"', length=100) as s:
        found = read(s)
    assert found.startswith(b"HTTP/1.1 408 ")
    assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_a_client_that_leaves_in_the_middle_of_a_stream_frees_its_slot(slow):
    cancelled = slow.metric("requests_cancelled_total")
    with slow.raw(body("a", stream=True, **LONG)) as s:
        while b"data: " not in s.recv(1 << 16):
            pass
        assert slow.metric("requests_live") == 1
    until(lambda: quiet(slow), seconds=5)
    assert slow.metric("requests_cancelled_total") == cancelled + 1


def test_a_client_that_leaves_while_it_waits_frees_its_slot_and_its_place(slow):
    """One that is computed and one behind it in the queue; neither wants a stream."""
    cancelled = slow.metric("requests_cancelled_total")
    clients = [slow.raw(body("a", **LONG)) for _ in range(3)]
    until(lambda: slow.metric("requests_live") == 2 and slow.metric("requests_waiting") == 1)
    for s in clients:
        s.close()
    until(lambda: quiet(slow), seconds=5)
    assert slow.metric("requests_cancelled_total") == cancelled + 3


def test_a_client_that_reads_nothing_is_let_go_and_holds_up_nobody(toy):
    """Its stream is more than the buffers on the way hold: chunks have the ids of tokens too."""
    with served(toy, "--threads", 1, "--client-timeout", 1, "--chunk-tokens", 2048) as server:
        many = body(["a"] * 6, stream=True, return_token_ids=True, **LONG)
        with server.raw(many, receive_buffer=4096) as s:
            until(lambda: server.metric("new_tokens_total") > 100)
            began = time.monotonic()
            assert alive(server)
            assert time.monotonic() - began < 10
            counted = 'http_responses_total{path="/v1/completions",code="200"}'
            until(lambda: server.metric(counted) == 2, seconds=20)
            assert quiet(server)
            with pytest.raises(ConnectionError):  # what is in the system's buffers is thrown away with it
                read(s)


def test_a_full_queue_is_429_and_says_when_to_come_back(slow):
    busy = [slow.raw(body("a", **LONG)) for _ in range(2)]
    until(lambda: slow.metric("requests_live") == 2)
    busy += [slow.raw(body("a", **LONG)) for _ in range(3)]
    until(lambda: slow.metric("requests_live") == 2 and slow.metric("requests_waiting") == 3)
    for data in (body("b"), body(["b", "c"], stream=True)):
        answer = slow.post("/v1/completions", data)
        assert (answer.status, answer.error["code"]) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
    assert slow.get("/health").status == 200
    for s in busy:
        s.close()
    until(lambda: quiet(slow))
    assert alive(slow)


def test_a_thousand_at_once_are_all_answered(server):
    async def one(i):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        data = body("a" * (i % 9 + 1), max_tokens=2, temperature=0)
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\nconnection: close\r\n"
        writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + data)
        found = await reader.read()
        writer.close()
        assert json.loads(found.partition(b"\r\n\r\n")[2])
        return int(found.split(b" ", 2)[1])

    async def all_of_them():
        return Counter(await asyncio.gather(*map(one, range(1000))))

    found = asyncio.run(all_of_them())
    assert found.keys() <= {200, 429}
    assert found[200] > 500
    assert quiet(server)
    assert alive(server)


def test_loopback_is_all_that_is_listened_at(server):
    table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    listening = [line.split()[1] for line in table.splitlines() if line.split()[3] == "0A"]
    assert [a for a in listening if int(a.rpartition(":")[2], 16) == server.port] == [f"0100007F:{server.port:04X}"]


def test_an_api_key_is_asked_for_but_by_health(toy, tmp_path):
    (tmp_path / "key").write_text("s3cret\n")
    with served(toy, "--api-key-file", tmp_path / "key", "--name", "a/b") as server:
        for headers in ({}, {"authorization": "Bearer s3cre"}, {"authorization": "s3cret"}):
            answer = server.post("/v1/completions", {"prompt": "a"}, **headers)
            assert (answer.status, answer.error["type"]) == (401, "authentication_error")
        assert server.get("/v1/models").status == server.get("/metrics").status == 401
        assert server.get("/health").status == 200
        right = {"authorization": "Bearer s3cret"}
        assert server.post("/v1/completions", {"prompt": "a", "model": "a/b"}, **right).json["model"] == "a/b"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_stop_lets_running_requests_end_and_takes_no_others(toy, number):
    with served(toy, "--json", setup=SLOW) as server, server.raw(body("a", stream=True, max_tokens=100)) as s:
        first = s.recv(1 << 16)
        server.process.send_signal(number)
        until(lambda: server.get("/health").status == 503)
        refused = server.post("/v1/completions", {"prompt": "b"})
        assert (refused.status, refused.error["code"]) == (503, "shutting_down")
        assert b"[DONE]" in first + read(s)
        ran = ended(server.process)
    told(ran, 128 + number)
    answer = ran.answer()
    assert answer["status"] == "interrupted"
    assert answer["served"]["finished"] == 1
    assert {"path": "/v1/completions", "code": 503, "count": 1} in answer["served"]["responses"]


def test_what_outlasts_the_grace_is_told_so(toy):
    with served(toy, "--grace", 1, setup=SLOW) as server:
        with server.raw(body("a", stream=True, **LONG)) as s, server.raw(body("a", **LONG)) as whole:
            first = s.recv(1 << 16)
            server.process.terminate()
            last = (first + read(s)).split(b"data: ")[-1]
            assert b'"code": "shutting_down"' in last
            assert read(whole).startswith(b"HTTP/1.1 503 ")
        told(ended(server.process), 143)


def test_a_second_signal_ends_it_at_once(toy):
    with served(toy, setup=SLOW) as server, server.raw(body("a", stream=True, **LONG)) as s:
        assert s.recv(1 << 16)
        server.process.terminate()
        until(lambda: server.get("/health").status == 503)
        server.process.terminate()
        assert ended(server.process).code == 143


def test_a_port_in_use(server, toy):
    ran = cli("serve", toy, "--port", server.port)
    assert f"port {server.port}: Address already in use" in told(ran, 2)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (("--host", "no.such.host.invalid"), "no.such.host.invalid"),
        (("--max-batch", 7), "max_batch is 7"),
        (("--max-tokens", 4096), "max_tokens is 4096"),
        (("--api-key-file", "/nonexistent"), "/nonexistent cannot be read"),
        (("--api-key-file", "/dev/null"), "does not hold a key"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(toy, options, cause):
    assert cause in told(cli("serve", toy, "--port", 0, *options), 2)


def test_without_the_extra(toy):
    ran = cli("serve", toy, setup="import sys; sys.modules['uvicorn'] = None")
    assert "needs the Python package uvicorn" in told(ran, 5)
    assert "pip install 'dsv2-compile[serve]'" in ran.lines[-1]


def test_serving_others_without_a_key_is_warned_of(toy):
    with served(toy, "--host", "0.0.0.0", "--json") as server:
        assert server.get("/health").status == 200
        server.process.terminate()
        ran = ended(server.process)
    (warning,) = ran.answer()["warnings"]
    assert "0.0.0.0" in warning


BROKEN = """
from dsv2_compile.runtime.session import Session
def step(self, *a):
    raise RuntimeError("planted")
Session.step = step
"""


def test_a_scheduler_that_breaks_ends_the_server(toy):
    """So that whoever keeps it running starts another."""
    with served(toy, setup=BROKEN) as server:
        answer = server.post("/v1/completions", {"prompt": "a"})
        assert (answer.status, answer.error["type"]) == (500, "server_error")
        ran = ended(server.process)
    assert "RuntimeError: planted" in told(ran, 1)
