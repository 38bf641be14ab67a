"""The HTTP server: what it answers to requests that are right, wrong, too large, too many or abandoned."""

import gc
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
from colour_captioner import ColourCaptioner, Serve, chat, data_url, photo, wait_until
from fastapi.testclient import TestClient

from fusion_captioner import image_decoding, image_downloads
from fusion_captioner.serving import request_images
from fusion_captioner.serving.http_app import Limits, create_app
from fusion_captioner.serving.served_captioner import ServedCaptioner

CHAT = "/v1/chat/completions"


@pytest.fixture
def client(captioner: ColourCaptioner) -> Iterator[TestClient]:
    limits = Limits(max_body=2**20, max_pixels=1_000_000)
    with TestClient(create_app(ServedCaptioner(captioner, "colours", takes_prompts=False), limits)) as client:  # type: ignore[arg-type]
        yield client


def error(response: Any, status: int) -> dict[str, Any]:
    """The error of a response, in OpenAI's form, with a message of one line."""
    assert response.status_code == status, response.text
    (found,) = response.json().values()
    assert set(found) == {"message", "type", "param", "code"} and "\n" not in found["message"]
    return found


def check_health(url: str, captioner: ColourCaptioner) -> None:
    """The server is as it was at the start: nothing waits, and it captions."""
    captioner.gate.set()
    wait_until(lambda: httpx.get(f"{url}/healthz").json()["waiting_images"] == 0)
    answer = httpx.post(f"{url}/caption", files={"file": ("after.png", photo(7))})
    assert answer.json() == {"captions": [{"image": "after.png", "caption": "a picture of red 7"}]}


def test_files_of_a_form_are_captioned_in_one_batch(client: TestClient, captioner: ColourCaptioner) -> None:
    files = [("file", (f"{red}.png", photo(red))) for red in (1, 2, 3)]
    answer = client.post("/caption", files=files, data={"prompt": "look:"})
    captions = [{"image": f"{red}.png", "caption": f"look: a picture of red {red}"} for red in (1, 2, 3)]
    assert answer.json() == {"captions": captions}
    assert captioner.batches == [3]
    assert captioner.calls[0]["num_beams"] == 3 and captioner.calls[0]["max_new_tokens"] == 30


def test_a_bad_file_does_not_stop_the_others(client: TestClient) -> None:
    files = [("file", ("good.png", photo(1))), ("file", ("bad.txt", b"words")), ("file", ("empty", b""))]
    answer = client.post("/caption", files=files)
    assert answer.status_code == 200
    good, bad, empty = answer.json()["captions"]
    assert good["caption"] == "a picture of red 1"
    assert bad["error"]["message"].startswith("bad.txt: not an image")
    assert "empty" in empty["error"]["message"]
    answer = client.post("/caption", files=files[1:])
    assert answer.status_code == 400 and answer.json()["error"] == bad["error"]


def test_a_form_without_files(client: TestClient) -> None:
    assert "no file" in error(client.post("/caption", data={"prompt": "a"}), 400)["message"]
    assert "no file" in error(client.post("/caption", content=b"no form"), 400)["message"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png;base64,aGVsbG8=", "not an image"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,%%%", "not base64"),
        ("data:image/png;base64,abc", "not base64"),
        ("data:image/png,abc", "must be of the form data:image/...;base64,"),
        ("data:", "must be of the form"),
        ("", "no URL of an image"),
        ("/etc/passwd", "no URL of an image"),
        ("file:///etc/passwd", "no URL of an image"),
        ("http://127.0.0.1/a.png", "--allow-urls is off"),
        (data_url(photo())[:-60], "damaged"),
    ],
)
def test_a_url_that_is_no_image(client: TestClient, url: str, words: str) -> None:
    found = error(client.post(CHAT, json=chat(url)), 400)
    assert words in found["message"] and (found["param"], found["code"]) == ("messages", "invalid_image")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "valid dictionary"),
        (json.dumps({"model": "colours"}).encode(), "messages: Field required"),
        (json.dumps({"model": "colours", "messages": []}).encode(), "messages: List should have at least 1 item"),
        (json.dumps({"model": "colours", "messages": [{"role": "user", "content": "hi"}]}).encode(), "holds 0"),
        (json.dumps({"model": "colours", "messages": [{"role": "tool", "content": "x"}]}).encode(), "role"),
    ],
)
def test_a_body_that_is_no_request(client: TestClient, body: bytes, words: str) -> None:
    answer = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert words in error(answer, 400)["message"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2"),
        ({"n": 0}, "n: Input should be greater than or equal to 1"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["."]}, "`stop` (['.']) is not supported"),
        ({"frequency_penalty": 0.5}, "`frequency_penalty` (0.5) is not supported"),
        ({"response_format": {"type": "json_object"}}, "`response_format`"),
        ({"logprobs": True}, "`logprobs`"),
        ({"tools": [{"type": "function"}]}, "`tools`"),
    ],
)
def test_a_parameter_that_is_out_of_range_or_not_supported(
    client: TestClient, fields: dict[str, Any], words: str
) -> None:
    assert words in error(client.post(CHAT, json=chat(data_url(photo()), **fields)), 400)["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": "\ud800"},
        {"metadata": {"deep": ["\ud800"]}},
        {"\ud800": None},
        {"model": "\ud800"},
        {"messages": [{"role": "user", "content": "\ud83d"}]},
        {"messages": [{"role": "user", "content": [{"type": "\ud83d", "text": "a"}]}]},
    ],
)
def test_a_lone_surrogate_anywhere(
    client: TestClient, serve: Serve, captioner: ColourCaptioner, fields: dict[str, Any]
) -> None:
    body = json.dumps(chat(data_url(photo()), "what?") | fields)
    for answer in (
        client.post(CHAT, content=body, headers={"Content-Type": "application/json"}),
        httpx.post(serve(takes_prompts=True) + CHAT, content=body, headers={"Content-Type": "application/json"}),
    ):
        assert "is not UTF-8" in error(answer, 400)["message"]
    assert captioner.batches == []


def test_a_prompt_that_has_no_tokens_is_not_queued(
    client: TestClient, captioner: ColourCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ServedCaptioner, text: str) -> int:
        raise TypeError("no tokens")

    monkeypatch.setattr(ServedCaptioner, "count_tokens", fail)
    with pytest.raises(TypeError, match="no tokens"):
        client.post(CHAT, json=chat(data_url(photo())))
    assert client.get("/healthz").json()["waiting_images"] == 0 and captioner.batches == []


def test_texts_of_a_form_that_no_answer_can_hold(client: TestClient, captioner: ColourCaptioner) -> None:
    def form(prompt: bytes, name: bytes) -> Any:
        parts = [b'name="prompt"\r\n\r\n' + prompt, b'name="file"; filename="' + name + b'"\r\n\r\n' + photo()]
        body = b"".join(b"--x\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--x--\r\n"
        # lone surrogates can be written in UTF-7
        headers = {"Content-Type": "multipart/form-data; boundary=x; charset=utf-7"}
        return client.post("/caption", content=body, headers=headers)

    assert form(b"look", b"a.png").status_code == 200
    for prompt, name in ((b"+2AA-", b"a.png"), (b"look", b"+2AA-.png")):
        assert "is not UTF-8" in error(form(prompt, name), 400)["message"]
    assert captioner.batches == [1]


def test_a_form_that_breaks_off(client: TestClient, captioner: ColourCaptioner) -> None:
    parts = [b'name="file"; filename="a.png"\r\n\r\n' + photo(), b'name="prompt"\r\n\r\nlook']
    body = b"".join(b"--x\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts)
    headers = {"Content-Type": 'multipart/form-data; Boundary="x"'}
    for end in (b"", b"--x", b"--x\r\n"):
        found = error(client.post("/caption", content=body + end, headers=headers), 400)
        assert "the form is not complete" in found["message"]
    assert captioner.batches == []
    assert client.post("/caption", content=body + b"--x--\r\n", headers=headers).status_code == 200


@pytest.mark.parametrize("others", [{}, {"file": ("b.png", photo(1))}])
def test_a_prompt_that_is_a_file(client: TestClient, captioner: ColourCaptioner, others: dict[str, Any]) -> None:
    answer = client.post("/caption", files={"prompt": ("a.png", photo())} | others)
    found = error(answer, 400)
    assert "`prompt` is a file; send a text" in found["message"] and found["param"] == "prompt"
    assert captioner.batches == []


def test_parameters_that_ask_for_nothing_are_taken(client: TestClient) -> None:
    fields = {"user": "me", "frequency_penalty": 0, "stop": None, "response_format": {"type": "text"}, "tools": []}
    assert client.post(CHAT, json=chat(data_url(photo()), **fields)).status_code == 200


def test_another_model_and_two_images(client: TestClient) -> None:
    body = chat(data_url(photo()))
    found = error(client.post(CHAT, json=body | {"model": "gpt"}), 404)
    assert found["code"] == "model_not_found" and "'colours'" in found["message"]
    body["messages"] *= 2
    assert "holds 2; send a request per image" in error(client.post(CHAT, json=body), 400)["message"]


def test_an_image_of_too_many_pixels_is_not_decoded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_images, "load_resized_image", lambda *_: pytest.fail("decoded"))
    found = error(client.post(CHAT, json=chat(data_url(photo(size=(2000, 1000))))), 413)
    assert "2.0 megapixels are more than the 1" in found["message"] and found["code"] == "image_too_large"
    answer = client.post("/caption", files={"file": ("a.png", photo(size=(2000, 1000)))})
    assert answer.status_code == 413


def test_an_image_that_takes_too_much_memory(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_decoding, "MAX_DECODED_BYTES", 1000)
    answer = client.post("/caption", files={"file": ("a.png", photo())})
    assert answer.status_code == 413 and "MiB to decode" in answer.json()["error"]["message"]


def test_sampling_beams_and_limits_reach_the_captioner(client: TestClient, captioner: ColourCaptioner) -> None:
    url = data_url(photo())
    for fields in (
        {"temperature": 0.7, "top_p": 0.9, "seed": 5, "n": 2},
        {"temperature": 0, "max_tokens": 5, "n": 4},
        {"max_completion_tokens": 500},
    ):
        assert client.post(CHAT, json=chat(url, **fields)).status_code == 200
    sampled, beams, default = captioner.calls
    assert sampled["do_sample"] and (sampled["temperature"], sampled["top_p"], sampled["seed"]) == (0.7, 0.9, 5)
    assert sampled["num_return_sequences"] == 2 and sampled["num_beams"] == 1
    assert (beams["num_beams"], beams["num_return_sequences"], beams["max_new_tokens"]) == (4, 4, 5)
    assert default["max_new_tokens"] == 30 and "do_sample" not in default


def test_a_text_is_the_prompt_where_the_captioner_takes_prompts(
    client: TestClient, captioner: ColourCaptioner, serve: Serve
) -> None:
    body = chat(data_url(photo()), "what is it?")
    answer = client.post(CHAT, json=body).json()
    assert answer["choices"][0]["message"]["content"] == "a picture of red 200"
    answer = httpx.post(serve(takes_prompts=True) + CHAT, json=body).json()
    text = "question: what is it? answer: a picture of red 200"
    assert answer["choices"][0]["message"]["content"] == text
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 10, "total_tokens": 15}


def test_a_fault_of_one_image_is_its_own(serve: Serve, captioner: ColourCaptioner) -> None:
    url = serve(takes_prompts=True, batch_wait=0.3)
    texts = ["fine", "fault", "word " * 20, "fine too"]
    with ThreadPoolExecutor(4) as threads:
        answers = list(
            threads.map(lambda text: httpx.post(url + CHAT, json=chat(data_url(photo()), text), timeout=30), texts)
        )
    assert [answer.status_code for answer in answers] == [200, 500, 400, 200]
    assert error(answers[1], 500)["message"] == "the image could not be captioned (RuntimeError)."
    assert error(answers[2], 400)["message"] == "a prompt is too long; shorten it."
    check_health(url, captioner)


def test_concurrent_requests_share_batches(serve: Serve, captioner: ColourCaptioner) -> None:
    url = serve(batch_size=4, batch_wait=0.5)

    def ask(red: int) -> str:
        answer = httpx.post(url + CHAT, json=chat(data_url(photo(red))), timeout=30)
        return answer.json()["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(ask, range(12))) == [f"a picture of red {red}" for red in range(12)]
    assert sum(captioner.batches) == 12 and len(captioner.batches) < 7 and max(captioner.batches) == 4


def test_a_full_queue_is_answered_429(serve: Serve, captioner: ColourCaptioner) -> None:
    url = serve(batch_size=1, queue_size=2)
    captioner.gate.clear()

    def ask() -> httpx.Response:
        return httpx.post(f"{url}/caption", files={"file": ("a.png", photo(1))}, timeout=30)

    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(ask)
        wait_until(lambda: captioner.batches == [1])
        others = [threads.submit(ask) for _ in range(2)]
        wait_until(lambda: httpx.get(f"{url}/healthz").json()["waiting_images"] == 2)
        refused = ask()  # at the door: as many requests are in progress as may be
        assert error(refused, 429)["code"] == "queue_full" and refused.headers["Retry-After"] == "1"
        captioner.gate.set()
        assert [each.result().status_code for each in (first, *others)] == [200] * 3
    many = httpx.post(f"{url}/caption", files=[("file", (str(red), photo(red))) for red in range(3)])
    assert "3 files are more than 2" in error(many, 413)["message"]
    check_health(url, captioner)
    assert 'fusion_captioner_requests_total{path="/caption",status="429"} 1.0' in httpx.get(f"{url}/metrics").text


def test_files_beyond_the_queue_are_answered_429(serve: Serve, captioner: ColourCaptioner) -> None:
    url = serve(batch_size=2, queue_size=2)
    captioner.gate.clear()
    with ThreadPoolExecutor(2) as threads:
        files = [("file", (str(red), photo(red))) for red in range(2)]
        running = threads.submit(httpx.post, f"{url}/caption", files=files, timeout=30)
        wait_until(lambda: captioner.batches == [2])
        waiting = threads.submit(httpx.post, f"{url}/caption", files=files[:1], timeout=30)
        wait_until(lambda: httpx.get(f"{url}/healthz").json()["waiting_images"] == 1)
        assert error(httpx.post(f"{url}/caption", files=files), 429)["code"] == "queue_full"
        captioner.gate.set()
        assert running.result().status_code == waiting.result().status_code == 200
    check_health(url, captioner)


@pytest.mark.parametrize("headers", [{"Content-Length": str(100 * 2**20)}, {"Transfer-Encoding": "chunked"}])
def test_a_request_of_100_mb(serve: Serve, captioner: ColourCaptioner, headers: dict[str, str]) -> None:
    url = serve(max_body=2**20)
    connection = HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", CHAT)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    megabyte = b"x" * 2**20
    for _ in range(100):
        connection.send(megabyte if "Content-Length" in headers else b"100000\r\n" + megabyte + b"\r\n")
    if "Content-Length" not in headers:
        connection.send(b"0\r\n\r\n")
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"]["message"] == "the request is larger than 1 MiB; make the image smaller."
    check_health(url, captioner)


def test_who_asks_before_sending_is_refused_before_sending(serve: Serve, captioner: ColourCaptioner) -> None:
    url = serve(max_body=2**20)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {100 * 2**20}\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    check_health(url, captioner)


def abandoned(url: str, body: bytes, sent: int) -> socket.socket:
    """A connection that has sent the head of a request, and so many bytes of its body."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body[:sent])
    return connection


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
def test_the_job_of_a_client_that_goes_away_is_not_run(
    serve: Serve, captioner: ColourCaptioner, fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    url = serve(batch_size=1)
    captioner.gate.clear()
    body = json.dumps(chat(data_url(photo()), **fields)).encode()
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(httpx.post, f"{url}/caption", files={"file": ("a.png", photo(1))}, timeout=30)
        wait_until(lambda: captioner.batches == [1])
        connections = [abandoned(url, body, len(body)) for _ in range(5)]
        wait_until(lambda: httpx.get(f"{url}/healthz").json()["waiting_images"] == 5)
        for connection in connections:
            connection.close()
        wait_until(lambda: httpx.get(f"{url}/healthz").json()["waiting_images"] == 0)
        captioner.gate.set()
        assert running.result().status_code == 200
    check_health(url, captioner)
    assert captioner.batches == [1, 1]  # the first, and that of `check_health`
    gc.collect()  # asyncio complains of exceptions that nobody asked for when they are collected
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_clients_that_go_away_while_they_send(serve: Serve, captioner: ColourCaptioner) -> None:
    url = serve(queue_size=2, batch_size=1)
    body = json.dumps(chat(data_url(photo()))).encode()
    for sent in (0, 10, len(body) // 2):
        abandoned(url, body, sent).close()
    wait_until(lambda: '"/v1/chat/completions",status="499"} 3.0' in httpx.get(f"{url}/metrics").text)
    check_health(url, captioner)


def test_urls_are_fetched_from_public_servers_only(
    serve: Serve, captioner: ColourCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(allow_urls=True)
    private = httpx.post(url + CHAT, json=chat(f"{url}/healthz"), timeout=30)
    assert "not a public address" in error(private, 400)["message"]
    monkeypatch.setattr(image_downloads, "is_public", lambda address: True)
    missing = httpx.post(url + CHAT, json=chat(f"{url}/a.png"), timeout=30)
    assert "404" in error(missing, 400)["message"]
    no_image = httpx.post(url + CHAT, json=chat(f"{url}/healthz"), timeout=30)
    assert error(no_image, 400)["message"] == f"{url}/healthz: not an image, or one of a format that is not read"
    check_health(url, captioner)


def test_metrics_count_what_happened(client: TestClient) -> None:
    client.post("/caption", files=[("file", (str(red), photo(red))) for red in (1, 2)])
    client.post(CHAT, json=chat("x"))
    for number in range(3):
        client.get(f"/made/up/{number}")
    text = client.get("/metrics").text
    assert 'fusion_captioner_requests_total{path="/caption",status="200"} 1.0' in text
    assert f'fusion_captioner_requests_total{{path="{CHAT}",status="400"}} 1.0' in text
    assert 'fusion_captioner_requests_total{path="other",status="404"} 3.0' in text and "/made/up" not in text
    assert 'fusion_captioner_batch_size_bucket{le="2.0"} 1.0' in text
    assert "fusion_captioner_waiting_images 0.0" in text


class Found:
    """An index that finds what it was asked."""

    image_settings = ColourCaptioner.image_settings

    def find_text(self, text: str, top: int, rerank: int) -> list[dict[str, Any]]:
        if rerank == 7:
            raise FileNotFoundError(2, "No such file or directory", "/moved\n/caf\udce9")
        if rerank:
            raise ValueError("has no score of fused pairs")
        return [{"image": f"{text}.png", "score": 0.5}] * top

    def find_like(self, picture: Any, top: int) -> list[dict[str, Any]]:
        return [{"image": str(picture.getpixel((0, 0))[0]), "score": 1.0}] * top


def test_searches(client: TestClient, serve: Serve) -> None:
    assert "start it with --index" in error(client.get("/search", params={"q": "dog"}), 404)["message"]
    url = f"{serve(search=Found())}/search"
    answer = httpx.get(url, params={"q": "a dog", "top": 2})
    assert answer.json() == {"results": [{"image": "a dog.png", "score": 0.5}] * 2}
    answer = httpx.post(url, files={"file": ("a.png", photo(9))}, params={"top": 1})
    assert answer.json() == {"results": [{"image": "9", "score": 1.0}]}
    for params, words in (
        ({"q": " "}, "`q` is empty"),
        ({}, "q: Field required"),
        ({"q": "a", "top": "0"}, "`top` (0) must be 1 to 100"),
        ({"q": "a", "rerank": "-1"}, "`rerank` (-1)"),
        ({"q": "a", "rerank": "5"}, "has no score of fused pairs"),
    ):
        assert words in error(httpx.get(url, params=params), 400)["message"]
    assert "not an image" in error(httpx.post(url, files={"file": ("a.txt", b"words")}), 400)["message"]


def test_a_search_whose_data_was_moved(serve: Serve) -> None:
    answer = httpx.get(f"{serve(search=Found())}/search", params={"q": "a dog", "rerank": 7})
    found = error(answer, 503)
    assert "/moved /caf\\udce9: No such file" in found["message"] and found["type"] == "server_error"
