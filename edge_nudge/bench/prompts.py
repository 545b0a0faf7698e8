"""The fixed prompts of the benchmark, our own texts, the same on every machine.

Owns the texts. Never imports anything, so that a help text may list their names.

1. A prompt never changes without a new name: figures of two versions stay comparable.
2. With the demo pair none of them ends before 100 tokens, in any mode.
3. An answer to "quote" or "rewrite" repeats what stands in the prompt (with the demo pair: the base model's and the
   nudged one, for the most part).
4. The long one is built from sentences, about 1,500 tokens for an English vocabulary, all of them different.
"""

from __future__ import annotations

from typing import TypeAlias

Conversation: TypeAlias = tuple[dict[str, str], ...]

_WINDS = ("a light breeze", "a fresh wind", "half a gale", "hardly any wind", "squalls")
_SIDES = ("the north", "the south-west", "the open sea", "the harbour side")
_SHIPS = (
    "two trawlers",
    "a coal barge",
    "the mail boat",
    "a yacht under storm sails",
    "no ship at all",
    "a pilot cutter",
)
_WORKS = (
    "cleaned the lens with spirit and a soft cloth",
    "painted the railing of the gallery",
    "wound the clockwork twice because the weight had stuck",
    "repaired a broken pane before the rain came",
    "counted the oil barrels in the cellar",
    "wrote a letter to the inspector about the leaking roof",
    "took the boat across for bread and newspapers",
)
_N_DAYS = 36


def _day(number: int) -> str:
    """Return one entry; the cycles have lengths without a common factor, so that no two entries are alike."""
    return (
        f"Day {number}: {_WINDS[number % 5]} from {_SIDES[number % 4]}, {_SHIPS[number % 6]} in sight; "
        f"the keeper {_WORKS[number % 7]}, and the lamp burned for {9 + number % 6} hours."
    )


_TEXT_TO_QUOTE = (
    "The ferry between the two villages has no engine. A steel rope lies across the river, from the willow on this "
    "side to the iron post on the other, and the boat hangs on it by two pulleys. When the ferryman turns the bow a "
    "little against the current, the water itself pushes the boat over; when he turns it the other way, it comes "
    "back. He carries up to six people and one horse, and he charges the same for both. In the winter, when ice "
    "drifts down from the hills, he takes the rope in and mends his nets in the shed behind the willow. In forty "
    "years he has lost one oar, two hats, and a basket of plums that belonged to the mayor. He still speaks of the "
    "plums. On the first warm day of March he lays the rope again, and the children of both villages cross for "
    "nothing until the evening."
)

_FILE_TO_REWRITE = '''\
"""Lengths of the planks in a yard."""

import json


def total_length(planks):
    """Return the length of all planks in metres."""
    result = 0.0
    for plank in planks:
        if plank["is_sold"]:
            continue
        result += plank["length"]
    return result


def longest(planks):
    """Return the longest plank, None in an empty yard."""
    return max(planks, key=lambda plank: plank["length"], default=None)


def main(path):
    with open(path, encoding="utf-8") as file:
        planks = json.load(file)
    print(f"{len(planks)} planks, {total_length(planks):.1f} metres")
    print(f"the longest: {longest(planks)}")
'''


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


_LOGBOOK = "\n".join(_day(number) for number in range(1, _N_DAYS + 1))

PROMPTS: dict[str, Conversation] = {
    "short": (_user("Why do leaves change their colour in autumn?"),),
    "long": (_user(f"{_LOGBOOK}\n\nThis was the logbook of a lighthouse. Write a long story about the keeper."),),
    "code": (
        _user(
            "Write a Python function that takes a list of words and returns a dictionary with the number of times "
            "each word occurs. Explain each line."
        ),
    ),
    "list": (_user("Give me a numbered list of fifteen things to pack for a week of hiking, one sentence for each."),),
    "multi-turn": (
        _user("Which planet is the largest of the solar system?"),
        _assistant("Jupiter is the largest planet of the solar system."),
        _user("And how many times larger than the Earth is it?"),
        _assistant("Its diameter is about eleven times that of the Earth."),
        _user("Write a story for children about a journey to one of its moons."),
    ),
    "quote": (_user(f"Quote the following text word by word, from its beginning to its end.\n\n{_TEXT_TO_QUOTE}"),),
    "rewrite": (
        _user(
            f"```python\n{_FILE_TO_REWRITE}```\n\nRename the function total_length to sum_of_lengths and return the "
            "whole file, otherwise unchanged."
        ),
    ),
}

# A conversation's first question, and what follows its answer (follow_up.py); asked for by this name.
FOLLOW_UP_NAME = "follow-up"
FOLLOW_UP: tuple[Conversation, Conversation] = (
    PROMPTS["short"],
    (_user("And why do some trees keep their leaves green all winter?"),),
)
