"""Builds the token sequences of CORE questions, and the spans that are scored.

Decides which solved examples precede a question, the text of both, and which tokens
are the answer. The protocol equals nanochat's (karpathy/nanochat, core_eval.py),
including random numbers and white space; it follows DCLM (arXiv 2406.11794). Of the
model only the longest input matters. Lengths in tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curtail.errors import DataError
from nanochat.core_tasks import LANGUAGE_MODELING, MULTIPLE_CHOICE, CoreTask, Question
from nanochat.tokenizer import Tokenizer

SHOT_SEED = 1234
"""The seed of a question's solved examples is this plus the question's number, as in nanochat."""
_TOGETHER = 256  # questions encoded at once, on all cores


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One candidate text of a question; its tokens [start, stop) are scored."""

    tokens: np.ndarray  # uint16, BOS first unless the beginning was cut off
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TokenizedQuestion:
    """A question as token sequences for the model."""

    candidates: tuple[Candidate, ...]  # one per candidate text; language modelling has one
    cropped: bool  # whether the beginning of a candidate was cut off


def shot_numbers(number: int, questions: int, shots: int) -> list[int]:
    """The numbers of the solved examples before question `number` out of `questions`, in order.

    Equals `random.Random(1234 + number).sample` of the list of all other numbers, without
    building that list for each question.
    """
    drawn = random.Random(SHOT_SEED + number).sample(range(questions - 1), shots)
    return [one + (one >= number) for one in drawn]


def possible_texts(task: CoreTask, number: int) -> list[str]:
    """The candidate texts of a question with its solved examples, in the order of the file.

    Language modelling has one, followed by the same text without its answer.
    """
    question = task.questions[number]
    before = ""
    for shot in shot_numbers(number, len(task.questions), task.shots):
        solved = task.questions[shot]
        before += solved.texts(task.delimiter)[solved.gold] + "\n\n"
    texts = [before + text for text in question.texts(task.delimiter)]
    if task.kind == LANGUAGE_MODELING:
        # Stripped, because the white space before the answer is part of the answer's first token.
        texts.append(texts[0].removesuffix(question.endings[0]).strip())
    return texts


def ask_all(task: CoreTask, tokenizer: Tokenizer, longest: int) -> list[TokenizedQuestion]:
    """All questions of a set as token sequences of at most `longest` tokens.

    Raises: DataError: an answer has no tokens of its own or does not fit; names the question.
    """
    asked = []
    for first in range(0, len(task.questions), _TOGETHER):
        texts = [possible_texts(task, first + n) for n in range(len(task.questions[first : first + _TOGETHER]))]
        encoded = iter(tokenizer.encode_batch([text for own in texts for text in own]))
        for question, own in zip(task.questions[first:], texts, strict=False):
            rows = [np.array([tokenizer.bos_id, *next(encoded)], dtype=np.uint16) for _ in own]
            asked.append(_asked(task, question, rows, longest))
    return asked


def common_prefix(rows: Sequence[np.ndarray]) -> int:
    """Length of the common prefix of all rows."""
    shortest = min(len(row) for row in rows)
    same = np.all([row[:shortest] == rows[0][:shortest] for row in rows], axis=0)
    return shortest if same.all() else int(same.argmin())


def _asked(task: CoreTask, question: Question, rows: list[np.ndarray], longest: int) -> TokenizedQuestion:
    """The rows with their spans.

    Multiple choice scores the tokens after the rows' common prefix, a schema the common
    suffix, language modelling the tokens that are missing in the text without answer.
    """
    place = f"{task.label} cannot be scored: {task.file}, line {question.line}"
    if task.kind == LANGUAGE_MODELING:
        whole, without = rows
        if len(without) == len(whole) or common_prefix(rows) < len(without):
            raise DataError(
                f"{place}: a token spans the end of its context and the start of its answer",
                "another delimiter or another tokenizer may separate them",
            )
        rows, starts = [whole], [len(without)]
    elif task.kind == MULTIPLE_CHOICE:
        starts = [common_prefix(rows)] * len(rows)
    else:
        suffix = common_prefix([row[::-1] for row in rows])
        starts = [len(row) - suffix for row in rows]
    cuts = [max(0, len(row) - longest) for row in rows]
    # One token must remain before the span, to predict its first token.
    if any(cut and start <= cut for start, cut in zip(starts, cuts, strict=True)):
        raise DataError(
            f"{place}: its answer alone is longer than the model's {longest} tokens",
            "use a model with longer sequences, or remove that set from core.yaml",
        )
    return TokenizedQuestion(
        tuple(
            Candidate(row[cut:], start - cut, len(row) - cut)
            for row, start, cut in zip(rows, starts, cuts, strict=True)
        ),
        any(cuts),
    )
