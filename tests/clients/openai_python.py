#!/usr/bin/env python3
"""The unmodified `openai` package against any OpenAI-compatible endpoint.

BASE_URL          the endpoint, ending in /v1
MODEL             a model it serves
API_KEY           the key to send (default: "unused")
API_KEY_EXPECTED  set: the endpoint must refuse another key
EMBED             "1": embeddings too
RESPONSES         "1": responses too, with what is kept of them
TOOLS             "1": and tools, which the model calls when it must
MODERATE          "1": moderations too
ANY_MODEL         "1": the endpoint answers to any model name, as a bare llama.cpp does

Prints one line of JSON with what was seen; ends with 1 when anything was not as a stock client
expects it.
"""

import asyncio
import json
import os
import sys
import time

import openai

BASE_URL = os.environ["BASE_URL"]
MODEL = os.environ["MODEL"]
API_KEY = os.environ.get("API_KEY", "unused")
QUESTION = [{"role": "user", "content": "Name three colours."}]
LIMIT = 24


def check(truth, what):
    """Fail with a sentence."""
    if not truth:
        raise AssertionError(what)


def list_models(client):
    """The model is in the list."""
    names = [model.id for model in client.models.list()]
    check(MODEL in names, f"{MODEL} is not among {names}")
    return names


def plain(client):
    """A whole answer has text, a finish reason and usage that adds up."""
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=LIMIT)
    choice = answer.choices[0]
    check(choice.message.role == "assistant", "the answer is not the assistant's")
    check(choice.message.content, "the answer is empty")
    check(choice.finish_reason in ("stop", "length"), f"finish_reason {choice.finish_reason}")
    usage = answer.usage
    check(usage and usage.prompt_tokens > 0 and usage.completion_tokens > 0, f"usage {usage}")
    check(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, f"usage {usage}")
    return {"text": choice.message.content, "usage": count(usage)}


def count(usage):
    """The three figures of a usage."""
    return [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens]


def streamed(client, with_usage):
    """A stream has text and one finish reason; usage when asked, once and last, else never."""
    extra = {"stream_options": {"include_usage": True}} if with_usage else {}
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=LIMIT, stream=True, **extra
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    usages = [at for at, c in enumerate(chunks) if c.usage is not None]
    check(text, "the stream has no text")
    check(len(reasons) == 1 and reasons[0] in ("stop", "length"), f"finish reasons {reasons}")
    check(len({c.id for c in chunks}) == 1, "the chunks of one stream have several ids")
    if not with_usage:
        check(not usages, f"usage leaked into a stream that did not ask for it, at {usages}")
        check(all(c.choices for c in chunks), "a chunk without choices leaked")
        return {"chunks": len(chunks)}
    check(usages == [len(chunks) - 1], f"usage at {usages} of {len(chunks)} chunks")
    check(chunks[-1].choices == [], "the usage chunk has choices")
    return {"chunks": len(chunks), "text": text, "usage": count(chunks[-1].usage)}


async def in_parallel(many):
    """Many requests at once, half of them streamed, all answered."""
    async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0) as client:

        async def one(number):
            stream = number % 2 == 0
            answer = await client.chat.completions.create(
                model=MODEL, messages=QUESTION, max_tokens=8, stream=stream
            )
            if not stream:
                return answer.choices[0].message.content
            return "".join([c.choices[0].delta.content or "" async for c in answer if c.choices])

        texts = await asyncio.gather(*(one(number) for number in range(many)))
    check(all(texts), f"some of {many} parallel answers are empty: {texts}")
    return len(texts)


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b))
    norm = sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5
    return dot / norm


def embeddings(client):
    """Two inputs give two vectors of one width, the same again for the same input."""
    answer = client.embeddings.create(model=MODEL, input=["a farthing", "a pound"])
    vectors = [row.embedding for row in answer.data]
    check([row.index for row in answer.data] == [0, 1], "embeddings are out of order")
    check(len(vectors[0]) == len(vectors[1]) > 0, "embeddings differ in width")
    check(vectors[0] != vectors[1], "two inputs have the same embedding")
    check(answer.usage.prompt_tokens > 0, f"usage {answer.usage}")
    # One input at a time: a model server that puts two into one batch may compute other numbers
    # for each (llama.cpp does: cosine 0.88 here), depending on when they arrive.
    packed = client.embeddings.create(model=MODEL, input="a farthing").data[0].embedding
    plain = client.embeddings.create(model=MODEL, input="a farthing", encoding_format="float")
    near = cosine(plain.data[0].embedding, packed)
    check(near > 0.999, f"the same input has another embedding as base64: cosine {near}")
    own, other = (cosine(packed, vector) for vector in vectors)
    check(own > other, f"an input is nearer to the other's embedding: {own} against {other}")
    return {"width": len(vectors[0]), "tokens": answer.usage.prompt_tokens}


def respond(client, **what):
    """One response, its usage checked."""
    answer = client.responses.create(model=MODEL, max_output_tokens=LIMIT, **what)
    check(answer.status in ("completed", "incomplete"), f"status {answer.status}")
    usage = answer.usage
    check(usage and usage.input_tokens > 0 and usage.output_tokens > 0, f"usage {usage}")
    check(usage.total_tokens == usage.input_tokens + usage.output_tokens, f"usage {usage}")
    return answer


def responses(client):
    """A response is kept, goes on, is listed and deleted."""
    first = respond(client, input="Name three colours.", instructions="Be brief.")
    check(first.output_text, "the response is empty")
    again = client.responses.retrieve(first.id)
    check(again.output_text == first.output_text, "what is kept is not what was said")
    items = client.responses.input_items.list(first.id).data
    check([item.content[0].text for item in items] == ["Name three colours."], f"items {items}")
    check(client.responses.cancel(first.id).status == first.status, "a cancel changed it")
    second = respond(client, input="And one more.", previous_response_id=first.id)
    check(second.previous_response_id == first.id, "the second does not name the first")
    longer = second.usage.input_tokens > first.usage.input_tokens
    check(longer, f"the second had not read the first: {first.usage} {second.usage}")
    client.responses.delete(first.id)
    for gone in (
        lambda: client.responses.retrieve(first.id),
        lambda: respond(client, input="x", previous_response_id=first.id),
    ):
        try:
            gone()
        except (openai.NotFoundError, openai.BadRequestError) as error:
            check(error.code in ("not_found", "previous_response_not_found"), f"{error}")
        else:
            raise AssertionError("a deleted response is still there")
    secret = respond(client, input="Hush.", store=False)
    try:
        client.responses.retrieve(secret.id)
    except openai.NotFoundError:
        return first.output_text
    raise AssertionError("what was not to be stored is")


def streamed_response(client):
    """Events are numbered, the deltas are the text, and the last event has it all."""
    stream = client.responses.create(
        model=MODEL, input="Name three colours.", max_output_tokens=LIMIT, stream=True
    )
    events = list(stream)
    numbers = [event.sequence_number for event in events]
    check(numbers == list(range(len(events))), f"numbers {numbers}")
    check(events[0].type == "response.created", f"begins with {events[0].type}")
    last = events[-1]
    check(last.type in ("response.completed", "response.incomplete"), f"ends with {last.type}")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    check("".join(deltas) == last.response.output_text != "", "the deltas are not the text")
    check(last.response.usage.output_tokens > 0, f"usage {last.response.usage}")
    kept = client.responses.retrieve(last.response.id)
    check(kept.output_text == last.response.output_text, "what is kept is not what was said")
    again = client.responses.retrieve(last.response.id, stream=True)
    deltas = [event.delta for event in again if event.type == "response.output_text.delta"]
    check("".join(deltas) == kept.output_text, "told again it is another")
    # The library's own reader of such streams holds events against each other.
    with client.responses.stream(model=MODEL, input="Name three colours.") as whole:
        parsed = whole.get_final_response() if last.type == "response.completed" else None
    check(parsed is None or parsed.output_text, "the library's reader found no text")
    return len(events)


def background(client):
    """A response goes on by itself, is asked for until it is over, and comes back from any event."""
    begun = client.responses.create(model=MODEL, input="Name three colours.", background=True)
    check(begun.background and begun.status in ("queued", "in_progress"), f"begins {begun.status}")
    until = time.monotonic() + 60
    while (now := client.responses.retrieve(begun.id)).status in ("queued", "in_progress"):
        check(time.monotonic() < until, "it does not come to its end")
    check(now.status in ("completed", "incomplete") and now.output_text, f"ends {now.status}")
    check(now.usage.output_tokens > 0, f"usage {now.usage}")
    events = list(client.responses.retrieve(begun.id, stream=True))
    check([event.type for event in events[:2]] == ["response.created", "response.queued"], "queued")
    after = events[4].sequence_number
    rest = list(client.responses.retrieve(begun.id, stream=True, starting_after=after))
    check(rest == events[5:], "told from a number on it is another")
    with client.responses.create(
        model=MODEL, input="Name three colours.", background=True, stream=True
    ) as stream:
        first = next(iter(stream))
    left = client.responses.retrieve(first.response.id, stream=True, starting_after=0)
    check(list(left)[-1].response.output_text, "hanging up has ended it")
    return now.status


def conversation(client):
    """Each turn goes on from those before, and is added."""
    item = {"role": "user", "content": "I like blue."}
    talk = client.conversations.create(items=[item], metadata={"topic": "colours"})
    first = respond(client, input="Name three colours.", conversation=talk.id)
    check(first.conversation.id == talk.id, "the response does not name its conversation")
    second = respond(client, input="And one more.", conversation={"id": talk.id})
    check(second.usage.input_tokens > first.usage.input_tokens, "it had not read the first")
    items = list(client.conversations.items.list(talk.id, order="asc"))
    roles = [item.role for item in items]
    check(roles == ["user", "user", "assistant", "user", "assistant"], f"roles {roles}")
    check(items[2].content[0].text == first.output_text, "the answer is not in it")
    left = client.conversations.items.delete(items[0].id, conversation_id=talk.id)
    check(left.metadata == {"topic": "colours"}, f"metadata {left.metadata}")
    check(client.conversations.delete(talk.id).deleted, "it is not deleted")
    try:
        client.conversations.retrieve(talk.id)
    except openai.NotFoundError:
        return len(items)
    raise AssertionError("a deleted conversation is still there")


def response_tools(client):
    """A tool is called, and what it gave back is answered."""
    tool = {
        "type": "function",
        "name": "add_numbers",
        "description": "Adds two numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
        "strict": False,
    }
    asked = {"input": "What is 2 plus 3?", "tools": [tool]}
    forced = {"tool_choice": {"type": "function", "name": "add_numbers"}}
    answer = client.responses.create(model=MODEL, max_output_tokens=100, **asked, **forced)
    calls = [item for item in answer.output if item.type == "function_call"]
    check(calls and calls[0].name == "add_numbers", f"no call: {answer.output}")
    arguments = json.loads(calls[0].arguments)
    check(set(arguments) == {"a", "b"}, f"arguments {arguments}")
    result = {"type": "function_call_output", "call_id": calls[0].call_id, "output": "5"}
    after = respond(client, input=[result], previous_response_id=answer.id)
    check(after.output_text, "the tool's result was not answered")
    stream = client.responses.create(
        model=MODEL, max_output_tokens=100, stream=True, **asked, **forced
    )
    events = list(stream)
    told = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    check(len(done) == 1 and "".join(told) == done[0].arguments, f"told {told}, done {done}")
    return arguments


def counted(client):
    """A longer prompt has more tokens."""
    count = client.responses.input_tokens.count
    short, long = (count(model=MODEL, input=text).input_tokens for text in ("Hi", "Hi " * 99))
    check(0 < short < long, f"{short} and {long} tokens")
    return [short, long]


def moderated(client):
    """A text is judged."""
    return client.moderations.create(model=MODEL, input="A farthing.").results[0].flagged


def unknown_model(client):
    """A model nobody serves is a 404 with OpenAI's error body."""
    try:
        client.chat.completions.create(model="nobody/serves-this", messages=QUESTION)
    except openai.NotFoundError as error:
        check(error.body and error.body.get("message"), f"the 404 says nothing: {error.body}")
        return error.body.get("code")
    raise AssertionError("an unknown model was answered")


def bad_key():
    """A wrong key is a 401."""
    client = openai.OpenAI(base_url=BASE_URL, api_key="wrong", max_retries=0)
    try:
        client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)
    except openai.AuthenticationError as error:
        return error.status_code
    raise AssertionError("a wrong key was accepted")


def main():
    """Run every check; one line of JSON either way."""
    seen = {"client": "openai-python", "version": openai.__version__}
    client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=120)
    steps = {
        "models": lambda: list_models(client),
        "plain": lambda: plain(client),
        "streamed": lambda: streamed(client, True),
        "streamed_without_usage": lambda: streamed(client, False),
        "parallel": lambda: asyncio.run(in_parallel(8)),
    }
    if os.environ.get("EMBED") == "1":
        steps["embeddings"] = lambda: embeddings(client)
    if os.environ.get("RESPONSES") == "1":
        steps["responses"] = lambda: responses(client)
        steps["streamed_response"] = lambda: streamed_response(client)
        steps["background"] = lambda: background(client)
        steps["conversation"] = lambda: conversation(client)
        steps["counted"] = lambda: counted(client)
    if os.environ.get("TOOLS") == "1":
        steps["response_tools"] = lambda: response_tools(client)
    if os.environ.get("MODERATE") == "1":
        steps["moderated"] = lambda: moderated(client)
    # A bare model server answers to any name; a market must not.
    if os.environ.get("ANY_MODEL") != "1":
        steps["unknown_model"] = lambda: unknown_model(client)
    if os.environ.get("API_KEY_EXPECTED"):
        steps["bad_key"] = bad_key
    began = time.monotonic()
    failed = {}
    for name, step in steps.items():
        try:
            seen[name] = step()
        except Exception as error:  # every failure belongs in the summary
            failed[name] = f"{type(error).__name__}: {error}"
    seen["seconds"] = round(time.monotonic() - began, 2)
    print(json.dumps({"ok": not failed, **({"failed": failed} if failed else {}), **seen}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
