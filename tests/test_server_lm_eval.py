"""lm-eval against the served demo pair: its log-likelihoods are those that the pair computes in this process.

lm-eval is large and no part of the development dependencies: where it is not installed, the route is held to what it
sends and reads in test_server_scores.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from server_fakes import KEY, Listening, listening

from edge_nudge.runtime import Pair, open_pair

pytestmark = [
    pytest.mark.demo,
    pytest.mark.process,
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed"),
]

DOCS = [
    {"q": "The capital of France is", "choices": [" Paris", " London", " a banana"], "gold": 0},
    {"q": "Water boils at 100 degrees", "choices": [" Celsius", " Kelvin", " été"], "gold": 0},
    {"q": "The sky is", "choices": [" blue", " wooden"], "gold": 0},
]
CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
ROLLING = """
task: tiny_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{q}}}}"
metric_list: [{{metric: word_perplexity}}]
"""
WRITING = """
task: tiny_writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, demo_paths: tuple[Path, Path]) -> Iterator[tuple[Listening, Pair]]:
    def load() -> Pair:
        return open_pair(base=demo_paths[0], nudging=demo_paths[1], ctx_size=512)

    with listening(tmp_path_factory.mktemp("lm"), load=load) as server, load() as pair:
        yield server, pair


def evaluated(server: Listening, folder: Path, model: str, route: str, *tasks: str) -> dict[str, list[dict[str, Any]]]:
    """Run lm-eval in a process of its own, as from the command line; return its samples by task."""
    data = folder / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS), encoding="utf-8")
    names = []
    for task in tasks:
        names.append(task.split()[1])
        (folder / f"{names[-1]}.yaml").write_text(task.format(data=data), encoding="utf-8")
    url = f"http://127.0.0.1:{server.port}/v1/{route}"
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", model, "--tasks", ",".join(names)),
        *("--model_args", f"model=fake,base_url={url},auth_token={KEY},max_length=500"),
        *("--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"),
        *(["--apply_chat_template"] if "chat" in model else []),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    environment = {**os.environ, **offline, "OPENAI_API_KEY": KEY}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = {}
    for name in names:
        (file,) = (folder / "out").rglob(f"samples_{name}_*.jsonl")
        found[name] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return found


def ids_of(pair: Pair, text: str) -> list[int]:
    return pair.base.tokenize(text.encode())


def test_log_likelihoods_are_those_of_the_pair(served: tuple[Listening, Pair], tmp_path: Path) -> None:
    server, pair = served
    samples = evaluated(server, tmp_path, "local-completions", "completions", CHOICE, ROLLING, WRITING)
    n_checked = 0
    for sample in samples["tiny_choice"]:
        for arguments, (response,) in zip(sample["arguments"].values(), sample["resps"], strict=True):
            context, continuation = arguments["arg_0"], arguments["arg_1"]
            scores = pair.score(ids_of(pair, context + continuation), 1)[len(ids_of(pair, context)) :]
            assert float(response[0]) == pytest.approx(sum(score.logprob or 0 for score in scores), abs=1e-4)
            assert str(response[1]) == str(all(score.logprob == score.top[0][1] for score in scores))
            n_checked += 1
    assert n_checked == 8
    for sample in samples["tiny_rolling"]:
        bos = pair.base.info.bos
        assert bos is not None  # lm-eval puts it in front by itself
        scores = pair.score([bos, *ids_of(pair, sample["doc"]["q"])], 1)[1:]
        (response,) = sample["resps"]
        value = response[0] if isinstance(response, list) else response
        assert float(value) == pytest.approx(sum(score.logprob or 0 for score in scores), abs=1e-4)
    assert all(sample["resps"][0][0].strip() for sample in samples["tiny_writing"])


def test_chat_completions_write(served: tuple[Listening, Pair], tmp_path: Path) -> None:
    server, pair = served
    samples = evaluated(server, tmp_path, "local-chat-completions", "chat/completions", WRITING)
    for sample in samples["tiny_writing"]:
        events = pair.stream(sample["doc"]["q"], max_tokens=6, stop=["\n"])
        alone = "".join(getattr(event, "text", "") for event in events)
        assert sample["resps"][0][0] == alone
