"""Reads the question sets of the CORE metric from the published bundle.

A bundle has core.yaml, eval_meta_data.csv and eval_data/, in a folder or a zip file.
This module decides which questions are asked, in which order, and what is refused.
A question that cannot be scored is an error that names file and line, because a
skipped question would make the score wrong. Baselines are in percent, as in the
published table.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from curtail.errors import DataError, NotFound, UsageError

MULTIPLE_CHOICE, SCHEMA, LANGUAGE_MODELING = "multiple_choice", "schema", "language_modeling"
KINDS = (MULTIPLE_CHOICE, SCHEMA, LANGUAGE_MODELING)
SHUFFLE_SEED = 1337
"""Seed of the shuffle before the first questions are taken, as in nanochat."""
DEFAULT_DELIMITER = " "

_REMEDY = "download the bundle again, or give a folder with the published files (docs/guides/evaluation.md)"
_YAML_BYTES = 262_144  # the published core.yaml has about 4 kB
_YAML_DEPTH = 16
_SECTION = "icl_tasks"
_OWN_KEYS = {"label", "icl_task_type", "dataset_uri", "num_fewshot", "continuation_delimiter"}
_WITHOUT_MEANING = {"has_categories"}  # in the published files, but not used by the metric


@dataclass(frozen=True, slots=True)
class Question:
    """One question: every context with every ending is a candidate text, and `gold` is the right one.

    A schema has several contexts, multiple choice several endings, language modelling one of each.
    """

    line: int  # in its file, from 1
    contexts: tuple[str, ...]
    endings: tuple[str, ...]
    gold: int = 0

    def texts(self, delimiter: str) -> list[str]:
        """All candidate texts, in the order of the file."""
        return [context + delimiter + ending for context in self.contexts for ending in self.endings]


@dataclass(frozen=True, slots=True)
class CoreTask:
    """One question set of the metric; its questions are shuffled and cropped already."""

    label: str
    kind: str  # one of KINDS
    shots: int  # solved examples before each question
    delimiter: str  # between a context and its ending
    baseline: float  # accuracy of guessing in percent, at least 0 and below 100
    file: str  # file of the questions
    questions: tuple[Question, ...]


def read_bundle(bundle: Path, max_per_task: int | None = None) -> tuple[CoreTask, ...]:
    """All question sets of a bundle, in the order of core.yaml.

    Args:
        bundle: the folder or the zip file; core.yaml may lie one folder further down.
        max_per_task: number of questions of each set, the first ones after shuffling; None: all.
    Raises:
        UsageError: max_per_task is below 1. NotFound: there is no such bundle.
        DataError: a file is missing or broken, or something cannot be scored.
    """
    if max_per_task is not None and max_per_task < 1:
        raise UsageError(f"cannot evaluate with {max_per_task} questions of each set", "give at least 1")
    root = _root(bundle)
    listed = read_core_yaml(_text(root / "core.yaml"), str(root / "core.yaml"))
    baselines = read_baselines(_text(root / "eval_meta_data.csv"), str(root / "eval_meta_data.csv"))
    tasks: list[CoreTask] = []
    for number, values in enumerate(listed, 1):
        place = f"{root / 'core.yaml'}, item {number} of {_SECTION}"
        task = _task(root, values, baselines, place, max_per_task)
        if task.label in [other.label for other in tasks]:
            raise DataError(f"{place}: {task.label!r} is listed twice", _REMEDY)
        tasks.append(task)
    return tuple(tasks)


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` without anchors, aliases and tags, which no published file needs; a key occurs once.

    Aliases to aliases are the known way to make a small file huge, and PyYAML takes the last of two equal keys.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise _refusal("anchors, aliases and tags are not accepted", event.start_mark)
        self._depth += 1
        if self._depth > _YAML_DEPTH:
            raise _refusal(f"it is nested deeper than {_YAML_DEPTH} levels", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise _refusal(f"the key {key.value!r} is there twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _refusal(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def read_core_yaml(text: str, place: str = "core.yaml") -> list[dict[str, Any]]:
    """The items of the section `icl_tasks`, in their order; what their keys mean is not checked here.

    Raises: DataError: the file is too large, no YAML, uses what `_Loader` refuses, or has no list of mappings there.
    """
    if len(text) > _YAML_BYTES:
        raise DataError(f"{place} is larger than {_YAML_BYTES:,} characters", _REMEDY)
    try:
        content = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DataError(f"{place}{line}: {error.problem or error.context}", _REMEDY) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that cannot be one
        reason = str(error).splitlines()[0]
        raise DataError(f"{place} is not readable YAML: {reason}", _REMEDY) from None
    listed = content.get(_SECTION) if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed:
        raise DataError(f"{place} lists nothing under {_SECTION}", _REMEDY)
    for number, item in enumerate(listed, 1):
        if not isinstance(item, dict) or not all(isinstance(key, str) for key in item):
            raise DataError(f"{place}, item {number} of {_SECTION} is no mapping with words as keys", _REMEDY)
    return listed


def read_baselines(text: str, place: str = "eval_meta_data.csv") -> dict[str, float]:
    """The accuracy of guessing in each question set, in percent, by label.

    Raises: DataError: a column is missing; a baseline is not a number from 0 to below 100.
    """
    found: dict[str, float] = {}
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if missing := [name for name in ("Eval Task", "Random baseline") if name not in (rows.fieldnames or ())]:
        raise DataError(f"{place} has no column {missing[0]!r}", _REMEDY)
    for row in rows:
        try:
            baseline = float(row["Random baseline"])
        except (TypeError, ValueError):
            baseline = math.nan
        if not 0 <= baseline < 100:
            wrong = row["Random baseline"]
            raise DataError(
                f"{place}, line {rows.line_num}: the baseline of {row['Eval Task']!r} is invalid: {wrong!r}", _REMEDY
            )
        found[row["Eval Task"]] = baseline
    return found


def read_questions(data: bytes, kind: str, place: str) -> list[Question]:
    """The questions of a JSONL file, in its order.

    Raises: DataError: no question; a line that is not a JSON object with the fields of its kind.
    """
    lines = data.split(b"\n")
    if not lines[-1].strip():
        lines.pop()  # the last line ends with a line break
    if not lines:
        raise DataError(f"{place} has no questions", _REMEDY)
    questions = []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{place}, line {number} is not JSON", _REMEDY) from None
        try:
            questions.append(_question(values, kind, number))
        except ValueError as error:
            raise DataError(f"{place}, line {number}: {error}", _REMEDY) from None
    return questions


def _root(bundle: Path) -> Path | zipfile.Path:
    """The folder with core.yaml: `bundle` or a folder in it."""
    root: Path | zipfile.Path = bundle
    if not bundle.exists():
        raise NotFound(f"there is no CORE bundle {bundle}", "give the published folder or zip file")
    if not bundle.is_dir():
        try:
            root = zipfile.Path(bundle)
        except (OSError, zipfile.BadZipFile):
            raise DataError(f"{bundle} is neither a folder nor a zip file", _REMEDY) from None
    for folder in (root, *sorted((child for child in root.iterdir() if child.is_dir()), key=str)):
        if (folder / "core.yaml").is_file():
            return folder
    raise DataError(f"there is no core.yaml in {bundle}", _REMEDY)


def _bytes(path: Path | zipfile.Path) -> bytes:
    try:
        if not path.is_file():
            raise DataError(f"{path} is missing", _REMEDY)
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", "check its permissions") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise DataError(f"{path} cannot be unpacked", _REMEDY) from None


def _text(path: Path | zipfile.Path) -> str:
    try:
        return _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text", _REMEDY) from None


def _task(
    root: Path | zipfile.Path, values: dict[str, Any], baselines: dict[str, float], place: str, most: int | None
) -> CoreTask:
    """The question set that one item of core.yaml describes, with its questions."""
    if unknown := sorted(values.keys() - _OWN_KEYS - _WITHOUT_MEANING):
        raise DataError(f"{place}: the key {unknown[0]!r} is unknown and might change the prompts", _REMEDY)
    words = {}
    for name in ("label", "icl_task_type", "dataset_uri", "continuation_delimiter"):
        word = values.get(name, DEFAULT_DELIMITER if name == "continuation_delimiter" else None)
        if not isinstance(word, str):
            raise DataError(f"{place}: {name} is {'missing' if word is None else 'not a string'}", _REMEDY)
        words[name] = word
    label, kind, uri = words["label"], words["icl_task_type"], PurePosixPath(words["dataset_uri"])
    if kind not in KINDS:
        raise DataError(f"{place}: {label} has the unknown type {kind!r}", f"the types are {', '.join(KINDS)}")
    shots = values.get("num_fewshot")
    # A bool is an int in Python, but is not accepted here.
    if not isinstance(shots, list) or len(shots) != 1 or type(shots[0]) is not int or shots[0] < 0:
        raise DataError(f"{place}: num_fewshot of {label} is not a list of one integer", _REMEDY)
    if uri.is_absolute() or ".." in uri.parts:
        raise DataError(f"{place}: dataset_uri of {label} points outside the bundle", _REMEDY)
    if label not in baselines:
        raise DataError(f"eval_meta_data.csv in {root} has no baseline for {label!r}", _REMEDY)
    path = root / "eval_data" / str(uri)
    questions = read_questions(_bytes(path), kind, str(path))
    random.Random(SHUFFLE_SEED).shuffle(questions)
    questions = questions[:most]
    if len(questions) <= shots[0]:
        raise DataError(
            f"{label} has only {len(questions)} questions, but each needs {shots[0]} solved examples",
            "take more questions of each set, or use the whole bundle",
        )
    delimiter = words["continuation_delimiter"]
    return CoreTask(label, kind, shots[0], delimiter, baselines[label], str(path), tuple(questions))


def _question(values: object, kind: str, line: int) -> Question:
    """A question from a JSON value. Raises: ValueError: says what is wrong."""
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    if kind == LANGUAGE_MODELING:
        # Some published contexts end with white space, which would merge with the first token of the answer.
        return Question(line, (_string(values, "context").strip(),), (_string(values, "continuation"),))
    contexts: tuple[str, ...]
    endings: tuple[str, ...]
    if kind == MULTIPLE_CHOICE:
        contexts, endings = (_string(values, "query"),), _strings(values, "choices")
    else:
        contexts, endings = _strings(values, "context_options"), (_string(values, "continuation"),)
    gold, options = values.get("gold"), max(len(contexts), len(endings))
    if type(gold) is not int or not 0 <= gold < options:
        raise ValueError(f"gold is {gold!r}, not a number from 0 to {options - 1}")
    return Question(line, contexts, endings, gold)


def _string(values: dict[str, object], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise ValueError(f"the field {name!r} is {'not a string' if name in values else 'missing'}")
    return value


def _strings(values: dict[str, object], name: str) -> tuple[str, ...]:
    value = values.get(name)
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(one, str) for one in value):
        what = "not a list of at least two strings" if name in values else "missing"
        raise ValueError(f"the field {name!r} is {what}")
    return tuple(value)
