"""The little English that prompts are made with: articles, plurals, numbers in words."""

import re

# Vowel letters that sound like consonants (a unicorn, a ewe, a one-eyed cat), and the silent h (an hour).
_CONSONANT_SOUND = re.compile(r"(eu|ewe|one(\W|$)|once|ouija|u(?=ni(?![dmn])|[sft][eu]|ku|ra|ro|to))", re.IGNORECASE)
_SILENT_H = re.compile(r"(hour|honest|honou?r|heir)", re.IGNORECASE)

# Looked up as whole last words, then as their ends (dormouse, jellyfish) where that is safe.
_PLURALS = {
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "louse": "lice",
    "man": "men",
    "ox": "oxen",
    "person": "people",
    "tooth": "teeth",
    "woman": "women",
} | {word: word for word in ("aircraft", "bison", "deer", "moose", "salmon", "scissors", "series", "shrimp", "trout")}
_ENDS = {"fish": "fish", "sheep": "sheep", "mouse": "mice"}
_VES = ("calf", "elf", "half", "knife", "leaf", "life", "loaf", "scarf", "shelf", "thief", "wife", "wolf")
_OES = ("buffalo", "echo", "hero", "mosquito", "potato", "tomato")

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def with_article(noun: str) -> str:
    """`a cat`, `an ant`, `a unicorn`."""
    vowel = noun[:1].lower() in tuple("aeiou") and not _CONSONANT_SOUND.match(noun)
    return f"{'an' if vowel or _SILENT_H.match(noun) else 'a'} {noun}"


def plural(noun: str) -> str:
    """`cats`, `foxes`, `butterflies`, `mice`, `sheep`; of several words the last, or the one before `of`."""
    head, of, rest = noun.partition(" of ")
    if of:
        return f"{plural(head)} of {rest}"
    before, space, word = noun.rpartition(" ")
    return f"{before}{space}{_plural(word)}"


def _plural(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    for end, ends in _ENDS.items():
        if word.endswith(end):
            return word.removesuffix(end) + ends
    if word.endswith(_VES):
        return re.sub("fe?$", "ves", word)
    if word.endswith(("s", "x", "z", "ch", "sh", *_OES)):
        return f"{word}es"
    if re.search("[^aeiou]y$", word):
        return f"{word[:-1]}ies"
    return f"{word}s"


def number(n: int) -> str:
    """0 to 99 in words: `seven`, `twenty-one`."""
    if not 0 <= n <= 99:
        raise ValueError(f"{n} is not put into words: 0 to 99 are.")
    if n < 20:
        return _ONES[n]
    tens = _TENS[n // 10 - 2]
    return f"{tens}-{_ONES[n % 10]}" if n % 10 else tens
