"""Pair manifests: the shipped ones, and what a fault in one says."""

from __future__ import annotations

from importlib.resources import files

import pytest
from pydantic import ValidationError

from edge_nudge.catalog import manifest as manifests
from edge_nudge.catalog.manifest import PairManifest, list_manifests, load_manifest, parse_manifest
from edge_nudge.errors import InputError

TINY = """\
name = "tiny"
title = "A tiny pair"
gamma = 0.3

[base]
file = "tiny-base.gguf"
sha256 = "abababababababababababababababababababababababababababababababab"
size_bytes = 500000
prompt_format = "qa"

[base.licence]
name = "Licence of base"
url = "https://example.org/base"
notice = "Notice of base."

[base.source]
kind = "wheels"

[[base.source.wheels]]
package = "tiny-part1"
version = "1.0"
download_bytes = 400000
members = ["a/one"]

[[base.source.wheels]]
package = "tiny-part2"
version = "1.0"
download_bytes = 400000
members = ["b/two"]

[nudging]
file = "tiny-nudging.gguf"
sha256 = "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
size_bytes = 100004

[nudging.licence]
name = "Licence of nudging"
url = "https://example.org/nudging"
notice = "Notice of nudging."

[nudging.source]
kind = "wheels"

[[nudging.source.wheels]]
package = "tiny-nudge"
version = "1.0"
download_bytes = 400000
members = ["n/model.gguf"]
"""


@pytest.fixture
def tiny() -> PairManifest:
    return parse_manifest(TINY, where="tiny")


def test_every_shipped_manifest_is_valid_and_a_file_name_stands_for_one_content() -> None:
    contents: dict[str, str] = {}
    for name in list_manifests():
        pair = load_manifest(name)
        for model in (pair.base, pair.nudging):
            assert contents.setdefault(model.file, model.sha256) == model.sha256
    assert "demo" in list_manifests()


def test_the_demo_pair() -> None:
    pair = load_manifest("demo")
    assert (pair.base.file, pair.nudging.file) == ("gemma-3-270m-q4_k_m.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert pair.base.prompt_format == "qa"
    assert pair.nudging.chat_template is None
    assert [wheel.package[-5:] for wheel in pair.base.source.wheels] == ["part1", "part2", "part3", "part4"]
    assert "Gemma Terms of Use" in pair.base.licence.notice
    assert pair.nudging.licence.name == "Apache-2.0"


def test_the_manifests_travel_with_the_package() -> None:
    assert (files("edge_nudge.models") / "demo.toml").is_file()


def test_a_checkout_without_installation_finds_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(package: str) -> None:
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(manifests, "files", not_installed)
    assert load_manifest("demo").name == "demo"


@pytest.mark.parametrize("name", ["no-such-pair", "", "../demo", "demo.toml", "demo\n", "a/b", "C:\\demo", "README"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match=r"unknown pair .*: the known pairs are .*demo"):
        load_manifest(name)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("gamma = 0.3", "gamma = 1.5", "gamma"),
        ("gamma = 0.3", "gamma = nan", "gamma"),
        ("gamma = 0.3", "", "gamma: Field required"),
        ("gamma = 0.3", "gamma = 0.3\ncolour = 1", "colour"),
        ('title = "A tiny pair"', 'title = "two\\nlines"', "title"),
        ('name = "tiny"', 'name = "Tiny/../x"', "name"),
        ("tiny-base.gguf", "../tiny-base.gguf", "base.file"),
        ("tiny-base.gguf", "tiny-nudging.gguf", "both tiny-nudging.gguf"),
        ('prompt_format = "qa"', "", "base.prompt_format"),
        ("https://example.org/base", "file:///etc", "base.licence.url"),
        ('kind = "wheels"', 'kind = "torrent"', "base.source.kind"),
        ('package = "tiny-part1"', 'package = "--index-url=x"', "base.source.wheels.0.package"),
        ('version = "1.0"', 'version = "1.0 --pre"', "base.source.wheels.0.version"),
        ('members = ["a/one"]', "members = []", "base.source.wheels.0.members"),
        ('sha256 = "', 'sha256 = "zz', "base.sha256"),
        ("size_bytes = 500000", "size_bytes = 0", "base.size_bytes"),
        ("size_bytes = 500000", 'size_bytes = "500000"', "base.size_bytes"),
        ("[base]", "[base", "not valid TOML"),
    ],
)
def test_a_fault_names_manifest_and_field(old: str, new: str, field: str) -> None:
    assert old in TINY
    with pytest.raises(InputError) as error:
        parse_manifest(TINY.replace(old, new, 1), where="models/tiny.toml")
    assert str(error.value).startswith("models/tiny.toml: ")
    assert field in str(error.value)
    assert "\n" not in str(error.value)


def test_manifests_are_values(tiny: PairManifest) -> None:
    with pytest.raises(ValidationError):
        tiny.gamma = 0.9  # type: ignore[misc]
    assert tiny == parse_manifest(TINY, where="again")
