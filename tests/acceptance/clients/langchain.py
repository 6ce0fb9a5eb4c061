"""What langchain-openai makes of the scripted answers, as one line of JSON. test_clients.py says which those are."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings  # type: ignore[import-not-found]

BASE_URL, API_KEY = os.environ["BASE_URL"], os.environ["API_KEY"]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def model(name: str = "model-a", *, key: str = API_KEY, retries: int = 0) -> Any:
    return ChatOpenAI(model=name, base_url=BASE_URL, api_key=key, max_retries=retries)


async def failure(model: Any) -> tuple[int, str | None]:
    try:
        await model.ainvoke("hello")
    except openai.APIStatusError as error:
        return error.status_code, error.code
    raise AssertionError("no error")


async def main() -> None:
    told: dict[str, Any] = {}
    chat = await model().ainvoke("hello")
    told["chat"] = [chat.content, chat.usage_metadata["total_tokens"]]

    told["stream"] = [chunk.content async for chunk in model().astream("hello") if chunk.content]

    whole = None
    async for chunk in model().bind_tools([WEATHER]).astream("hello"):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    [call] = whole.tool_calls
    told["tool"] = [call["name"], call["args"]]

    embeddings = OpenAIEmbeddings(
        model="model-a", base_url=BASE_URL, api_key=API_KEY, check_embedding_ctx_length=False, max_retries=0
    )
    told["embedding"] = await embeddings.aembed_query("hello", encoding_format="float")

    told["wrong_key"] = await failure(model(key="gsk_" + "0" * 48))
    told["wrong_model"] = await failure(model("model-z"))
    told["limited"] = await failure(model())

    told["retried"] = (await model(retries=2).ainvoke("hello")).content

    endless = model().astream("hello")
    told["cancelled_after"] = (await anext(endless)).content
    await endless.aclose()
    print(json.dumps(told), flush=True)
    await asyncio.sleep(60)  # stays, so that it is not its end which ends the last stream


asyncio.run(main())
