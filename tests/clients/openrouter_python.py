#!/usr/bin/env python3
"""The unmodified `openrouter` package against an endpoint that speaks its dialect.

BASE_URL  the endpoint, with /api/v1
MODEL     a model it serves, as author/slug
API_KEY   the key to send (default: "unused")
API_KEY_EXPECTED  set: the endpoint must refuse another key

Prints one line of JSON with what was seen; ends with 1 when anything was not as the package
expects it. The package validates every answer against its own models: a field that is missing or
of a wrong kind is an error.
"""

import json
import os
import sys

from openrouter import OpenRouter, errors
from openrouter.utils import RetryConfig, BackoffStrategy

BASE_URL = os.environ["BASE_URL"]
MODEL = os.environ["MODEL"]
API_KEY = os.environ.get("API_KEY", "unused")
QUESTION = [{"role": "user", "content": "Name three colours."}]
LIMIT = 24


def check(truth, what):
    """Fail with a sentence."""
    if not truth:
        raise AssertionError(what)


def client(key=API_KEY):
    """A client that asks once."""
    once = RetryConfig("none", BackoffStrategy(1, 1, 1.0, 1), False)
    return OpenRouter(api_key=key, server_url=BASE_URL, retry_config=once, timeout_ms=60_000)


def plain(api):
    """A whole answer has text, usage and what it cost."""
    answer = api.chat.send(model=MODEL, messages=QUESTION, max_tokens=LIMIT)
    check(answer.choices[0].message.content, "the answer is empty")
    usage = answer.usage
    check(usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= LIMIT, f"usage {usage}")
    check(usage.cost > 0 and usage.is_byok is False, f"usage {usage}")
    check(usage.cost_details.upstream_inference_cost == usage.cost, f"usage {usage}")
    check(answer.id.startswith("gen-"), f"id {answer.id}")
    return answer


def stream(api):
    """A stream has text and ends with one chunk of usage."""
    text, usages, ids = [], [], set()
    with api.chat.send(
        model=MODEL, messages=QUESTION, max_tokens=LIMIT, stream=True
    ) as chunks:
        for chunk in chunks:
            ids.add(chunk.id)
            usages += [chunk.usage] if chunk.usage else []
            text += [choice.delta.content or "" for choice in chunk.choices]
    check("".join(text), "the stream is empty")
    check(len(ids) == 1, f"ids {ids}")
    check(len(usages) == 1 and usages[0].cost > 0, f"usage {usages}")
    return {"text": "".join(text), "cost": usages[0].cost}


def embeddings(api):
    """An embedding is a list of numbers, and has a price."""
    answer = api.embeddings.generate(model=MODEL, input="a farthing")
    check(len(answer.data[0].embedding) > 0, "no numbers")
    check(answer.usage.cost is not None, f"usage {answer.usage}")
    return len(answer.data[0].embedding)


def market(api):
    """The model is listed, somebody sells it, and they can be named."""
    author, slug = MODEL.split("/", 1)
    listed = api.models.list()
    listed = getattr(listed, "result", listed)
    check(MODEL in [model.id for model in listed.data], f"{listed}")
    check(api.models.count().data.count == len(listed.data), "another count")
    sellers = api.endpoints.list(author=author, slug=slug).data.endpoints
    check(sellers and sellers[0].model_id == MODEL, f"{sellers}")
    slugs = [provider.slug for provider in api.providers.list().data]
    check(sellers[0].tag in slugs, f"{slugs}")
    return slugs


def books(api, answer):
    """The generation is in the books, and so are credits, key and activity."""
    generation = api.generations.get_generation(id=answer.id).data
    check(generation.total_cost == answer.usage.cost, f"{generation}")
    check(generation.tokens_completion == answer.usage.completion_tokens, f"{generation}")
    credits = api.credits.get_credits().data
    check(0 < credits.total_usage < credits.total_credits, f"{credits}")
    key = api.api_keys.get_current_key_metadata().data
    check(key.usage == credits.total_usage, f"{key}")
    activity = api.analytics.get_user_activity().data
    check(sum(item.requests for item in activity) >= 1, f"{activity}")
    return {"credits": credits.total_credits, "used": credits.total_usage}


def errors_are_theirs(api):
    """An error is of their class for its status."""
    try:
        api.chat.send(model="no/such", messages=QUESTION)
        check(False, "an unknown model was sold")
    except errors.NotFoundResponseError as error:
        check(error.data.error.code == 404, f"{error.data}")
    if os.environ.get("API_KEY_EXPECTED"):
        try:
            client("another").chat.send(model=MODEL, messages=QUESTION)
            check(False, "another key was taken")
        except errors.UnauthorizedResponseError as error:
            check(error.data.error.code == 401, f"{error.data}")


def main():
    """Run everything."""
    with client() as api:
        answer = plain(api)
        seen = {
            "text": answer.choices[0].message.content,
            "cost": answer.usage.cost,
            "stream": stream(api),
            "numbers": embeddings(api),
            "sellers": market(api),
            "books": books(api, answer),
        }
        errors_are_theirs(api)
    print(json.dumps(seen))


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # noqa: BLE001
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
