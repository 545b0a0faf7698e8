"""Models in several files: any part leads to the first, and what is missing or foreign is named."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tiny_gguf import (
    U16,
    U32,
    pair,
    put,
    raw_header,
    refusal,
    tensor,
    text_model,
    write_tiny,
)

from edge_nudge.engine.gguf import check_model_file


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    first = write_tiny(tmp_path / "m.gguf", n_parts=3)
    return [tmp_path / f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3) if first]


def test_any_part_leads_to_the_first(split: list[Path], tmp_path: Path) -> None:
    whole = check_model_file(write_tiny(tmp_path / "whole.gguf"), role="base")
    for part in split:
        header = check_model_file(part, role="base")
        assert (header.path, header.parts) == (split[0], tuple(split))
        assert header.size_bytes == sum(part.stat().st_size for part in split)
        assert (header.n_tensors, header.n_vocab, header.name) == (whole.n_tensors, whole.n_vocab, whole.name)


def test_parts_that_are_links_keep_their_names(split: list[Path], tmp_path: Path) -> None:
    cached = tmp_path / "snapshot"
    cached.mkdir()
    for number, part in enumerate(split):
        part.rename(tmp_path / f"blob{number}")
        (cached / part.name).symlink_to(tmp_path / f"blob{number}")
    assert check_model_file(cached / split[1].name, role="base").path == cached / split[0].name
    assert "is part 2 of 3 of a split model, but its name does not say so" in refusal(tmp_path / "blob1")


def test_missing_parts_are_listed_by_name(split: list[Path], tmp_path: Path) -> None:
    split[2].unlink()
    listed = f'of which "m-00003-of-00003.gguf" is missing in "{tmp_path}"; fetch the rest'
    assert listed in refusal(split[1])
    assert listed in refusal(split[2])
    split[0].unlink()
    assert 'of which "m-00001-of-00003.gguf", "m-00003-of-00003.gguf" are missing' in refusal(split[1])
    split[1].unlink()
    assert "does not exist" in refusal(split[1])


def test_a_huge_part_count_is_answered_at_once(tmp_path: Path) -> None:
    path = put(tmp_path, raw_header(), "m-00007-of-99999.gguf")
    began = time.process_time()
    assert '"m-00009-of-99999.gguf" and more are missing' in refusal(path)
    assert time.process_time() - began < 1


def test_a_damaged_part_is_named(split: list[Path]) -> None:
    raw = split[1].read_bytes()
    split[1].write_bytes(raw[:-40])
    assert f'base model file "{split[1]}" is 40 bytes short' in refusal(split[0])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"split.no": (U16, 0)}, '"m-00002-of-00002.gguf" that calls itself part 1 of 2'),
        ({"split.count": (U16, 3)}, "calls itself part 2 of 3"),
        ({"split.count": None}, "calls itself part 2 of nothing"),
        ({"split.no": None}, "calls itself part unknown of 2"),
        ({"split.no": (U32, 1)}, "split.no is not a 16-bit number"),
        ({"tensor": "t1"}, 'has the tensor "t1" in "m-00002-of-00002.gguf" and before'),
        ({"split.tensors.count": (U32, 5)}, "has 2 tensors in its 2 parts, 5 are announced"),
    ],
)
def test_parts_that_do_not_belong_together(tmp_path: Path, more: dict[str, object], said: str) -> None:
    for number in (0, 1):
        entries: dict[str, object] = {"split.no": (U16, number), "split.count": (U16, 2)}
        entries |= {"split.tensors.count": more.get("split.tensors.count", (U32, 2))}
        entries |= {key: value for key, value in more.items() if number == 1 and key != "tensor"}
        pairs = [pair(key, *value) for key, value in entries.items() if isinstance(value, tuple)]
        name = str(more.get("tensor", f"t{number + 1}"))
        put(tmp_path, raw_header([*text_model(), *pairs], [tensor(name, [8])]), f"m-0000{number + 1}-of-00002.gguf")
    assert said in refusal(put(tmp_path, b"", "x").with_name("m-00001-of-00002.gguf"))


def test_names_that_promise_a_split_which_is_none(tmp_path: Path) -> None:
    assert check_model_file(put(tmp_path, raw_header(), "m-00001-of-00001.gguf"), role="base").n_tensors == 1
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"):
        put(tmp_path, raw_header(), name)
    assert "calls itself part unknown of nothing" in refusal(tmp_path / "m-00001-of-00002.gguf")
    assert "is named part 3 of 2; rename it" in refusal(put(tmp_path, raw_header(), "m-00003-of-00002.gguf"))


def test_a_first_part_may_hold_no_tensors(tmp_path: Path) -> None:
    def split_pairs(number: int) -> list[bytes]:
        return [pair("split.no", U16, number), pair("split.count", U16, 2), pair("split.tensors.count", U32, 1)]

    first = put(tmp_path, raw_header([*text_model(), *split_pairs(0)], [], weights=b""), "m-00001-of-00002.gguf")
    put(tmp_path, raw_header(split_pairs(1)), "m-00002-of-00002.gguf")
    assert check_model_file(first, role="base").n_tensors == 1


@pytest.mark.parametrize(
    "names",
    [
        ("m.gguf.part1of2", "m.gguf.part2of2"),
        ("m.gguf-split-a", "m.gguf-split-b"),
        ("m.gguf.aa", "m.gguf.ab"),
        ("m.gguf.001", "m.gguf.002"),
        ("m.gguf.part00", "m.gguf.part01"),
        ("m.part00", "m.part01"),
    ],
)
def test_raw_pieces_are_to_be_joined(tmp_path: Path, names: tuple[str, str]) -> None:
    raw = raw_header()
    for name, piece in zip(names, (raw[:200], raw[200:]), strict=True):
        put(tmp_path, piece, name)
    for name in names:
        message = refusal(put(tmp_path, b"", "x").with_name(name))
        assert f'join the pieces in order ("{names[0]}", "{names[1]}") into one file, such as "m' in message


def test_pieces_are_listed_by_number(tmp_path: Path) -> None:
    for number in range(1, 11):
        put(tmp_path, b"GGUF", f"m.gguf.part{number}of10")
    listed = ", ".join(f'"m.gguf.part{number}of10"' for number in range(1, 9))
    assert f"({listed} and more)" in refusal(tmp_path / "m.gguf.part3of10")


def test_a_whole_model_may_be_named_like_a_piece(tmp_path: Path) -> None:
    assert check_model_file(put(tmp_path, raw_header(), "m.gguf.part1of2"), role="base").n_tensors == 1
