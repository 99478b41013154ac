#!/usr/bin/env python3
"""The unmodified `mcp` package as an agent's host, against `farthing mcp`.

SERVER      the command that starts it, as a JSON list
MODEL       a model on offer
MODE        how the two agree on a version: "auto" or "legacy"
NO_GATEWAY  "1": no gateway runs; every tool must say what to do

The session may spend 100 atoms for a call and 150 in all. Prints one line of JSON with what was
bought; ends with 1 when anything was not as an agent expects it.
"""

import json
import os

import anyio
from mcp import Client, StdioServerParameters

MODEL = os.environ.get("MODEL")
TOOLS = ["balance", "chat", "list_models", "quote", "receipts"]
QUESTION = {"model": MODEL, "prompt": "How much is a farthing?", "max_tokens": 16}


def check(truth, what):
    """Fail with a sentence."""
    if not truth:
        raise AssertionError(what)


async def told(client, tool, **arguments):
    """What a tool gives. The client holds it against the tool's output schema."""
    result = await client.call_tool(tool, arguments)
    check(not result.is_error, f"{tool}: {result.content}")
    return result.structured_content


async def refused(client, tool, *words, **arguments):
    """A tool's error, which must have these words in it."""
    result = await client.call_tool(tool, arguments)
    check(result.is_error, f"{tool} was not refused: {result.content}")
    text = result.content[0].text
    for word in words:
        check(word in text, f"{tool}: no `{word}` in: {text}")
    return text


async def spent(client):
    """The session's own count."""
    return int((await told(client, "balance"))["session"]["spent"]["atoms"])


async def schemas(client):
    """Every tool says what it is, what it takes and what it gives."""
    tools = (await client.list_tools()).tools
    check(sorted(tool.name for tool in tools) == TOOLS, f"tools {[tool.name for tool in tools]}")
    for tool in tools:
        check(tool.description, f"{tool.name} says nothing of itself")
        check(tool.input_schema["type"] == "object", f"{tool.name} takes {tool.input_schema}")
        check(tool.output_schema["type"] == "object", f"{tool.name} gives {tool.output_schema}")
    by_name = {tool.name: tool for tool in tools}
    asked = by_name["chat"].input_schema["properties"]
    check({"model", "prompt", "messages", "max_tokens"} <= set(asked), f"chat takes {asked}")
    check(by_name["quote"].annotations.read_only_hint, "a quote is not known to buy nothing")
    check(not by_name["chat"].annotations.read_only_hint, "a purchase is said to change nothing")


async def looks(client):
    """What is on offer and what it would cost; nothing is bought."""
    models = (await told(client, "list_models"))["models"]
    check(MODEL in [model["id"] for model in models], f"{MODEL} is not among {models}")
    none = await told(client, "list_models", search="no such model")
    check(none["models"] == [], f"found {none}")
    quote = await told(client, "quote", **QUESTION)
    check(len(quote["sellers"]) == 2 and quote["on_offer"] == 2, f"quote {quote}")
    first = quote["sellers"][0]
    check(first["model"] == MODEL, f"quote {quote}")
    check(0 < int(first["expected"]["atoms"]) <= int(first["at_most"]["atoms"]), f"quote {first}")
    dear = await told(client, "quote", **{**QUESTION, "max_tokens": 1000})
    check(dear["sellers"] == [] and len(dear["left_out"]) == 2, f"beyond the limit: {dear}")
    check(await spent(client) == 0, "looking has cost something")
    return int(first["at_most"]["atoms"])


async def calls_a_tool(client):
    """The agent's own tools pass through to the model, and its call comes back."""
    schema = {"type": "object", "properties": {"place": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": schema}}
    asked = {**QUESTION, "prompt": "What is the weather in 'Bath'?", "tools": [tool]}
    answer = await told(client, "chat", **asked)
    check(answer["finish_reason"] == "tool_calls" and answer["text"] == "", f"answer {answer}")
    call = answer["message"]["tool_calls"][0]["function"]
    check(call["name"] == "get_weather", f"called {call}")
    check(json.loads(call["arguments"]) == {"place": "Bath"}, f"called {call}")
    return {"request": answer["request"], "charged": int(answer["charged"]["atoms"])}


async def buys(client, at_most):
    """Answers are bought and counted until the session's money is not enough for one more."""
    bought = [await calls_a_tool(client)]
    while True:
        answer = await client.call_tool("chat", QUESTION)
        if answer.is_error:
            text = answer.content[0].text
            check("mcp.per_session" in text, f"refused without saying why: {text}")
            break
        check(answer.content[0].text.startswith("A farthing buys"), f"answer {answer.content}")
        told_of = answer.structured_content
        check(told_of["text"] == answer.content[0].text, "two answers")
        check(told_of["usage"]["completion_tokens"] == 16, f"usage {told_of}")
        check(told_of["model"] == MODEL and told_of["seller"], f"who sold: {told_of}")
        charged = int(told_of["charged"]["atoms"])
        check(0 < charged <= at_most, f"{charged} charged, {at_most} quoted")
        bought.append({"request": told_of["request"], "charged": charged})
        check(await spent(client) == sum(one["charged"] for one in bought), "the count is wrong")
        check(len(bought) < 150, "there is no end to it")
    total = sum(one["charged"] for one in bought)
    check(len(bought) >= 3, f"only {len(bought)} bought")
    check(150 - at_most < total <= 150, f"{total} spent of 150, and the next may cost {at_most}")
    check(await spent(client) == total, "what was refused was counted")
    return bought


async def errors(client):
    """What is wrong is said so that it can be put right, and costs nothing."""
    before = await spent(client)
    await refused(client, "chat", "prompt", "messages", model=MODEL)
    await refused(client, "chat", "no/such", **{**QUESTION, "model": "no/such"})
    await refused(client, "chat", "mcp.per_call", "max_tokens", **{**QUESTION, "max_tokens": 1000})
    await refused(client, "chat", "provider", **{**QUESTION, "provider": 7})
    await refused(client, "receipts", "arguments", limit="many")
    check(await spent(client) == before, "an error has cost something")


async def receipts(client, bought):
    """Each answer has its receipt, with the same price."""
    listed = await told(client, "receipts", limit=100)
    check(not listed["more"], "there are more receipts than purchases")
    held = {row["request"]: int(row["charged"]["atoms"]) for row in listed["receipts"]}
    wanted = {one["request"]: one["charged"] for one in bought}
    check(held == wanted, f"receipts {held}, bought {wanted}")
    newest = await told(client, "receipts", limit=1, model=MODEL)
    check(newest["receipts"][0]["request"] == bought[-1]["request"], f"newest {newest}")
    check(newest["more"], "no more are said to be there")


async def main():
    """One session."""
    command, *arguments = json.loads(os.environ["SERVER"])
    server = StdioServerParameters(command=command, args=arguments)
    async with Client(server, mode=os.environ.get("MODE", "auto")) as client:
        if os.environ.get("NO_GATEWAY") == "1":
            for tool in ["list_models", "balance", "receipts"]:
                await refused(client, tool, "farthing gateway")
            await refused(client, "chat", "farthing gateway", prompt="Hello", model="a/b")
            print(json.dumps({"bought": []}))
            return
        await schemas(client)
        at_most = await looks(client)
        await errors(client)
        bought = await buys(client, at_most)
        await receipts(client, bought)
        print(json.dumps({"bought": bought}))


async def in_time():
    """Nothing here takes a minute."""
    with anyio.fail_after(60):
        await main()


if __name__ == "__main__":
    anyio.run(in_time)
