"""lm-evaluation-harness on the demo pair, by our command and over the local API: its figures are those of the pair."""

from __future__ import annotations

import importlib.util
import json
import os
import re
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
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed: pip install 'edge-nudge[eval]'"
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


# made up for this test
ROWS = [
    {
        "id": "jars",
        "question": "Ada fills 3 jars with 4 buttons each. How many buttons are in the jars?",
        "answer": "12",
    },
    {"id": "bus", "question": "A bus has 9 riders, and 5 of them get off. How many riders stay?", "answer": "4"},
    {"id": "rope", "question": "A rope of 20 metres is cut in half. How long is each part in metres?", "answer": "10"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (folder / "tasks").mkdir()
    for name, text in (("choice", CHOICE), ("rolling", ROLLING), ("written", WRITTEN)):
        (folder / "tasks" / f"{name}.yaml").write_text(text.format(data=data))
    (folder / "rows").mkdir()
    (folder / "rows" / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture(scope="module")
def server(demo_paths: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo pair served on a Unix socket and on loopback TCP, by the installed program."""
    home = tmp_path_factory.mktemp("r")
    files = ["-m", str(demo_paths[0]), "--nudge", str(demo_paths[1])]
    command = [sys.executable, "-m", "edge_nudge.cli.main", "serve", *files, "--tcp", "127.0.0.1:0", "-t", "1"]
    server = Server(command, home, env={**os.environ, "EDGE_NUDGE_RUNTIME_DIR": str(home)})
    try:
        yield server.ready()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def pair(demo_paths: tuple[Path, Path]) -> Iterator[Pair]:
    with open_pair(base=demo_paths[0], nudging=demo_paths[1], threads=1) as pair:
        yield pair


Lines = list[dict[str, Any]]


def run(folder: Path, name: str, *arguments: str, key: str = "") -> dict[str, Lines]:
    """Run `edge-nudge lm-eval` in a process of its own; return what it says of each item, by task."""
    out = folder / name
    command = [
        *(sys.executable, "-W", "always::ResourceWarning", "-m", "edge_nudge.cli.main", "lm-eval"), *arguments,
        *("--include_path", str(folder / "tasks"), "--output_path", str(out), "--log_samples"),
    ]  # fmt: skip
    environment = {
        **os.environ, "OPENAI_API_KEY": key, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"), "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    # llama_cpp keeps two of its own open
    left_open = [line for line in done.stderr.splitlines() if "ResourceWarning" in line and os.devnull not in line]
    assert left_open == []
    found: dict[str, Lines] = {}
    for file in out.rglob("samples_*.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        task = file.name.removeprefix("samples_").rsplit("_", 1)[0]
        found[task] = sorted(lines, key=lambda line: line["doc_id"])
    return found


def through_api(
    folder: Path, server: Server, model: str, path: str, task: str, *more: str, settings: str = ""
) -> Lines:
    key = server.endpoint["key"]
    arguments = f"base_url={server.endpoint['url']}{path},num_concurrent=1,max_retries=1{settings}"
    found = run(
        folder, f"{model}-{task}{settings}",
        *("--model", model, "--tasks", task),
        *("--model_args", f"{arguments},auth_token={key},model={server.endpoint['model']}", *more),
        key=key,
    )  # fmt: skip
    return found[task]


@pytest.fixture(scope="module")
def in_process(folder: Path, demo_paths: tuple[Path, Path]) -> dict[str, Lines]:
    """What the command says of log-likelihoods."""
    files = f"base={demo_paths[0]},nudging={demo_paths[1]}"
    return run(
        folder, "here", "run", "--tasks", "tiny_choice,tiny_rolling", "--model_args", f"{files},system=base,threads=1"
    )


@needs_lm_eval
def test_log_likelihoods_are_those_of_the_pair(
    folder: Path, server: Server, pair: Pair, in_process: dict[str, Lines]
) -> None:
    """By the command to the last digit; over the API where texts are sent, so that BOS stands in front there too."""
    api = through_api(
        folder, server, "local-completions", "/v1/completions", "tiny_choice", settings=",tokenized_requests=False"
    )
    here = in_process["tiny_choice"]
    assert len(here) == len(api) == len(ITEMS)
    for item, line, api_line in zip(ITEMS, here, api, strict=True):
        answers = zip(item["choices"], line["filtered_resps"], api_line["filtered_resps"], strict=True)
        for choice, answer, api_answer in answers:
            query = item["query"]
            n_query = len(pair.base.tokenize(query.encode()))
            scores = pair.score(f"{query} {choice}", 1)[n_query:]
            expected = sum(score.logprob or 0.0 for score in scores)
            is_greedy = all(score.top[0][1] == score.logprob for score in scores)
            assert float(answer[0]) == expected
            assert float(api_answer[0]) == pytest.approx(expected, abs=1e-3)
            assert str(answer[1]) == str(api_answer[1]) == str(is_greedy)
    assert [line["acc"] for line in here] == [line["acc"] for line in api]


@needs_lm_eval
def test_token_ids_are_scored_without_bos(folder: Path, server: Server, pair: Pair) -> None:
    lines = through_api(folder, server, "local-completions", "/v1/completions", "tiny_choice")
    for item, line in zip(ITEMS, lines, strict=True):
        for choice, answer in zip(item["choices"], line["filtered_resps"], strict=True):
            n_query = len(pair.base.tokenize(item["query"].encode()))
            scores = pair.score(pair.base.tokenize(f"{item['query']} {choice}".encode()), 1)[n_query:]
            assert float(answer[0]) == pytest.approx(sum(score.logprob or 0.0 for score in scores), abs=1e-3)


@needs_lm_eval
def test_a_whole_text_scores_as_the_pair_scores_it(
    folder: Path, server: Server, pair: Pair, in_process: dict[str, Lines]
) -> None:
    api = through_api(folder, server, "local-completions", "/v1/completions", "tiny_rolling")
    here = in_process["tiny_rolling"]
    bos = pair.base.info.bos
    assert bos is not None  # lm-eval puts it in front by itself
    assert len(here) == len(api) == len(ITEMS)
    for item, line, api_line in zip(ITEMS, here, api, strict=True):
        scores = pair.score([bos, *pair.base.tokenize(item["query"].encode())], 1)[1:]
        expected = sum(score.logprob or 0.0 for score in scores)
        assert the_figure(line) == expected
        assert the_figure(api_line) == pytest.approx(expected, abs=1e-3)


def the_figure(line: dict[str, Any]) -> float:
    (answer,) = line["resps"]
    return float(answer[0] if isinstance(answer, list) else answer)


@needs_lm_eval
def test_answers_are_those_of_the_pair(folder: Path, server: Server, pair: Pair) -> None:
    lines = through_api(
        folder, server, "local-chat-completions", "/v1/chat/completions", "tiny_written", "--apply_chat_template"
    )
    for item, line in zip(ITEMS, lines, strict=True):
        answer = pair.stream(item["query"], max_tokens=12, stop=["\n\n"])
        text = "".join(getattr(event, "text", "") for event in answer)
        assert line["resps"][0][0] == text


@needs_lm_eval
def test_our_tasks_have_the_same_answers_both_ways(folder: Path, server: Server, demo_paths: tuple[Path, Path]) -> None:
    common = (
        "--metadata", json.dumps({"data": str(folder / "rows"), "limit": 2}), "--apply_chat_template",
        "--gen_kwargs", "max_gen_toks=24,cache_prompt=false,gamma=0.3",
    )  # fmt: skip
    files = f"base={demo_paths[0]},nudging={demo_paths[1]}"
    found = run(
        folder, "nudged", "run", "--tasks", "nudge_gsm8k", "--model_args", f"{files},system=nudged,threads=1", *common
    )
    here = found["nudge_gsm8k"]
    api = through_api(folder, server, "local-chat-completions", "/v1/chat/completions", "nudge_gsm8k", *common)
    assert len(here) == len(api) == 2
    assert all(len(line["resps"][0][0].split()) > 3 for line in here)
    assert [line["resps"] for line in here] == [line["resps"] for line in api]
    assert [line["doc"] for line in here] == [line["doc"] for line in api]
    assert [line["acc"] for line in here] == [line["acc"] for line in api]
    (results,) = (folder / "nudged").rglob("results_*.json")
    config = json.loads(results.read_text())["config"]
    assert (config["model"], config["system"]) == ("edge_nudge", "nudged")
    assert config["pair"]["base"]["file"] == demo_paths[0].name


# --- other clients of the same server


@pytest.mark.parametrize("name", ["Client()", "openai.OpenAI"])
def test_the_clients_of_the_readme_run(name: str, server: Server) -> None:
    """The examples as they stand there, but for the served name."""
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (example,) = [part for part in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if name in part]
    code = f"S = {server.endpoint['socket']!r}\n{example}".replace('"demo"', repr(server.endpoint["model"]))
    if "openai" in name:
        code = code.replace("client.chat", "answer = client.chat") + "print(answer.choices[0].message.content)"
    environment = {**os.environ, "EDGE_NUDGE_RUNTIME_DIR": str(Path(server.endpoint["socket"]).parent)}
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert len(shown.stdout.split()) > 3


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
