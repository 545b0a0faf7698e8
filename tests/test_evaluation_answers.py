"""What is found in answers as models write them, and what is not; all answers are made up."""

from __future__ import annotations

import re
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_nudge.evaluate.answers import Kind, find_answer, is_answer, is_right, kind_of_gold

FRUITS = ("an apple", "the pear tree", "cherry", "a plum", "none of the above")
AMOUNTS = ("15", "150", "1.5", "-15")

NUMBERS = [
    ("The answer is 18.", "18"),
    ("The answer is: **18**", "18"),
    ("**The answer is 18 dollars.**", "18"),
    ("The answer is $1,200.00.", "1200.00"),
    ("The answer is \\$1{,}200", "1200"),
    ("The answer is 72 000.".replace(" 000", "\u202f000"), "72000"),
    ("The answer is 18 dollars, 3 more than before.", "18"),
    ("The answer is 5 + 3 = 8.", "8"),
    ("The answer is 5 x 3 = 15 boxes. Each box has 4 pens.", "15"),
    ("The answer is 40 * $2 = $80", "80"),
    ("The answer is 18 = 9 * 2.", "18"),
    ("The answer is \\(\\boxed{18}\\).", "18"),
    ("So we get\n\\[\n\\boxed{\\text{18 dollars}}\n\\]", "18"),
    ("\\boxed{\\frac{1}{2}}", "1/2"),
    ("The answer is\n\n18", "18"),
    ("#### 1,234", "1234"),
    ("She sells 9 eggs for $2 each.\n#### 18", "18"),
    ("**Answer:** 18 dollars", "18"),
    ("**Answer**: 18", "18"),
    ("### Final Answer\n\n18", "18"),
    ("Answer: 30 * 2 = 60 sheets of paper", "60"),
    ("Answer:\nStep 1: There are 30 sheets.\nStep 2: 30 * 2 = 60.\nSo there are 60 sheets.", "60"),
    ("Answer: There are 16 eggs. She eats 3, so 13 are left.", "13"),
    ("Answer: 16 eggs - 4 eggs = 12 eggs. They cost 12 * 2 = 24 dollars.", "24"),
    ("The answer is 12. Wait, I forgot two. The answer is 14.", "14"),
    ("The answer is 14.\n\nAnswer:", "14"),
    ("The answer is not 12. It is 14.", "14"),
    ("The answer to the question is 7 apples.", "7"),
    ("The final answer should therefore be 7.", "7"),
    ("The correct number is 7, not 6.", "7"),
    ("The answer is seven.", "7"),
    ("The answer is twenty-four eggs.", "24"),
    ("The answer is -5 degrees.", "-5"),
    ("The answer is \u22125.", "-5"),
    ("The answer is .5", ".5"),
    ("The answer is 3/4 of a cup.", "3/4"),
    ("The answer is 25%.", "25"),
    ("90 minutes is the answer.", "90"),
    ("So Tom makes **$18** in 2 weeks.", "18"),
    ("3 + 4 = 7\nSo Tom has 7 * 2 = 14 pens after 3 days.", "14"),
    ("She has 10 - 3 apples, that is 7.", "7"),
    ("There are 7.\nStep 1:\nStep 2:\nStep 3:", "7"),
    ("1. She buys 3 pens.\n2. She buys 4 pens.\nTogether these are 7 pens.\n3. Done.", "7"),
    ("30\nStep 1:\nStep 2", "30"),
    ("18.", "18"),
    ("We count. There are 7 pens. So she needs to", None),
    ("We count. First, there are 7 pens. Then 7 * 2 = 14 pens.\nStep 3:", None),
    ("1. Count the pens.\n2. There are 7.\n3. Then count the rest of them.\n4.", None),
    ("We count. Two boxes. In total there are 7 pens", "7"),
    ("From 8:00 to 11:30.", None),
    ("It has 13 trees (13 * 100) - 6", None),
    ("40 years - 60", None),
    ("La respuesta es 18.", "18"),
    ("答案是18。", "18"),
    ("The answer is 3 * 5.", None),
    ("The answer is A.", None),
    ('Think step by step, and finish with "The answer is" and the number.', None),
    ("I do not know.", None),
    ("The model GPT-4 has no idea.", None),
    ("It came on the 3rd day.", None),
    ("The answer is 24 hours later in MM/DD/YYYY.", "24"),
    ("", None),
]

CHOICES = [
    ("The answer is B.", "B"),
    ("The answer is (B)", "B"),
    ("The answer is **(B)**.", "B"),
    ("The answer is: **B. the pear tree**", "B"),
    ("the answer is b", "B"),
    ("The answer is option b.", "B"),
    ("The answer is the letter B.", "B"),
    ("The answer is most likely (b).", "B"),
    ("The answer is clearly B, because A is too small.", "B"),
    ("The answer is $\\boxed{\\text{B}}$.", "B"),
    ("\\boxed{B}", "B"),
    ("The answer is the pear tree.", "B"),
    ("The answer is a plum.", "D"),
    ("The answer is A plum.", "D"),
    ("The answer is A.", "A"),
    ("The answer is A because of its colour.", "A"),
    ("The answer is cherry. An apple would be too large.", "C"),
    ("The answer is none of the above.", "E"),
    ("The correct option is (C).", "C"),
    ("The best choice would be C) cherry", "C"),
    ("Answer: C", "C"),
    ("**Answer:** C. cherry\n\nExplanation: A. is wrong.", "C"),
    ("Answer: Let me see. (A) is too small. So it must be (C).", "C"),
    ("The answer is A. No: the answer is C.", "C"),
    ("The answer is not A. It is (C).", "C"),
    ("C", "C"),
    ("c.", "C"),
    ("C\n\nIt is small and red.", "C"),
    ("C. cherry", "C"),
    ("C) cherry is right since an apple is larger", "C"),
    ("I think option C fits.", "C"),
    ("B is the correct answer.", "B"),
    ("A cherry is small and red.", "C"),
    ("A. an apple\nB. the pear tree\nC. cherry\nD. a plum\nE. none of the above\nThe answer is D. a plum", "D"),
    ("A. an apple\nB. the pear tree\nC. cherry\nD. a plum\nE. none of the above", None),
    ("A. an apple\nB. the pear tree\nC. cherry\nD. a plum\nE. none of the above\nOption C is small.", "C"),
    ('A. The answer is "The answer is"\nB. The answer is "The answer is"\nAnswer:', None),
    ("A. an apple\nB. the pear tree\nStep by step:\n1. A.", None),
    ("The answer is A or B.", None),
    ("The answer is both A and C.", None),
    ("An apple or a cherry, who knows.", None),
    ("The answer is F.", None),
    ("The answer is", None),
    ("A man walks into a shop.", None),
    ("Je ne sais pas.", None),
    ("", None),
]

YES_NO = [
    ("The answer is yes.", "yes"),
    ("The answer is **No**.", "no"),
    ("The answer is: no, since yes would need two flips.", "no"),
    ("Yes, the coin is still heads up.", "yes"),
    ("Yes the coin is still heads up, no doubt.", "yes"),
    ("No it is not.", "no"),
    ("no", "no"),
    ("No\nStep 1: nobody flips.", "no"),
    ("**Answer:** Yes", "yes"),
    ("Answer: No\nAnswer: Yes\nAnswer:", "yes"),
    ("Yes. Wait, two people flipped it. So, no.", "no"),
    ("The answer is yes. On reflection, the answer is no.", "no"),
    ("The answer is \\boxed{\\text{Yes}}.", "yes"),
    ('The answer is "no"', "no"),
    ("The statement is true.", "yes"),
    ("The answer is false.", "no"),
    ("That is not true.", "no"),
    ("Let us see whether the answer is yes or no. It lived later. No.", "no"),
    ("Nobody flips it, so the answer would be yes", "yes"),
    ("The correct answer is definitely no.", "no"),
    ("Two flips undo each other, therefore yes.", "yes"),
    ('Think step by step, and finish with "The answer is" and yes or no.', None),
    ('Answer with "The answer is" and yes.', None),
    ("There is no evidence of that.", None),
    ("Yesterday nobody knew.", None),
    ("The answer is 5.", None),
    ("Ja, das stimmt.", None),
    ("yes/no", None),
    ("", None),
]

PLAUSIBLE = [
    ("The answer is plausible.", "plausible"),
    ("The answer is **implausible**.", "implausible"),
    ("The answer is not plausible.", "implausible"),
    ("The answer is: not plausible", "implausible"),
    ("Answer: Plausible", "plausible"),
    ("Answer: not plausible", "implausible"),
    ("Plausible", "plausible"),
    ("implausible.", "implausible"),
    ("It is not at all plausible.", "implausible"),
    ("It isn't plausible.", "implausible"),
    ("That does not seem plausible.", "implausible"),
    ("It cannot be plausible.", "implausible"),
    ("That is not a plausible statement.", "implausible"),
    ("This is not implausible.", "plausible"),
    ("At first it looks plausible, but a goalkeeper has no bat, so it is implausible.", "implausible"),
    ("The answer is implausible. Sorry, the answer is plausible.", "plausible"),
    ("\\boxed{\\text{implausible}}", "implausible"),
    ("The statement is plausible because he plays tennis.", "plausible"),
    ("To tell whether it is implausible, look at the sport. He bowls. It is plausible.", "plausible"),
    ("To determine whether the statement is plausible or implausible, we look at each word.", None),
    ("To determine whether the statement is plausible, we look at each word.", None),
    ('Think step by step, and finish with "The answer is" and plausible or implausible.', None),
    ('Think step by step, and finish with "The answer is" and implausible.', None),
    ("The claim is that it is neither plausible nor implausible.", None),
    ("plausible/implausible", None),
    ("The answer is yes.", None),
    ("C'est possible.", None),
    ("", None),
]

DATES = [
    ("The answer is 05/01/2021.", "05/01/2021"),
    ("The answer is 5/1/2021", "05/01/2021"),
    ("The answer is **05/01/2021**.", "05/01/2021"),
    ("The answer is: May 1, 2021", "05/01/2021"),
    ("The answer is May 1st, 2021.", "05/01/2021"),
    ("The answer is Sept. 3, 2021.", "09/03/2021"),
    ("The answer is the 1st of May, 2021.", "05/01/2021"),
    ("The answer is 1 May 2021.", "05/01/2021"),
    ("The answer is 2021-05-01.", "05/01/2021"),
    ("The answer is 2021/5/1", "05/01/2021"),
    ("The answer is 05-01-2021", "05/01/2021"),
    ("The answer is 05 / 01 / 2021", "05/01/2021"),
    ("The answer is Saturday, May 1, 2021, one day after 04/30/2021.", "05/01/2021"),
    ("\\boxed{05/01/2021}", "05/01/2021"),
    ("Answer: 05/01/2021", "05/01/2021"),
    ("Answer: Today is 04/30/2021, so tomorrow is 05/01/2021.", "05/01/2021"),
    ("Today is 04/30/2021. Tomorrow is 05/01/2021.", "05/01/2021"),
    ("The answer is 04/30/2021. No, the answer is 05/01/2021.", "05/01/2021"),
    ("The answer is 02/29/2020.", "02/29/2020"),
    ("1 mayo 2021, es decir 05/01/2021", "05/01/2021"),
    ("The answer is 02/30/2021.", None),
    ("The answer is 13/01/2021.", None),
    ("The answer is 05/01/21.", None),
    ("The answer is MM/DD/YYYY.", None),
    ("The answer is 24 hours later in MM/DD/YYYY.", None),
    ("In May 2021", None),
    ("105/01/2021", None),
    ("The day before yesterday.", None),
    ("", None),
]

LETTERS = [
    ("The answer is nkra.", "nkra"),
    ("The answer is **nkra**", "nkra"),
    ('The answer is "nkra".', "nkra"),
    ("The answer is “NKRA”.", "nkra"),
    ("The answer is n-k-r-a.", "nkra"),
    ("The answer is: n, k, r, a", "nkra"),
    ("The answer is n k r a", "nkra"),
    ('The answer is "n" + "k" + "r" + "a" = "nkra".', "nkra"),
    ("The answer is N.K.R.A.", "nkra"),
    ("The answer is the word nkra.", "nkra"),
    ("The answer is the concatenation of the last letters: nkra", "nkra"),
    ("The answer is nkra because these are the last letters.", "nkra"),
    ("The answer is \\boxed{\\text{nkra}}.", "nkra"),
    ("Answer: nkra", "nkra"),
    ("Answer:\n\n**nkra**", "nkra"),
    ("The answer is nkr. I forgot one: the answer is nkra.", "nkra"),
    ('Putting them together we get "nkra".', "nkra"),
    ("n + k + r + a = nkra", "nkra"),
    ("Together: nkra", "nkra"),
    ("nkra", "nkra"),
    ("n-k-r-a", "nkra"),
    ("n\nk\nr\na", "nkra"),
    ("The answer is mélk.", "mélk"),
    ('The last letter of "Simon" is "n".', None),
    ("Answer: Take the last letters of each word", None),
    ('The answer is "Simon Anik Petra"', None),
    ("The answer is Simon Anik Petra", None),
    ("I cannot do that.", None),
    ('Think step by step, and finish with "The answer is" and the letters as one word.', None),
    ("The answer is 4.", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "expected"), NUMBERS)
def test_numbers(text: str, expected: str | None) -> None:
    assert find_answer(Kind.NUMBER, text) == expected


@pytest.mark.parametrize(("text", "expected"), CHOICES)
def test_choices(text: str, expected: str | None) -> None:
    assert find_answer(Kind.CHOICE, text, FRUITS) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 150.", "B"),
        ("The answer is 1.5", "C"),
        ("The answer is -15.", "D"),
        ("The answer is B. 150", "B"),
        ("From 15 of them we take some. We get four.", None),  # a number on the way is no choice
        ("We get 15.", "A"),
        ("The answer is 1500.", None),
    ],
)
def test_choices_that_are_numbers(text: str, expected: str | None) -> None:
    assert find_answer(Kind.CHOICE, text, AMOUNTS) == expected


def test_of_two_choices_in_the_same_words_none_is_named() -> None:
    assert find_answer(Kind.CHOICE, "The answer is a bar.", ("shop", "bar", "bar")) is None
    assert find_answer(Kind.CHOICE, "The answer is C. bar", ("shop", "bar", "bar")) == "C"


def test_without_choices_there_is_no_letter() -> None:
    assert find_answer(Kind.CHOICE, "The answer is B.") is None


@pytest.mark.parametrize(("text", "expected"), YES_NO)
def test_yes_and_no(text: str, expected: str | None) -> None:
    assert find_answer(Kind.YES_NO, text) == expected


@pytest.mark.parametrize(("text", "expected"), PLAUSIBLE)
def test_plausible(text: str, expected: str | None) -> None:
    assert find_answer(Kind.PLAUSIBLE, text) == expected


@pytest.mark.parametrize(("text", "expected"), DATES)
def test_dates(text: str, expected: str | None) -> None:
    assert find_answer(Kind.DATE, text) == expected


@pytest.mark.parametrize(("text", "expected"), LETTERS)
def test_letters(text: str, expected: str | None) -> None:
    assert find_answer(Kind.LETTERS, text) == expected


@pytest.mark.parametrize(
    ("kind", "found", "gold", "expected"),
    [
        (Kind.NUMBER, "1200.00", "1200", True),
        (Kind.NUMBER, "1200", "1,200", True),
        (Kind.NUMBER, "36/2", "18", True),
        (Kind.NUMBER, ".5", "0.50", True),
        (Kind.NUMBER, "18", "-18", False),
        (Kind.NUMBER, None, "0", False),
        (Kind.NUMBER, "18", "eighteen", False),
        (Kind.NUMBER, "18", "1e999999999", False),
        (Kind.YES_NO, "yes", "true", True),
        (Kind.YES_NO, "no", "False", True),
        (Kind.YES_NO, "yes", "no", False),
        (Kind.CHOICE, "B", "B", True),
        (Kind.CHOICE, "B", "C", False),
        (Kind.LETTERS, "nkra", "nkrA", True),
        (Kind.DATE, "05/01/2021", "05/01/2021", True),
        (Kind.PLAUSIBLE, "plausible", "implausible", False),
        (Kind.TEXT, "It is Paris. Or so they say.", "paris", True),
        (Kind.TEXT, "The city of New York, of course", "New  York.", True),
        (Kind.TEXT, "In Parish lane", "Paris", False),
        (Kind.TEXT, "It costs 1,500 dollars", "500 dollars", False),
        (Kind.TEXT, "anything", "...", False),
    ],
)
def test_right_and_wrong(kind: Kind, found: str | None, gold: str, expected: bool) -> None:
    assert is_right(kind, found, gold) is expected


@pytest.mark.parametrize(
    ("gold", "kind"),
    [("4", Kind.NUMBER), ("-1,200.5", Kind.NUMBER), ("nan", Kind.TEXT), ("1e5", Kind.TEXT), ("Paris", Kind.TEXT)],
)
def test_the_kind_of_a_right_answer(gold: str, kind: Kind) -> None:
    assert kind_of_gold(gold) is kind


@pytest.mark.parametrize(
    ("kind", "gold", "expected"),
    [
        (Kind.NUMBER, "1,200", True),
        (Kind.NUMBER, "1/0", False),
        (Kind.NUMBER, "x", False),
        (Kind.NUMBER, "9" * 5000, False),
        (Kind.YES_NO, "True", True),
        (Kind.YES_NO, "maybe", False),
        (Kind.PLAUSIBLE, "Plausible", True),
        (Kind.PLAUSIBLE, "yes", False),
        (Kind.DATE, "02/29/2021", False),
        (Kind.DATE, "2/3/2021", False),
        (Kind.DATE, "02/03/2021", True),
        (Kind.LETTERS, "mélk", True),
        (Kind.LETTERS, "n k", False),
        (Kind.TEXT, "Paris", True),
        (Kind.TEXT, "?!", False),
    ],
)
def test_the_form_of_right_answers(kind: Kind, gold: str, expected: bool) -> None:
    assert is_answer(kind, gold) is expected


PIECES = (
    *(
        "The answer is",
        "answer:",
        "Answer",
        "\n",
        " ",
        ".",
        "**",
        "\\boxed{",
        "}",
        "####",
        "(",
        ")",
        "=",
        "-",
        "$",
        "/",
    ),
    *("18", "1,200", "3.5", "A", "b", "B.", "(C)", "yes", "no", "not", "plausible", "implausible", "whether", "or"),
    *(
        "05/01/2021",
        "May",
        "1st",
        "of",
        "2021",
        "n-k",
        '"nkra"',
        "cherry",
        "an apple",
        "Step 2:",
        "true",
        "the",
        "x",
        "é",
    ),
    *("\ud800", "\x00", "\u2028", "日", "１８", "²", "٣", "\\frac{1}{2}", "{,}", "twenty"),
)
TEXTS = (
    st.text(max_size=80)
    | st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
    | st.lists(st.sampled_from(PIECES), max_size=25).map(" ".join)
)
FORMS = {
    Kind.NUMBER: r"-?(\d+(\.\d+)?|\.\d+)(/\d+)?",
    Kind.CHOICE: "[A-E]",
    Kind.YES_NO: "yes|no",
    Kind.PLAUSIBLE: "plausible|implausible",
    Kind.DATE: r"\d\d/\d\d/\d{4}",
    Kind.LETTERS: r"[^\W\d_]+",
    Kind.TEXT: r"(?s)\S|\S.*\S",
}


@given(st.sampled_from(Kind), TEXTS)
def test_any_text_gives_nothing_or_a_well_formed_answer(kind: Kind, text: str) -> None:
    found = find_answer(kind, text, FRUITS)
    if found is not None:
        assert re.fullmatch(FORMS[kind], found, re.ASCII if kind is Kind.NUMBER else 0)
        assert is_right(kind, found, found) or kind is Kind.TEXT  # signs alone are no words
        if kind is Kind.DATE:
            datetime.strptime(found, "%m/%d/%Y")


@given(st.sampled_from([kind for kind in Kind if kind is not Kind.TEXT]), TEXTS)
def test_what_is_marked_at_the_end_counts(kind: Kind, before: str) -> None:
    wanted = {
        Kind.NUMBER: "42",
        Kind.CHOICE: "D",
        Kind.YES_NO: "no",
        Kind.PLAUSIBLE: "implausible",
        Kind.DATE: "07/04/1999",
        Kind.LETTERS: "nkra",
    }[kind]
    assert find_answer(kind, f"{before}\n\nThe answer is {wanted}.", FRUITS) == wanted


HOSTILE = (
    *(
        "\n",
        " ",
        "=",
        "= ",
        "*",
        "_",
        "1",
        "1,",
        "1,111",
        "1 ",
        "(",
        "(A)",
        "A. ",
        "A.\n",
        "a b ",
        "a-",
        "a+",
        '"',
        "-",
        "$",
    ),
    *(
        "answer ",
        "answer is ",
        "answer: ",
        "answer to it ",
        "The answer is 1\n",
        "\\boxed{",
        "#### 1\n",
        "not ",
        "not a ",
    ),
    *(
        "yes ",
        "no ",
        "whether ",
        "plausible or ",
        "1/",
        "1/1/",
        "May ",
        "1 May ",
        "1st of ",
        "x" * 19 + " ",
        "step ",
        "1. a\n",
    ),
    *(
        "a",
        "ab ",
        "answer is not ",
        ". ",
        ";",
        "twenty ",
        "twenty-",
        "\\text{",
        "{,}",
        "so ",
        "is ",
        ": a",
        "cherry ",
        "answer\n",
    ),
)


@pytest.mark.thorough
@pytest.mark.timeout(120)
@pytest.mark.parametrize("piece", HOSTILE)
def test_a_long_text_costs_no_more_than_its_length(piece: str) -> None:
    """A search that is quadratic in 100,000 characters takes many minutes and meets the limit."""
    text = piece * (100_000 // len(piece)) + " The answer is what"
    for kind in Kind:
        find_answer(kind, text, FRUITS)
