"""OpenAI's own client against a live server."""

import asyncio

import pytest
from colour_captioner import ColourCaptioner, Serve, data_url, photo

openai = pytest.importorskip("openai")
URL = data_url(photo(31))


def messages(url: str = URL) -> list[dict]:
    text = {"type": "text", "text": "What is in this image?"}
    return [{"role": "user", "content": [text, {"type": "image_url", "image_url": {"url": url, "detail": "low"}}]}]


@pytest.fixture
def client(serve: Serve):
    with openai.OpenAI(base_url=f"{serve()}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_caption(client) -> None:
    (model,) = client.models.list().data
    answer = client.chat.completions.create(model=model.id, messages=messages(), n=2, max_tokens=100, temperature=0)
    assert [choice.message.content for choice in answer.choices] == ["a picture of red 31"] * 2
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 10 and answer.model == "colours"


def test_a_caption_as_a_stream(client) -> None:
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model="colours", messages=messages(), stream=True, n=2, stream_options=options
    )
    texts, reasons, usage = {0: "", 1: ""}, {}, None
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
        usage = chunk.usage or usage
    assert texts == {0: "a picture of red 31", 1: "a picture of red 31"} and reasons == {0: "stop", 1: "stop"}
    assert usage is not None and usage.completion_tokens == 10


def test_the_helper_for_streams(client) -> None:
    with client.chat.completions.stream(model="colours", messages=messages()) as stream:
        assert stream.get_final_completion().choices[0].message.content == "a picture of red 31"


def test_errors_are_those_of_the_client(client, serve: Serve, captioner: ColourCaptioner) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="colours", messages=messages("data:image/png;base64,aGVsbG8="))
    assert bad.value.code == "invalid_image" and "not an image" in bad.value.message
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.chat.completions.create(model="gpt", messages=messages())
    prompted = openai.OpenAI(base_url=f"{serve(takes_prompts=True)}/v1", api_key="none", max_retries=0)
    fault = messages()
    fault[0]["content"][0]["text"] = "fault"
    with pytest.raises(openai.InternalServerError, match="could not be captioned"):
        prompted.chat.completions.create(model="colours", messages=fault)
    with pytest.raises(openai.APIError, match="could not be captioned"):
        list(prompted.chat.completions.create(model="colours", messages=fault, stream=True))


def test_many_at_once(serve: Serve, captioner: ColourCaptioner) -> None:
    url = serve(batch_wait=0.3)

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(model="colours", messages=messages(data_url(photo(red))))
                    for red in range(16)
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask()) == [f"a picture of red {red}" for red in range(16)]
    assert max(captioner.batches) == 8
