"""lm-evaluation-harness against the local API on the demo pair: its figures are those of a pair in this process."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Server

from edge_nudge.client import Client
from edge_nudge.runtime import Pair, open_pair

pytestmark = [pytest.mark.process, pytest.mark.demo]
needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed: pip install 'edge-nudge[lm-eval]'"
)

ITEMS = [
    {"query": "Question: What colour is the sky?\nAnswer:", "choices": ["blue", "green", "made of glass"], "gold": 0},
    {"query": "The capital of France is", "choices": ["Berlin", "Paris", "a café — naïve"], "gold": 1},
    {"query": "Two plus two is", "choices": ["four", "twelve", "日本"], "gold": 0},
]
CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""
ROLLING = """
task: tiny_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{query}}}}"
metric_list: [{{metric: word_perplexity}}]
"""
WRITTEN = """
task: tiny_written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{query}}}}"
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs: {{max_gen_toks: 12, until: ["\\n\\n"]}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (folder / "tasks").mkdir()
    for name, text in (("choice", CHOICE), ("rolling", ROLLING), ("written", WRITTEN)):
        (folder / "tasks" / f"{name}.yaml").write_text(text.format(data=data))
    return folder


@pytest.fixture(scope="module")
def server(demo_paths: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo pair served on a Unix socket and on loopback TCP, by the installed program."""
    home = tmp_path_factory.mktemp("r")
    files = ["-m", str(demo_paths[0]), "--nudge", str(demo_paths[1])]
    command = [sys.executable, "-m", "edge_nudge.cli.main", "serve", *files, "--tcp", "127.0.0.1:0"]
    server = Server(command, home, env={**os.environ, "EDGE_NUDGE_RUNTIME_DIR": str(home)})
    try:
        yield server.ready()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def pair(demo_paths: tuple[Path, Path]) -> Iterator[Pair]:
    with open_pair(base=demo_paths[0], nudging=demo_paths[1]) as pair:
        yield pair


def evaluate(folder: Path, server: Server, model: str, path: str, task: str, *more: str) -> list[dict[str, Any]]:
    """Run lm_eval in a process of its own; return what it says of each item."""
    key = server.endpoint["key"]
    arguments = f"base_url={server.endpoint['url']}{path},num_concurrent=1,max_retries=1"
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", model, "--tasks", task, "--include_path", str(folder / "tasks")),
        *("--model_args", f"{arguments},auth_token={key},model={server.endpoint['model']}"),
        *("--output_path", str(folder / model), "--log_samples", *more),
    ]
    environment = {
        **os.environ, "OPENAI_API_KEY": key, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"), "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = (folder / model).rglob(f"samples_{task}_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    return sorted(lines, key=lambda line: line["doc_id"])


@needs_lm_eval
def test_log_likelihoods_are_those_of_the_pair(folder: Path, server: Server, pair: Pair) -> None:
    lines = evaluate(folder, server, "local-completions", "/v1/completions", "tiny_choice")
    assert len(lines) == len(ITEMS)
    for item, line in zip(ITEMS, lines, strict=True):
        for choice, answer in zip(item["choices"], line["filtered_resps"], strict=True):
            query = item["query"]
            n_query = len(pair.base.tokenize(query.encode()))
            scores = pair.score(pair.base.tokenize(f"{query} {choice}".encode()), 1)[n_query:]
            expected = sum(score.logprob or 0.0 for score in scores)
            is_greedy = all(score.top[0][1] == score.logprob for score in scores)
            assert float(answer[0]) == pytest.approx(expected, abs=1e-3)
            assert answer[1] in (is_greedy, str(is_greedy))


@needs_lm_eval
def test_a_whole_text_scores_as_the_pair_scores_it(folder: Path, server: Server, pair: Pair) -> None:
    lines = evaluate(folder, server, "local-completions", "/v1/completions", "tiny_rolling")
    bos = pair.base.info.bos
    assert bos is not None  # lm-eval puts it in front by itself
    assert len(lines) == len(ITEMS)
    for item, line in zip(ITEMS, lines, strict=True):
        scores = pair.score([bos, *pair.base.tokenize(item["query"].encode())])[1:]
        (answer,) = line["resps"]
        value = answer[0] if isinstance(answer, list) else answer
        assert float(value) == pytest.approx(sum(score.logprob or 0.0 for score in scores), abs=1e-3)


@needs_lm_eval
def test_answers_are_those_of_the_pair(folder: Path, server: Server, pair: Pair) -> None:
    lines = evaluate(
        folder, server, "local-chat-completions", "/v1/chat/completions", "tiny_written", "--apply_chat_template"
    )
    for item, line in zip(ITEMS, lines, strict=True):
        answer = pair.stream(item["query"], max_tokens=12, stop=["\n\n"])
        text = "".join(getattr(event, "text", "") for event in answer)
        assert line["resps"][0][0] == text


# --- other clients of the same server


def test_the_client_scores_as_the_pair_does(server: Server, pair: Pair) -> None:
    prompt = "The sky is blue, café, 日本 😀."
    with Client(socket=server.socket) as client:
        found = client.score(prompt, 2)
    expected = pair.score(prompt, 2)
    assert [score.data for score in found] == [score.data for score in expected]
    assert [score.id for score in found] == [score.id for score in expected]
    assert [score.logprob for score in found[1:]] == pytest.approx([score.logprob for score in expected[1:]], abs=1e-6)


NODE = """
const http = require("http");
const body = JSON.stringify({messages: [{role: "user", content: "What is a fjord?"}], max_tokens: 6, stream: true});
const options = {
  socketPath: process.argv[1], path: "/v1/chat/completions", method: "POST",
  headers: {"Content-Type": "application/json", "Content-Length": Buffer.byteLength(body)},
};
http.request(options, (response) => {
  response.setEncoding("utf8");
  let data = "";
  response.on("data", (part) => (data += part));
  response.on("end", () => {
    for (const line of data.split("\\n")) {
      if (!line.startsWith("data: {")) continue;
      for (const choice of JSON.parse(line.slice(6)).choices) process.stdout.write(choice.delta.content || "");
    }
  });
}).end(body);
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_node_over_the_unix_socket(server: Server, pair: Pair) -> None:
    done = subprocess.run(
        ["node", "-e", NODE, str(server.socket)], capture_output=True, text=True, timeout=300, check=True
    )
    answer = pair.stream("What is a fjord?", max_tokens=6)
    assert done.stdout == "".join(getattr(event, "text", "") for event in answer)
