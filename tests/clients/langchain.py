#!/usr/bin/env python3
"""LangChain over the unmodified `langchain-openai`: the set-up of docs/clients.md.

BASE_URL, MODEL as everywhere. Ends with 1 when anything was not as LangChain expects it.
"""

import os

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

BASE_URL, MODEL = os.environ["BASE_URL"], os.environ["MODEL"]
SETTINGS = {"base_url": BASE_URL, "api_key": "unused", "max_retries": 0}


@tool
def get_weather(place: str) -> str:
    """The weather in a place."""
    return f"It is fine in {place}."


model = ChatOpenAI(model=MODEL, max_tokens=16, **SETTINGS)
answer = model.invoke("How much is a farthing?")
assert answer.content, "the answer is empty"
assert answer.usage_metadata["output_tokens"] > 0, answer.usage_metadata
text = "".join(chunk.content for chunk in model.stream("How much is a farthing?"))
assert text == answer.content, f"streamed {text!r}, whole {answer.content!r}"
agent = ChatOpenAI(model=MODEL, **SETTINGS).bind_tools([get_weather])
called = agent.invoke("What is the weather in 'Bath'?").tool_calls
assert [(call["name"], call["args"]) for call in called] == [("get_weather", {"place": "Bath"})], called
# Other servers than OpenAI's do not take a prompt that was counted in tokens.
vectors = OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False, **SETTINGS)
assert len(vectors.embed_query("a farthing")) > 0, "no embedding"
print("LangChain: a whole answer, a stream, a tool and an embedding")
