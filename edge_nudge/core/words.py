"""Word boundaries: where control may pass from the nudging model to the base model.

Owns the definition of a nudging word. Works on text alone; never sees tokens or models.

1. A word is blanks, then a run without blanks. Its end is known once the next character is there.
2. Scripts written without blanks: a Han or Kana character is a word; Thai, Lao, Khmer, Myanmar: a few characters.
3. Character means extended grapheme cluster: accents, joined emoji and flags are never taken apart.
4. A run with no boundary at all is cut after a cap, blanks too, so that nobody waits for an end that never comes.
"""

from __future__ import annotations

import re

import regex

MAX_CLUSTERS = 64  # longest word in any script
MAX_SOUTH_EAST_ASIAN = 6  # clusters; a Thai word has about four, and finding its end needs a dictionary

_ASCII_WORD = re.compile(rf"\s*\S{{1,{MAX_CLUSTERS}}}")
_ONLY_BLANKS = re.compile(rf"\s{{{MAX_CLUSTERS}}}")
_CLUSTER = regex.compile(r"\X")
_ONE_CHARACTER_WORDS = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]")
_SOUTH_EAST_ASIAN = regex.compile(r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")


def first_word_end(text: str) -> int | None:
    """Return the index behind the first word of `text`, or None while the word may still go on."""
    if _ONLY_BLANKS.match(text):
        return MAX_CLUSTERS
    if text.isascii():
        match = _ASCII_WORD.match(text)
        return match.end() if match and match.end() < len(text) else None
    return _first_word_end_in_clusters(text)


def _first_word_end_in_clusters(text: str) -> int | None:
    n_run = n_south_east_asian = 0
    last_is_unspaced = False
    for cluster in _CLUSTER.finditer(text):
        lead = text[cluster.start()]
        if lead.isspace():
            if n_run:
                return int(cluster.start())
            continue
        is_single = _ONE_CHARACTER_WORDS.match(lead) is not None
        is_south_east_asian = _SOUTH_EAST_ASIAN.match(lead) is not None
        is_unspaced = is_single or is_south_east_asian
        if n_run and (
            is_single
            or n_run >= MAX_CLUSTERS
            or n_south_east_asian >= MAX_SOUTH_EAST_ASIAN
            # punctuation stays with the character before it, a letter or digit does not
            or (is_unspaced != last_is_unspaced and (is_unspaced or lead.isalnum()))
        ):
            return int(cluster.start())
        n_run += 1
        n_south_east_asian = n_south_east_asian + 1 if is_south_east_asian else 0
        if lead.isalnum() or is_unspaced:
            last_is_unspaced = is_unspaced
    return None


def whole_characters(data: bytes) -> int | None:
    """Return the length of the longest prefix of `data` that is whole UTF-8 characters.

    What is behind it is the beginning of one more character; None if `data` can never become valid.
    """
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and error.end == len(data):
            return error.start
        return None
    return len(data)
