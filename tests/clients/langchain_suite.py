#!/usr/bin/env python3
"""LangChain's own suite for chat models, unmodified, over `langchain-openai`.

BASE_URL  the endpoint, ending in /v1
MODEL     a model it serves
OTHER     another one

Prints one line of JSON: how many tests passed, and those that were skipped or failed with why.
"""

import json
import os
import sys

import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


@pytest.fixture
def vcr():
    """No cassettes are recorded here: the one test that measures with them says so and skips."""


@pytest.fixture
def benchmark():
    """As above."""


class Gateway(ChatModelIntegrationTests):
    """What the endpoint has. Pictures and documents are left out: the suite fetches its own from
    the Internet."""

    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {
            "model": os.environ["MODEL"],
            "base_url": os.environ["BASE_URL"],
            "api_key": "unused",
            "stream_usage": True,
        }

    @property
    def model_override_value(self):
        return os.environ["OTHER"]

    @property
    def supports_json_mode(self):
        return True


class TestBySchema(Gateway):
    """Structured output by `response_format`."""

    @property
    def structured_output_kwargs(self):
        return {"method": "json_schema"}


class TestByTools(Gateway):
    """Structured output by a tool."""

    @property
    def structured_output_kwargs(self):
        return {"method": "function_calling"}


class Outcomes:
    """Notes what became of each test."""

    def __init__(self):
        self.passed, self.skipped, self.failed = 0, {}, {}

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("::", 1)[-1]
        if report.failed:
            self.failed[name] = report.longreprtext[-2000:]
        elif report.skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.wasxfail
            self.skipped[name] = why
        elif report.when == "call":
            self.passed += 1

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed[report.nodeid or "collection"] = str(report.longrepr)[-2000:]


if __name__ == "__main__":
    outcomes = Outcomes()
    options = ["-q", "--no-header", "--no-summary", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]
    # langchain-openai keeps one HTTP client for all its models, and a client lives on one loop.
    options += ["-o", "asyncio_default_test_loop_scope=session"]
    sys.stdout, real = sys.stderr, sys.stdout
    ended = pytest.main([__file__, *options], plugins=[outcomes])
    print(json.dumps({"ended": int(ended), **vars(outcomes)}), file=real)
