"""Fetching from the hub, over real sockets from a small hub of our own: resumed, checked, whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import COMMIT, TOKEN, HubServer, Repo
from huggingface_hub import constants

from edge_nudge.catalog import getting, hub, hub_cache, hub_fetch, ledger, store
from edge_nudge.catalog.fields import HubSource, PairManifest, parse_manifest
from edge_nudge.errors import FetchError, InputError

DATA = random.Random(7).randbytes(3_000_000)
OTHER = random.Random(8).randbytes(3_000_000)
SHA = hashlib.sha256(DATA).hexdigest()
REPO, FILE = "user/Tiny-GGUF", "Tiny.Q4_K_M.gguf"
NAME = hub.HubName(REPO)


class Watched:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int | None, int]] = []  # what, of how many, done at its end

    def start(self, what: str, n_bytes: int | None, n_done: int = 0) -> None:
        self.told.append((what, n_bytes, n_done))

    def advance(self, n_bytes: int) -> None:
        what, of, n_done = self.told[-1]
        self.told[-1] = (what, of, n_done + n_bytes)

    def end(self) -> None:
        return


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer().running() as running:
        running.repos[REPO] = Repo({FILE: DATA, "Tiny.Q8_0.gguf": b"GGUF" * 10, "README.md": b"# Tiny"})
        yield running


@pytest.fixture(autouse=True)
def home(tmp_path: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("OLLAMA_MODELS", "LLAMA_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("EDGE_NUDGE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EDGE_NUDGE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(hub_fetch.time, "sleep", lambda seconds: None)
    yield tmp_path
    huggingface_hub.close_session()


def quiet(line: str) -> None:
    return


def fetch(say: list[str] | None = None, progress: Watched | None = None) -> Path:
    """Fetch the one model of the repository by its name."""
    model = getting.ask_hub_by_name(NAME)
    (path,) = getting.fetch(model, say=quiet if say is None else say.append, progress=progress or Watched())
    return path


def blobs() -> set[str]:
    folder = hub_cache.repo_folder(REPO) / "blobs"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def manifest(**changes: str) -> PairManifest:
    """A pair of which both models are the one file of the repository."""
    known = {"repo": REPO, "file": FILE, "sha256": f'sha256 = "{SHA}"', "revision": f'revision = "{COMMIT}"', **changes}
    text = 'name = "tiny"\ntitle = "Tiny"\ngamma = 0.4\n'
    for role, extra in (("base", 'prompt_format = "qa"'), ("nudging", "")):
        text += f"""
[{role}]
file = "{known["file"]}"
{known["sha256"]}
{extra}
[{role}.licence]
name = "L"
url = "https://example.org"
notice = "N"
[{role}.source]
kind = "hub"
repo = "{known["repo"]}"
{known["revision"]}
"""
    return parse_manifest(text, where="tiny")


def base_of(pair: PairManifest) -> tuple[store.ModelEntry, HubSource]:
    assert isinstance(pair.base.source, HubSource)
    return pair.base, pair.base.source


# What comes, and where it goes


def test_a_model_is_put_into_the_shared_cache_and_noted_as_ours(server: HubServer) -> None:
    progress = Watched()
    path = fetch(progress=progress)
    assert path.read_bytes() == DATA
    assert path == hub_cache.repo_folder(REPO) / "snapshots" / COMMIT / FILE
    assert blobs() == {SHA}
    assert (hub_cache.repo_folder(REPO) / "refs" / "main").read_text() == COMMIT
    assert progress.told == [(FILE, len(DATA), len(DATA)), (f"checking {FILE}", len(DATA), len(DATA))]
    note = ledger.note_of(path)
    assert note is not None
    assert (note.repo, note.size_bytes, note.sha256) == (REPO, len(DATA), SHA)


def test_other_hub_programs_find_it_without_network(server: HubServer) -> None:
    path = fetch()
    found = huggingface_hub.try_to_load_from_cache(REPO, FILE, cache_dir=hub_cache.hub_cache_dir())
    assert found == str(path)


def test_what_is_there_is_not_fetched_again_and_not_called_ours(server: HubServer) -> None:
    path = fetch()
    ledger.forget(path)  # as if another program had put it there
    assert fetch() == path
    assert len(server.content_requests()) == 1
    assert ledger.note_of(path) is None


def test_a_moved_main_is_a_new_snapshot_and_what_did_not_change_is_linked(server: HubServer) -> None:
    fetch()
    server.repos[REPO].commit = "f" * 40
    path = fetch()
    assert path.parent.name == "f" * 40
    assert blobs() == {SHA}
    assert len(server.content_requests()) == 1
    assert (hub_cache.repo_folder(REPO) / "refs" / "main").read_text() == "f" * 40


def test_all_parts_of_a_split_model_come(server: HubServer) -> None:
    parts = {f"Q8_0/m-Q8_0-0000{i}-of-00002.gguf": bytes([i]) * 1000 for i in (1, 2)}
    server.repos["user/split"] = Repo(dict(parts))
    model = getting.ask_hub_by_name(hub.HubName("user/split", "Q8_0"))
    paths = getting.fetch(model, say=quiet, progress=Watched())
    assert [path.read_bytes() for path in paths] == list(parts.values())


# Broken connections


@pytest.mark.parametrize("reset", [False, True])
def test_a_broken_connection_is_continued_where_it_broke(
    server: HubServer, reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults.drop_after, server.faults.n_drops, server.faults.reset = 700_000, 4, reset
    monkeypatch.setattr(hub_fetch, "_CHUNK_BYTES", 1000)
    assert fetch().read_bytes() == DATA
    ranges = [asked.range for asked in server.content_requests()]
    assert ranges[0] is None
    if not reset:  # a reset may swallow bytes that were under way
        assert ranges[1:] == [f"bytes={n * 700_000}-" for n in (1, 2, 3, 4)]
    assert all(asked is not None for asked in ranges[1:])


def test_a_dead_connection_is_given_up_and_the_next_run_goes_on(server: HubServer) -> None:
    server.faults.drop_after, server.faults.n_drops = 500_000, 1
    assert_first = {"n": 0}

    def die(*_: object) -> None:
        assert_first["n"] += 1
        server.faults.drop_after, server.faults.n_drops = 0, 1000

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_fetch.time, "sleep", die)
        patch.setattr(hub_fetch, "_CHUNK_BYTES", 1000)
        with pytest.raises(FetchError) as error:
            fetch()
    assert assert_first["n"] >= 5
    assert "0.5 MB of 3.0 MB are kept, the next try goes on there" in str(error.value)
    assert blobs() == {f"{SHA}.edge-nudge.incomplete"}
    server.faults.n_drops = 0
    server.asked.clear()
    said: list[str] = []
    assert getting.ask_hub_by_name(NAME).left_bytes == 2_500_000
    assert fetch(said).read_bytes() == DATA
    assert said == [f"Going on with {FILE}: 0.5 MB of 3.0 MB are there."]
    assert [asked.range for asked in server.content_requests()] == ["bytes=500000-"]
    assert blobs() == {SHA}


def test_a_server_that_knows_no_ranges_costs_only_time(server: HubServer) -> None:
    server.faults.drop_after, server.faults.n_drops, server.faults.ignore_range = 900_000, 1, True
    progress = Watched()
    assert fetch(progress=progress).read_bytes() == DATA
    assert progress.told[0] == (FILE, len(DATA), len(DATA))


# Wrong content


def test_a_wrong_hash_keeps_nothing_and_names_both(server: HubServer) -> None:
    server.repos[REPO].announced[FILE] = OTHER
    with pytest.raises(FetchError) as error:
        fetch()
    assert SHA in str(error.value)
    assert hashlib.sha256(OTHER).hexdigest() in str(error.value)
    assert "nothing was kept" in str(error.value)
    assert blobs() == set()
    assert not list(hub_cache.repo_folder(REPO).glob("snapshots/*/*"))
    assert list(ledger.notes()) == []


@pytest.mark.parametrize("rest", [b"x" * 1_000_000, b"x" * 3_000_001])
def test_a_damaged_rest_of_an_earlier_run_is_fetched_anew(server: HubServer, rest: bytes) -> None:
    folder = hub_cache.repo_folder(REPO) / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{SHA}.edge-nudge.incomplete").write_bytes(rest)
    said: list[str] = []
    assert fetch(said).read_bytes() == DATA
    assert blobs() == {SHA}
    if len(rest) < len(DATA):
        assert f"{FILE} is damaged: what an earlier run had left was. It is fetched again from its start." in said


def test_another_file_than_the_manifest_names_is_refused_before_a_byte(server: HubServer) -> None:
    pair = manifest(sha256=f'sha256 = "{"ab" * 32}"')
    with pytest.raises(FetchError, match=rf"has another {FILE} than expected: sha256 {SHA} instead of abab"):
        store.ensure_pair(pair, say=quiet, may_be_large=True)
    assert server.content_requests() == []


def test_another_size_than_the_manifest_names_is_refused_before_a_byte(server: HubServer) -> None:
    pair = manifest(sha256=f'sha256 = "{SHA}"\nsize_bytes = 5')
    with pytest.raises(FetchError, match="3000000 bytes instead of 5; nothing was fetched"):
        store.ensure_pair(pair, say=quiet, may_be_large=True)
    assert server.content_requests() == []


# Pairs


def test_a_pair_comes_from_the_hub_and_is_then_there_without_it(server: HubServer) -> None:
    said: list[str] = []
    pair = manifest()
    files = store.ensure_pair(pair, say=said.append, may_be_large=True)
    assert files.base.read_bytes() == files.nudging.read_bytes() == DATA
    assert f"base model: {FILE}, 3.0 MB, from {REPO}" in said
    assert "  licence: L, https://example.org" in said
    server.asked.clear()
    assert store.ensure_pair(pair, say=quiet) == files
    assert server.asked == []


def test_a_pair_of_unknown_size_is_not_fetched_by_the_way(server: HubServer) -> None:
    with pytest.raises(FetchError, match=r"is not complete on this machine \(.*\): run 'edge-nudge pull tiny' first"):
        store.ensure_pair(manifest(), say=quiet)
    assert server.asked == []


def test_a_damaged_file_in_the_cache_is_not_taken(server: HubServer) -> None:
    files = store.ensure_pair(manifest(), say=quiet, may_be_large=True)
    blob = files.base.resolve()
    blob.write_bytes(OTHER)
    os.utime(blob, ns=(1, 1))
    assert store.find_pair(manifest()) is None
    said: list[str] = []
    ledger.forget(files.base)
    assert store.ensure_pair(manifest(), say=said.append, may_be_large=True) == files
    assert files.base.read_bytes() == DATA
    assert any("is damaged: it is not what the hub has" in line for line in said)
    assert list(ledger.notes()) == []  # it was not ours before, and is not now


def test_a_copy_in_the_place_of_a_link_is_replaced_too(server: HubServer) -> None:
    path = fetch()
    path.unlink()
    path.write_bytes(OTHER)  # as on a system without links
    assert fetch() == path
    assert path.read_bytes() == DATA


def test_a_vanished_revision_is_replaced_by_the_same_content_and_that_is_said(server: HubServer) -> None:
    said: list[str] = []
    pair = manifest(revision=f'revision = "{"9" * 40}"')
    files = store.ensure_pair(pair, say=said.append, may_be_large=True)
    assert files.base.read_bytes() == DATA
    assert said[0] == f"{REPO} no longer has revision {'9' * 12}; the same file is in its present state."
    assert store.find_pair(pair) == files


@pytest.mark.parametrize("sha256", ["", f'sha256 = "{"cd" * 32}"'])
def test_a_vanished_revision_without_the_same_content_is_an_error(server: HubServer, sha256: str) -> None:
    pair = manifest(revision=f'revision = "{"9" * 40}"', sha256=sha256)
    with pytest.raises(FetchError, match=r"has no revision 9{40} any more: its owner replaced the files"):
        store.ensure_pair(pair, say=quiet, may_be_large=True)
    assert server.content_requests() == []


def test_a_renamed_file_is_known_by_its_hash(server: HubServer) -> None:
    pair = manifest(file="Old-Name.gguf")
    model = getting.ask_hub(*base_of(pair), say=quiet)
    assert [file.file for file in model.files] == [FILE]
    with pytest.raises(FetchError, match=r"has no file Old-Name\.gguf any more"):
        getting.ask_hub(*base_of(manifest(file="Old-Name.gguf", sha256="")), say=quiet)


# Tokens


def test_a_gated_repository_says_what_to_do(server: HubServer) -> None:
    server.repos[REPO].gate = True
    with pytest.raises(FetchError) as error:
        fetch()
    for words in (f"agree to its terms at {server.url}/{REPO}", "settings/tokens", "'hf auth login' or set HF_TOKEN"):
        assert words in str(error.value)
    assert server.content_requests() == []


def test_the_token_goes_to_the_hub_and_never_further(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repos[REPO].gate = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch().read_bytes() == DATA
    assert {asked.token for asked in server.asked if asked.is_content} == {None}
    assert {asked.token for asked in server.asked if not asked.is_content} == {f"Bearer {TOKEN}"}


def test_a_token_without_access_is_told_from_none(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repos[REPO].gate = True
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(FetchError, match="is gated, and your token may not read it"):
        fetch()


def test_an_unknown_or_private_repository(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repos["user/secret"] = Repo({FILE: DATA}, private=True)
    for repo in ("user/none", "user/secret"):
        with pytest.raises(FetchError, match=rf"knows no repository {repo}: check the spelling; .* it needs a token"):
            hub.list_repo(repo)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert [file.file for file in hub.list_repo("user/secret").files] == [FILE]


# No network


def test_offline_nothing_is_asked(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError, match="is not on this machine, and the network is switched off"):
        fetch()
    with pytest.raises(FetchError, match=r"of the tiny pair is not on this machine, and the network is switched off"):
        store.ensure_pair(manifest(), say=quiet, may_be_large=True)
    assert server.asked == []


def test_without_network_the_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        FetchError, match=r"no connection to http://127\.0\.0\.1:9 \(ConnectError: .*HTTPS_PROXY"
    ) as error:
        fetch()
    assert hub.is_unreachable(error.value)
    assert "\n" not in str(error.value)


def test_without_the_extra_the_command_is_named(monkeypatch: pytest.MonkeyPatch, server: HubServer) -> None:
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match=r"python -m pip install \"edge-nudge\[hub\]\""):
        fetch()
    assert server.asked == []


@pytest.mark.parametrize(("status", "words"), [(429, "asks to wait"), (500, "HTTP status 500"), (401, "token")])
def test_a_refusal_of_the_hub_is_told(server: HubServer, status: int, words: str) -> None:
    server.faults.status = status
    with pytest.raises(FetchError, match=words) as error:
        fetch()
    assert not hub.is_unreachable(error.value)


# Room


def test_a_small_disk_is_told_before_a_byte(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(hub_fetch.shutil, "disk_usage", lambda path: usage(10**9, 10**9, len(DATA) - 1))
    with pytest.raises(FetchError, match=r"needs 3\.0 MB in .*hub, 3\.0 MB are free there: make room, or set HF_"):
        fetch()
    assert server.content_requests() == []
    monkeypatch.setattr(hub_fetch.shutil, "disk_usage", lambda path: usage(10**9, 10**9, len(DATA)))
    assert fetch().read_bytes() == DATA


def test_a_cache_that_cannot_be_written_is_named(server: HubServer, home: Path) -> None:
    (home / "hf").mkdir()
    (home / "hf" / "hub").write_text("a file where the folder should be")
    with pytest.raises(FetchError, match=r"models--user--Tiny-GGUF cannot be written .*set HF_HOME"):
        fetch()


def run_pull(home: Path, server: HubServer, *arguments: str, limit: int | None = None) -> subprocess.Popen[str]:
    def limited() -> None:
        import resource  # of POSIX systems only

        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background ignores it
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "edge_nudge.cli.main", "pull", REPO, *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=limited if os.name == "posix" else None,
    )  # fmt: skip


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="file size limits are of POSIX systems")
def test_a_disk_that_fills_up_keeps_what_came(home: Path, server: HubServer) -> None:
    process = run_pull(home, server, limit=1_000_000)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (4, "")
    assert "is full (File too large): make room and try again, what is there is kept" in err
    assert "Traceback" not in err
    kept = hub_cache.repo_folder(REPO) / "blobs" / f"{SHA}.edge-nudge.incomplete"
    assert 0 < kept.stat().st_size <= 1_000_000
    assert fetch().read_bytes() == DATA


@pytest.mark.process
def test_two_pulls_at_once_fetch_once(home: Path, server: HubServer) -> None:
    server.faults.slow_s = 0.02
    first = run_pull(home, server, "--json")
    assert server.started.wait(30)
    second = run_pull(home, server, "--json")
    for process in (first, second):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        (result,) = json.loads(out)["pulled"]
        assert Path(result["files"][0]).read_bytes() == DATA
    assert len(server.content_requests()) == 1


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX systems")
@pytest.mark.parametrize("end", [getattr(signal, "SIGKILL", None), signal.SIGINT])
def test_a_pull_that_was_ended_is_continued(home: Path, server: HubServer, end: signal.Signals) -> None:
    server.faults.slow_s = 0.05
    process = run_pull(home, server)
    assert server.started.wait(30)
    partial = hub_cache.repo_folder(REPO) / "blobs" / f"{SHA}.edge-nudge.incomplete"
    while not (partial.exists() and partial.stat().st_size):
        assert process.poll() is None
    process.send_signal(end)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (130 if end == signal.SIGINT else -9), err
    assert out == ""
    assert ("kept: the same command goes on there" in err) == (end == signal.SIGINT)
    n_kept = partial.stat().st_size
    assert 0 < n_kept < len(DATA)
    server.faults.slow_s = 0.0
    server.asked.clear()
    assert fetch().read_bytes() == DATA
    assert [asked.range for asked in server.content_requests()] == [f"bytes={n_kept}-"]


# Names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("user/repo", hub.HubName("user/repo")),
        ("user/repo:Q8_0", hub.HubName("user/repo", "Q8_0")),
        ("hf.co/user/repo:Q8_0", hub.HubName("user/repo", "Q8_0")),
        ("https://huggingface.co/user/repo", hub.HubName("user/repo")),
        ("user/repo:sub/file.gguf", hub.HubName("user/repo", "sub/file.gguf")),
        ("models/file.gguf", None), ("demo", None), ("/user/repo", None), ("a/b/c", None), ("../repo", None),
        ("user/repo:", None), ("user/re po", None), ("user/\x1brepo", None), ("", None),
    ],
)  # fmt: skip
def test_hub_names(text: str, name: hub.HubName | None) -> None:
    assert hub.parse_hub_name(text) == name


FILES = [
    "m-Q4_K_S.gguf", "m-Q4_K_M.gguf", "m-Q4_K_L.gguf", "m-Q4_0.gguf", "m-UD-Q4_K_XL.gguf", "m-IQ4_XS.gguf",
    "m.f16.gguf", "BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf", "mmproj-m-Q8_0.gguf",
    "m-imatrix.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        (None, ["m-Q4_K_M.gguf"]), ("q4_k_m", ["m-Q4_K_M.gguf"]), ("Q4_0", ["m-Q4_0.gguf"]),
        ("Q4_K_XL", ["m-UD-Q4_K_XL.gguf"]), ("UD-Q4_K_XL", ["m-UD-Q4_K_XL.gguf"]), ("IQ4_XS", ["m-IQ4_XS.gguf"]),
        ("F16", ["m.f16.gguf"]), ("m-Q4_K_S.gguf", ["m-Q4_K_S.gguf"]),
        ("BF16", ["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"]),
        ("m-BF16-00002-of-00002.gguf", ["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"]),
    ],
)  # fmt: skip
def test_a_quantisation_is_a_whole_word(choice: str | None, chosen: list[str]) -> None:
    files = [hub.HubFile(file, 1, None) for file in FILES]
    assert [file.file for file in hub.choose(files, hub.HubName("u/r", choice))] == chosen


@pytest.mark.parametrize(
    ("files", "choice", "words"),
    [
        (FILES, "Q8_0", "u/r has no file for Q8_0: name one as u/r:FILE; there is BF16/m-BF16.gguf, m-IQ4_XS.gguf"),
        (FILES, "Q4_K", "has no file for Q4_K"),
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], None, r"has 2 files for Q4_K_M \(the default\)"),
        (["a-Q8_0.gguf", "b-Q2_K.gguf"], None, r"has no file for Q4_K_M \(the default\)"),
        (["mmproj-a.gguf"], None, "has no GGUF file"),
        ([], None, "has no GGUF file"),
        (["a-Q4_K_M-00001-of-00003.gguf"], None, "has 1 of the 3 parts"),
    ],
)
def test_what_fits_none_or_several_is_listed(files: list[str], choice: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        hub.choose([hub.HubFile(file, 1, None) for file in files], hub.HubName("u/r", choice))


def test_the_only_file_needs_no_quantisation() -> None:
    (file,) = hub.choose([hub.HubFile("m-q4_0.gguf", 1, None)], hub.HubName("u/r"))
    assert file.file == "m-q4_0.gguf"
