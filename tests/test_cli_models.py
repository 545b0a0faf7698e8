"""`pull`, `list`, `show` and `rm` as a user meets them; `-m` and `--nudge` with names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import huggingface_hub
import pytest
from cli_fakes import Invoke, fake_pair, invoker
from hub_server import HubServer, Repo
from huggingface_hub import constants
from tiny_gguf import CHATML, write_tiny

from edge_nudge.catalog import found, hub_cache, hub_fetch, ledger, store
from edge_nudge.catalog.files import megabytes
from edge_nudge.cli import pull as pull_command
from edge_nudge.cli.main import commands
from edge_nudge.engine.memory import PROGRAM_BYTES
from edge_nudge.runtime import PairSpec

REPO = "user/Tiny-GGUF"
ESCAPES = "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\ \x1b[2J\u202egnp\x9b31m\x07"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "OLLAMA_MODELS", "LLAMA_CACHE", "XDG_CACHE_HOME", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "")  # so that it is put back: --offline sets it
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    for name, folder in (("DATA", "data"), ("CONFIG", "config"), ("CACHE", "cache")):
        monkeypatch.setenv(f"EDGE_NUDGE_{name}_DIR", str(tmp_path / folder))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Invoke]:
    yield from invoker(monkeypatch, home)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", chat_template=CHATML).read_bytes()


@pytest.fixture
def server(tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer().running() as running:
        running.repos[REPO] = Repo({"Tiny.Q4_K_M.gguf": tiny, "Tiny.Q8_0.gguf": tiny + b"\0" * 32})
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setattr(hub_fetch.time, "sleep", lambda seconds: None)
        yield running
    huggingface_hub.close_session()


def write_pair(home: Path, name: str, tiny: bytes, *, base: str = "Tiny.Q4_K_M.gguf") -> None:
    """A user's pair: the base model from the hub, the nudging model a file on this machine."""
    (home / "nudge.gguf").write_bytes(tiny)
    folder = home / "config" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text(
        f"""
title = "Pair {name}"
gamma = 0.4
[base]
file = "{base}"
prompt_format = "qa"
[base.licence]
name = "Licence of base"
url = "https://example.org"
notice = "Notice of base."
[base.source]
kind = "hub"
repo = "{REPO}"
[nudging.source]
kind = "file"
path = "{home / "nudge.gguf"}"
"""
    )


def paths_of(out: str) -> list[Path]:
    return [Path(line) for line in out.splitlines()]


# pull


def test_pull_prints_the_path_and_says_the_size_before(invoke: Invoke, server: HubServer, tiny: bytes) -> None:
    ended = invoke("pull", REPO)
    assert ended.code == 0
    (path,) = paths_of(ended.out)
    assert path.read_bytes() == tiny
    first, second = ended.err.splitlines()
    assert re.fullmatch(rf"Tiny\.Q4_K_M\.gguf, [\d.]+ [kM]B, from {REPO}", first)
    assert re.fullmatch(rf"To be fetched: [\d.]+ [kM]B, kept in {re.escape(str(hub_cache.hub_cache_dir()))}\.", second)
    again = invoke("pull", REPO)
    assert (again.code, again.out, again.err) == (0, ended.out, "")


def test_pull_as_json(invoke: Invoke, server: HubServer, tiny: bytes, home: Path) -> None:
    write_pair(home, "own", tiny)
    ended = invoke("pull", "own", f"{REPO}:Q8_0", "--json", "--yes")
    assert ended.code == 0
    own, model = json.loads(ended.out)["pulled"]
    assert (own["name"], own["is_pair"], own["was_here"]) == ("own", True, False)
    assert [Path(file).name for file in own["files"]] == ["Tiny.Q4_K_M.gguf", "nudge.gguf"]
    assert (model["name"], model["is_pair"]) == (f"{REPO}:Q8_0", False)
    assert "licence: Licence of base, https://example.org" in ended.err
    assert "Notice of base." in ended.err


@pytest.mark.parametrize("answer", [True, False])
def test_something_large_is_asked_for(
    invoke: Invoke, server: HubServer, monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    asked: list[str] = []

    def confirm(text: str, **settings: object) -> bool:
        asked.append(text)
        return answer

    monkeypatch.setattr(store, "LARGE_BYTES", 1000)
    monkeypatch.setattr(click, "confirm", confirm)
    ended = invoke("pull", REPO, tty="err")
    assert len(asked) == 1
    assert re.fullmatch(r"Fetch [\d.]+ [kM]B\?", asked[0])
    assert len(server.content_requests()) == answer
    assert ended.code == (0 if answer else 2)
    assert answer or ended.err.endswith("error: nothing was fetched: the answer was no\n")


def test_something_large_needs_yes_where_nobody_can_be_asked(
    invoke: Invoke, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LARGE_BYTES", 1000)
    ended = invoke("pull", REPO, stdin=b"")
    assert ended.code == 2
    assert "are to be fetched, and nobody can be asked here: give --yes" in ended.err
    assert server.content_requests() == []
    assert invoke("pull", REPO, "--yes", stdin=b"").code == 0


def test_everything_is_looked_up_before_anything_is_fetched(invoke: Invoke, server: HubServer) -> None:
    ended = invoke("pull", REPO, "user/none")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err.startswith("error: http://127.0.0.1:")
    assert server.content_requests() == []


def test_a_model_of_two_pairs_counts_and_comes_once(invoke: Invoke, server: HubServer, tiny: bytes, home: Path) -> None:
    write_pair(home, "one", tiny)
    write_pair(home, "two", tiny)
    ended = invoke("pull", "one", "two")
    assert ended.code == 0
    assert f"To be fetched: {megabytes(len(tiny))}, kept in" in ended.err
    assert len(server.content_requests()) == 1


def test_offline_tells_what_is_here(invoke: Invoke, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = invoke("pull", REPO).out
    server.asked.clear()
    ended = invoke("pull", REPO, "--offline")
    assert (ended.code, ended.out, ended.err) == (0, path, "")
    ended = invoke("pull", f"{REPO}:Q8_0", "--offline")
    assert ended.code == 4
    assert "the network is switched off (--offline or HF_HUB_OFFLINE)" in ended.error
    assert server.asked == []


def test_without_network_what_is_here_is_taken_and_that_is_said(
    invoke: Invoke, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = invoke("pull", REPO).out
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    ended = invoke("pull", REPO)
    assert (ended.code, ended.out) == (0, path)
    assert ended.err.startswith("no connection to http://127.0.0.1:9 ")
    assert ended.err.endswith(f"{REPO} is here as last seen.\n")
    ended = invoke("pull", "other/repo")
    assert ended.code == 4
    assert ended.error.startswith("error: no connection to http://127.0.0.1:9 (ConnectError")


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("nothing", 2, "unknown pair 'nothing': the known pairs are demo"),
        ("ollama:smollm2", 2, "run 'ollama pull smollm2', it is then used in place"),
        ("gemma-2-27b", 4, "comes through Ollama: run 'ollama pull gemma2:27b-text-q4_K_M'"),
        (f"{REPO}:Q3_K", 2, "has no file for Q3_K"),
        ("bad\x1b[2J", 2, "unknown pair 'bad\\x1b[2J'"),
    ],
)
def test_what_pull_cannot_get_is_one_line(invoke: Invoke, server: HubServer, name: str, code: int, words: str) -> None:
    ended = invoke("pull", name)
    assert ended.code == code
    assert words in ended.error
    assert "\x1b" not in ended.error


def test_a_bar_is_shown_on_a_terminal(invoke: Invoke, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    ended = invoke("pull", REPO, tty="err")
    assert ended.code == 0
    assert "Tiny.Q4_K_M.gguf" in ended.err
    assert "checking Tiny.Q4_K_M.gguf" in ended.err
    assert ended.err.endswith(f"{REPO} is here: use it with -m or --nudge {REPO}\n")


# list and show


def test_list_says_what_is_here_and_what_is_not(invoke: Invoke, server: HubServer, tiny: bytes, home: Path) -> None:
    write_pair(home, "own", tiny)
    rows = {line.split()[0]: line for line in invoke("list").out.splitlines() if line}
    assert re.match(r"own +in part +\? +\? +Pair own$", rows["own"])
    assert re.match(r"demo +no +331 MB +790 MB +Gemma 3 270M", rows["demo"])
    invoke("pull", "own")
    ended = invoke("list")
    assert re.search(r"^own +yes +- +[\d.]+ MB +Pair own$", ended.out, re.MULTILINE)
    assert re.search(rf"^{REPO}:Tiny\.Q4_K_M\.gguf +[\d.]+ [kM]B +own$", ended.out, re.MULTILINE)
    assert not re.search(r" $", ended.out, re.MULTILINE)


def test_list_as_json(invoke: Invoke, server: HubServer, tiny: bytes, home: Path) -> None:
    write_pair(home, "own", tiny)
    invoke("pull", "own")
    document = json.loads(invoke("list", "--all", "--json").out)
    pairs = {pair["name"]: pair for pair in document["pairs"]}
    assert pairs["own"]["is_complete"]
    assert (pairs["own"]["memory_from"], pairs["llama-3-8b"]["memory_from"]) == ("files", "manifest")
    assert pairs["own"]["memory_bytes"] == pytest.approx(PROGRAM_BYTES, rel=0.1)  # all else is tiny
    assert pairs["own"]["place"] == str(home / "config" / "models" / "own.toml")
    assert pairs["own"]["base"]["source"]["repo"] == REPO
    assert Path(pairs["own"]["base"]["path"]).read_bytes() == tiny
    assert pairs["llama-3-8b"]["fetch_bytes"] == 4_920_000_000 + 807_694_464
    (file,) = document["files"]
    assert (file["name"], file["pairs"], file["size_bytes"]) == (f"{REPO}:Tiny.Q4_K_M.gguf", ["own"], len(tiny))
    assert document["found"] == []


def test_a_faulty_pair_of_the_user_is_shown_and_hides_nothing(invoke: Invoke, home: Path) -> None:
    (home / "config" / "models").mkdir(parents=True)
    (home / "config" / "models" / "bad.toml").write_text("gamma = 5")
    ended = invoke("list")
    assert ended.code == 0
    assert re.search(r"^bad +broken .*bad\.toml: title: Field required", ended.out, re.MULTILINE)
    assert "demo" in ended.out
    assert invoke("show", "bad").error.startswith(f"error: {home / 'config' / 'models' / 'bad.toml'}: title: ")


def put_hostile(home: Path) -> None:
    """B62: a file whose name and whose metadata want to act on the terminal."""
    folder = home / ".cache" / "llama.cpp"
    folder.mkdir(parents=True)
    write_tiny(folder / "a\x1b[2Jb.gguf", chat_template=CHATML, changes={"general.name": ESCAPES})
    (folder / "broken\x1b[31m.gguf").write_bytes(b"GGUF\x03")


@pytest.mark.parametrize("tty", ["", "out err"])
def test_control_characters_in_names_and_metadata_are_visible(invoke: Invoke, home: Path, tty: str) -> None:
    put_hostile(home)
    path = str(home / ".cache" / "llama.cpp" / "a\x1b[2Jb.gguf")
    for arguments in (("list", "--all"), ("show", path), ("list", "--all", "--json"), ("show", path, "--json")):
        ended = invoke(*arguments, tty=tty)
        assert ended.code == 0, ended.err
        assert not set(ended.out + ended.err) & set("\x1b\x07\x9b\u202e"), arguments
    assert "a\\x1b[2Jb.gguf" in re.sub(r"\s", "", invoke("list", "--all", tty=tty).out)
    assert "\\x1b]8;;http://evil\\x1b" in invoke("show", path).out
    document = json.loads(invoke("show", path, "--json").out)
    assert document["file"]["name"] == ESCAPES


def test_a_broken_file_is_listed_as_such(invoke: Invoke, home: Path) -> None:
    put_hostile(home)
    ended = invoke("list", "--all")
    assert re.search(r"broken\\x1b\[31m\.gguf +llama\.cpp +- +- +5 bytes +broken: it ends inside its header", ended.out)
    found_files = json.loads(invoke("list", "--all", "--json").out)["found"]
    assert [bool(file["fault"]) for file in found_files] == [False, True]
    broken = invoke("show", str(home / ".cache" / "llama.cpp" / "broken\x1b[31m.gguf"))
    assert broken.code == 1
    assert "\\x1b[31m" in broken.error


def test_show_a_pair(invoke: Invoke) -> None:
    out = invoke("show", "llama-3-8b").out
    for words in (
        "hub, QuantFactory/Meta-Llama-3.1-8B-GGUF", "unknown: the hub's own listing", "Base model alone 0.11",
        "Llama 3.2 Community License", "0 of 2 models; 'edge-nudge pull llama-3-8b' gets the rest", "arXiv 2606.11201",
    ):  # fmt: skip
        assert words in out
    assert re.search(r"memory +about [\d.]+ GB .* by the manifest: the files are not all here", out)
    document = json.loads(invoke("show", "llama-3-8b", "--json").out)["pair"]
    assert document["base"]["sha256"] is None
    assert document["nudging"]["licence"]["name"] == "Llama 3.2 Community License"


def test_show_a_file_by_its_names(invoke: Invoke, server: HubServer, tiny: bytes) -> None:
    (path,) = paths_of(invoke("pull", REPO).out)
    by_name = json.loads(invoke("show", REPO, "--json").out)["file"]
    assert by_name == {**json.loads(invoke("show", str(path), "--json").out)["file"], "why": by_name["why"]}
    assert by_name["owner"] == "fetched by edge-nudge"
    assert by_name["size_bytes"] == len(tiny)
    out = invoke("show", REPO).out
    assert re.search(r"^kind +instruct: it has a chat template", out, re.MULTILINE)
    assert re.search(r"^use +as base model \(-m\) or as nudging model", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "there is no pair, model or file 'nothing'"),
        ("no/where.gguf", "does not exist"),
        ("a/b", "edge-nudge pull a/b"),
    ],
)
def test_show_what_is_not_there(invoke: Invoke, name: str, words: str) -> None:
    ended = invoke("show", name)
    assert ended.code in (1, 2)
    assert words in ended.error


# rm


def test_rm_removes_what_was_fetched_and_nothing_else(
    invoke: Invoke, server: HubServer, tiny: bytes, home: Path
) -> None:
    (path,) = paths_of(invoke("pull", REPO).out)
    ended = invoke("rm", REPO, stdin=b"")
    assert ended.code == 2
    assert f"  {path}  " in ended.err
    assert ended.err.endswith("error: this file would be removed, and nobody can be asked here: give --yes\n")
    assert path.exists()
    ended = invoke("rm", REPO, "--yes", "--json")
    assert json.loads(ended.out) == {"removed": [str(path)], "kept": [], "freed_bytes": len(tiny)}
    assert not hub_cache.repo_folder(REPO).exists()
    assert list(ledger.notes()) == []
    assert invoke("rm", REPO, "--yes").code == 2


def test_rm_never_touches_what_another_program_put_there(
    invoke: Invoke, server: HubServer, tiny: bytes, home: Path
) -> None:
    (path,) = paths_of(invoke("pull", REPO).out)
    ledger.forget(path)
    other = home / ".lmstudio" / "models" / "a" / "b" / "m.gguf"
    other.parent.mkdir(parents=True)
    other.write_bytes(tiny)
    (home / "data" / "models").mkdir(parents=True)
    (home / "data" / "models" / "mine.gguf").write_bytes(tiny)
    for name, words in (
        (REPO, "remove it with 'hf cache' of huggingface_hub"), (str(path), "was not fetched by edge-nudge"),
        (str(other), "remove it with LM Studio"), ("mine.gguf", "remove it by hand"),
    ):  # fmt: skip
        ended = invoke("rm", name, "--yes")
        assert ended.code == 2
        assert words in ended.error
    assert path.exists()
    assert other.exists()


def test_rm_keeps_what_another_complete_pair_needs(invoke: Invoke, server: HubServer, tiny: bytes, home: Path) -> None:
    write_pair(home, "one", tiny)
    write_pair(home, "two", tiny)
    invoke("pull", "one", "two")
    ended = invoke("rm", "one", "--yes")
    assert ended.code == 0
    assert "stays: the pair two needs it" in ended.err
    assert "nudge.gguf stays: " in ended.err
    assert "there is nothing to remove" in ended.err
    (home / "config" / "models" / "two.toml").unlink()
    assert "removed 1 file, " in invoke("rm", "one", "--yes").err
    assert (home / "nudge.gguf").exists()


def test_rm_takes_the_blob_only_with_its_last_snapshot(invoke: Invoke, server: HubServer, tiny: bytes) -> None:
    (old,) = paths_of(invoke("pull", REPO).out)
    server.repos[REPO].commit = "e" * 40
    (new,) = paths_of(invoke("pull", REPO).out)
    assert old.resolve() == new.resolve()
    assert json.loads(invoke("rm", str(old), "--yes", "--json").out)["freed_bytes"] == 0
    assert new.read_bytes() == tiny


def test_rm_of_wheels_takes_the_stamp_too(invoke: Invoke, home: Path) -> None:
    folder = home / "data" / "models"
    folder.mkdir(parents=True)
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    (folder / name).write_bytes(b"x" * 1000)
    (folder / f"{name}.verified.json").write_text("{}")
    ended = invoke("rm", name, "--yes")
    assert (ended.code, ended.err) == (0, "removed 1 file, 1.0 kB are free again\n")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["nothing", "demo", "../x", "a/b"])
def test_rm_of_what_is_not_there(invoke: Invoke, name: str) -> None:
    ended = invoke("rm", name, "--yes")
    if name == "demo":
        assert (ended.code, ended.err) == (0, "there is nothing to remove\n")
    else:
        assert ended.code == 2


def test_a_no_removes_nothing(invoke: Invoke, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = paths_of(invoke("pull", REPO).out)
    monkeypatch.setattr(click, "confirm", lambda text, **settings: text != "Remove this file?")
    assert invoke("rm", REPO, tty="err").err.endswith("error: nothing was removed: the answer was no\n")
    assert path.exists()


# run with names


def test_run_takes_names_of_models(invoke: Invoke, server: HubServer, tiny: bytes, home: Path) -> None:
    (path,) = paths_of(invoke("pull", REPO).out)
    digest = hashlib.sha256(tiny).hexdigest()
    place = home / ".ollama" / "models" / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest"
    place.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    place.write_text(json.dumps({"layers": [layer]}))
    blob = home / ".ollama" / "models" / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(tiny)
    loaded: list[PairSpec] = []

    def load(spec: PairSpec, **settings: object) -> object:
        loaded.append(spec)
        return fake_pair(spec=spec)

    ended = invoke("run", "-m", REPO, "--nudge", "ollama:tiny", "Hi", load=load)
    assert ended.code == 0, ended.err
    assert (loaded[0].base, loaded[0].nudging) == (path, blob)


def test_run_says_how_to_get_a_model(invoke: Invoke) -> None:
    ended = invoke("run", "-m", "a/b:Q8_0", "--nudge", "x.gguf", "Hi")
    assert ended.code == 1
    assert "base model a/b:Q8_0 is not on this machine" in ended.error
    assert "run 'edge-nudge pull a/b:Q8_0'" in ended.error


def test_run_never_fetches_a_large_pair_by_the_way(invoke: Invoke) -> None:
    ended = invoke("run", "--pair", "llama-3-8b", "Hi")
    assert ended.code == 4
    assert "5.73 GB): run 'edge-nudge pull llama-3-8b' first" in ended.error


def test_the_limit_is_the_one_that_is_told() -> None:
    assert store.LARGE_BYTES == 1e9
    assert "From 1 GB on" in (pull_command.__doc__ or "")
    assert found.OLLAMA_PREFIX == "ollama:"


def test_the_shell_offers_pairs() -> None:
    command = commands.get_command(click.Context(commands), "pull")
    assert command is not None
    context = click.Context(command)
    offered = command.params[0].shell_complete(context, "qwen-3-8b")
    assert [item.value for item in offered] == ["qwen-3-8b-gemma-3-1b", "qwen-3-8b-llama-3-1b"]
