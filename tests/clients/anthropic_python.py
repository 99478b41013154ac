#!/usr/bin/env python3
"""The unmodified `anthropic` package against an endpoint that speaks its dialect.

BASE_URL  the endpoint, without /v1
MODEL     a model it serves
API_KEY   the key to send (default: "unused")
API_KEY_EXPECTED  set: the endpoint must refuse another key

Prints one line of JSON with what was seen; ends with 1 when anything was not as a stock client
expects it. Responses are validated strictly: a field of a wrong kind is an error.
"""

import json
import os
import sys

import anthropic

BASE_URL = os.environ["BASE_URL"]
MODEL = os.environ["MODEL"]
API_KEY = os.environ.get("API_KEY", "unused")
QUESTION = [{"role": "user", "content": "Name three colours."}]
LIMIT = 24
TOOL = {
    "name": "add",
    "description": "Adds two numbers",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
        "required": ["a", "b"],
    },
}


def check(truth, what):
    """Fail with a sentence."""
    if not truth:
        raise AssertionError(what)


def client(key=API_KEY):
    """A client that looks closely and asks once."""
    return anthropic.Anthropic(
        base_url=BASE_URL, api_key=key, max_retries=0, _strict_response_validation=True
    )


def plain():
    """A whole message has text, a reason to stop and usage."""
    message = client().messages.create(
        model=MODEL, max_tokens=LIMIT, messages=QUESTION, system="Be brief."
    )
    check(message.type == "message" and message.role == "assistant", f"{message}")
    check(message.content[0].type == "text" and message.content[0].text, "the message is empty")
    check(message.stop_reason in ("end_turn", "max_tokens"), f"stop_reason {message.stop_reason}")
    check(message.usage.input_tokens > 0, f"usage {message.usage}")
    check(0 < message.usage.output_tokens <= LIMIT, f"usage {message.usage}")
    return {"text": message.content[0].text, "stop": message.stop_reason}


def streamed():
    """A stream adds up to a message, and its events are in order."""
    kinds = []
    with client().messages.stream(model=MODEL, max_tokens=LIMIT, messages=QUESTION) as stream:
        for event in stream:
            kinds.append(event.type)
        message = stream.get_final_message()
    raw = [kind for kind in kinds if kind.startswith(("message_", "content_block_"))]
    check(raw[0] == "message_start" and raw[-1] == "message_stop", f"{raw}")
    check(raw[-2] == "message_delta", f"{raw}")
    check(raw.count("content_block_start") == raw.count("content_block_stop") == 1, f"{raw}")
    check(message.content[0].text, "the stream has no text")
    check(message.usage.input_tokens > 0 and message.usage.output_tokens > 0, f"{message.usage}")
    return {"events": len(raw), "text": message.content[0].text}


def with_tools():
    """A conversation in which a tool was used is understood, and its answer is a message."""
    turns = QUESTION + [
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1, "b": 2}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "3"}]},
    ]
    message = client().messages.create(
        model=MODEL, max_tokens=LIMIT, messages=turns, tools=[TOOL], tool_choice={"type": "auto"}
    )
    check(message.content, "the message is empty")
    return [block.type for block in message.content]


def counted():
    """Tokens are counted before anything is bought."""
    count = client().messages.count_tokens(model=MODEL, messages=QUESTION)
    check(count.input_tokens > 0, f"{count}")
    return count.input_tokens


def listed():
    """The model is in the list, in Anthropic's shape."""
    names = [model.id for model in client().models.list()]
    check(MODEL in names, f"{MODEL} is not among {names}")
    check(client().models.retrieve(MODEL).id == MODEL, "one model is another")
    return names


def unknown_model():
    """A model nobody serves is a 404 in Anthropic's shape."""
    try:
        client().messages.create(model="nobody/serves-this", max_tokens=1, messages=QUESTION)
    except anthropic.NotFoundError as error:
        check(error.body["error"]["type"] == "not_found_error", f"{error.body}")
        return error.body["error"]["message"]
    raise AssertionError("an unknown model was answered")


def theirs():
    """What only Anthropic's servers do is refused by name."""
    tool = {"type": "web_search_20250305", "name": "web_search"}
    try:
        client().messages.create(model=MODEL, max_tokens=1, messages=QUESTION, tools=[tool])
    except anthropic.BadRequestError as error:
        check("web_search_20250305" in error.body["error"]["message"], f"{error.body}")
        return error.body["error"]["type"]
    raise AssertionError("a tool of Anthropic's servers was taken")


def bad_key():
    """A wrong key is a 401 in Anthropic's shape."""
    try:
        client("wrong").messages.create(model=MODEL, max_tokens=1, messages=QUESTION)
    except anthropic.AuthenticationError as error:
        check(error.body["error"]["type"] == "authentication_error", f"{error.body}")
        return error.status_code
    raise AssertionError("a wrong key was accepted")


def main():
    """Run every check; one line of JSON either way."""
    seen = {"client": "anthropic-python", "version": anthropic.__version__}
    steps = [plain, streamed, with_tools, counted, listed, unknown_model, theirs]
    if os.environ.get("API_KEY_EXPECTED"):
        steps.append(bad_key)
    for step in steps:
        try:
            seen[step.__name__] = step()
        except Exception as error:  # whatever it is, it is told
            seen["failed"] = f"{step.__name__}: {type(error).__name__}: {error}"
            print(json.dumps(seen))
            return 1
    print(json.dumps(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
