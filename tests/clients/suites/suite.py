"""A pytest plugin: runs a library's own tests against the gateway.

Nothing of theirs is changed. What does not apply stands in a list (SUITE_LIST) with the reason; a
test on it must fail, and every pattern of it must match a test, so that the list cannot rot.

The suites are written for a server that makes answers up. Where one asks for a kept response or
conversation by an id that it made up itself, such a one is put there first: RESPONSES_DIR is the
folder in which the gateway keeps them, and the copy is of one that the gateway itself has made.

TEST_API_BASE_URL   the gateway, ending in /v1 (read by the suites too)
SUITE_LIST          the list
RESPONSES_DIR       where the gateway keeps responses
MODEL               a model on offer
"""

import fnmatch
import json
import os
import pathlib
import urllib.request

import pytest

MADE_UP = ["resp_677efb5139a88190b512bc3fef8e535d", "response_id"]
CONVERSATION = "conv_123"
ITEM = {"type": "message", "id": "msg_abc", "role": "user", "content": "Hello"}
FOLDER = "tests/api_resources/"


def listed(path):
    """Patterns and their reasons: a reason (after `# `) holds for the patterns below it."""
    reason = None
    for line in pathlib.Path(path).read_text().splitlines():
        if line.startswith("# "):
            reason = line[2:]
        elif line.strip():
            yield line, reason


def name_of(item):
    """A test's name: its file, class and function, whatever client it is run with."""
    return item.nodeid.split("[")[0].removeprefix(FOLDER)


def pytest_collection_modifyitems(items):
    """Marks those on the list: they must fail."""
    rules = list(listed(os.environ["SUITE_LIST"]))
    unused = {pattern for pattern, _ in rules}
    for item in items:
        for pattern, reason in rules:
            if fnmatch.fnmatchcase(name_of(item), pattern):
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
                unused.discard(pattern)
                break
    if unused:
        raise pytest.UsageError(f"no test is called {sorted(unused)}: take it off the list")


def ask(path, body):
    """One answer of the gateway."""
    request = urllib.request.Request(
        os.environ["TEST_API_BASE_URL"] + path,
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.fixture(scope="session")
def kept():
    """What the gateway wrote down of a response of its own."""
    response = ask("/responses", {"model": os.environ["MODEL"], "input": "Hello"})
    path = pathlib.Path(os.environ["RESPONSES_DIR"], response["id"] + ".json")
    return response["id"], path.read_text()


@pytest.fixture(scope="session")
def begun():
    """What the gateway wrote down of a conversation."""
    conversation = ask("/conversations", {"items": [ITEM]})
    path = pathlib.Path(os.environ["RESPONSES_DIR"], conversation["id"] + ".json")
    return conversation["id"], path.read_text()


def put(made_up, name, text):
    """A copy under a made-up id."""
    path = pathlib.Path(os.environ["RESPONSES_DIR"], made_up + ".json")
    path.write_text(text.replace(name, made_up))


@pytest.fixture(autouse=True)
def what_they_ask_for(request):
    """Responses and a conversation under the made-up ids, for the tests that may ask for one."""
    name = name_of(request.node)
    if "responses" in name:
        for made_up in MADE_UP:
            put(made_up, *request.getfixturevalue("kept"))
    if "conversations" in name:
        put(CONVERSATION, *request.getfixturevalue("begun"))
