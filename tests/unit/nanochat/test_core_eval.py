"""CORE: the same scores as an obvious reimplementation; an error for whatever cannot be scored, never a zero."""

import csv
import json
import math
import random
import shutil
import zipfile
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from curtail import __main__ as entry
from curtail.errors import CheckpointError, ConfigError, DataError, NotFound, UsageError
from curtail.system.disk import SystemDisk
from nanochat import core_eval
from nanochat.checkpoint import CheckpointMeta, write_checkpoint
from nanochat.core_eval import answers_right, centered, evaluate_core, mean_losses
from nanochat.core_prompts import ask_all, possible_texts, shot_numbers
from nanochat.core_tasks import CoreTask, Question, read_bundle, read_core_yaml
from nanochat.gpt import GPT
from nanochat.presets import GPTConfig
from nanochat.tokenizer import FILE_NAME, Tokenizer

LONGEST = 96  # tokens of the tiny model
LETTERS = "abcd"  # likely next tokens of the tiny model, so that language modelling is not always wrong
WORDS = ["river", "stone", "under", "light", "seven", "green", "over", "paper", "cold", "north", "dog", "dogma"]

SETS = [  # label, kind, file, shots, delimiter (None: not given), baseline
    ("pick", "multiple_choice", "first/pick.jsonl", 3, "\nAnswer: ", 25.0),
    ("pick_zero", "multiple_choice", "first/pick.jsonl", 0, None, 25.0),
    ("schema", "schema", "schema.jsonl", 1, None, 50.0),
    ("next", "language_modeling", "next.jsonl", 2, None, 0.0),
    ("next_zero", "language_modeling", "next.jsonl", 0, ": ", 9.1),
]


def questions(draw):
    """The lines of the three files, by name."""

    def words(most, least=1):
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    pick = [{"query": words(24), "choices": [words(4) for _ in range(4)], "gold": draw.randrange(4)} for _ in range(40)]
    pick += [{"query": words(5), "choices": ["dog", "dog light", "dog over dog"], "gold": i % 2} for i in range(4)]
    pick += [{"query": words(5), "choices": ["dog light", "dog", "dog over"], "gold": i} for i in range(3)]
    schema = [
        {"context_options": [words(20), words(9)], "continuation": words(3), "gold": draw.randrange(2)}
        for _ in range(40)
    ]
    after = [
        {"context": words(40) + draw.choice(["", " ", "\n"]), "continuation": draw.choice([*LETTERS, "a b"])}
        for _ in range(80)
    ]
    return {"first/pick.jsonl": pick, "schema.jsonl": schema, "next.jsonl": after}


def write(folder, sets=SETS):
    """A bundle in the published form, its YAML in both of the usual layouts."""
    yaml = ["# the sets", "name: core", "other:", "  - x: 1", "icl_tasks:"]
    for number, (label, kind, uri, shots, delimiter, _) in enumerate(sets):
        yaml += ["-", f"  label: {label}"] if number % 2 else [f"- label: {label}  # as published"]
        yaml += [f"  icl_task_type: {kind}", f"  dataset_uri: {uri}"]
        yaml += [f"  num_fewshot: [{shots}]"] if number % 3 else ["  num_fewshot:", f"  - {shots}"]
        yaml += ["  has_categories: true"] if number == 1 else []
        yaml += [] if delimiter is None else [f"  continuation_delimiter: {json.dumps(delimiter)} # quoted"]
    folder.mkdir(parents=True)
    (folder / "core.yaml").write_text("\n".join(yaml) + "\n")
    rows = "".join(f'{label},x,{baseline:g},"a, b"\n' for label, *_, baseline in sets)
    (folder / "eval_meta_data.csv").write_text("Eval Task,Task Category,Random baseline,Description\n" + rows)
    for uri, lines in questions(random.Random(5)).items():
        path = folder / "eval_data" / uri
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def bundle(tmp_path):
    return write(tmp_path / "bundle")


@pytest.fixture(scope="module")
def tokenizer():
    draw = random.Random(1)
    text = [" ".join(draw.choices([*WORDS, *LETTERS, "Answer:"], k=12)) for _ in range(300)]
    return Tokenizer.train(text, 320)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = GPT(GPTConfig(LONGEST, tokenizer.vocab_size, 2, 2, 2, 32, window_pattern="SL"))
    model.init_weights(3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("c_proj.weight") or name == "lm_head.weight":
                weight.normal_(0.0, 0.3, generator=generator)
        for letter in LETTERS:
            (token,) = tokenizer.encode(f" {letter}")
            model.lm_head.weight[token] *= 4
    return model.eval()


# -- the protocol once more, one example and one sequence at a time ---------


def slow_accuracy(folder, kind, uri, shots, delimiter, model, tokenizer, most):
    delimiter = " " if delimiter is None else delimiter
    data = [json.loads(line) for line in (folder / "eval_data" / uri).read_text().splitlines()]
    random.Random(1337).shuffle(data)
    data = data[:most] if most else data
    right = [slow_right(kind, data, idx, shots, delimiter, model, tokenizer) for idx in range(len(data))]
    return sum(right) / len(right)


def slow_right(kind, data, idx, shots, delimiter, model, tokenizer):
    others = [i for i in range(len(data)) if i != idx]
    examples = [data[i] for i in random.Random(1234 + idx).sample(others, shots)]
    item = data[idx]
    if kind == "multiple_choice":
        head = "".join(f"{e['query']}{delimiter}{e['choices'][e['gold']]}\n\n" for e in examples)
        rows = [slow_ids(f"{head}{item['query']}{delimiter}{choice}", tokenizer) for choice in item["choices"]]
        same = 0
        while same < min(map(len, rows)) and len({row[same] for row in rows}) == 1:
            same += 1
        means = [slow_mean(row, same, model) for row in rows]
        return means.index(min(means)) == item["gold"]
    if kind == "schema":
        head = "".join(f"{e['context_options'][e['gold']]}{delimiter}{e['continuation']}\n\n" for e in examples)
        rows = [slow_ids(f"{head}{c}{delimiter}{item['continuation']}", tokenizer) for c in item["context_options"]]
        same = 0
        while same < min(map(len, rows)) and len({row[-1 - same] for row in rows}) == 1:
            same += 1
        means = [slow_mean(row, len(row) - same, model) for row in rows]
        return means.index(min(means)) == item["gold"]
    head = "".join(f"{e['context'].strip()}{delimiter}{e['continuation']}\n\n" for e in examples)
    without = slow_ids(f"{head}{item['context'].strip()}{delimiter}".strip(), tokenizer)
    whole = slow_ids(f"{head}{item['context'].strip()}{delimiter}{item['continuation']}", tokenizer)
    assert whole[: len(without)] == without and len(whole) > len(without)
    seen = whole[-LONGEST:]
    likeliest = model(torch.tensor([seen]))[0].argmax(-1).tolist()
    answer = len(whole) - len(without)
    return likeliest[-1 - answer : -1] == whole[-answer:]


def slow_ids(text, tokenizer):
    return [tokenizer.bos_id, *tokenizer.encode(text)]


def slow_mean(row, start, model):
    cut = max(0, len(row) - LONGEST)
    row, start = row[cut:], start - cut
    losses = F.cross_entropy(model(torch.tensor([row]))[0, :-1], torch.tensor(row[1:]), reduction="none")
    return losses[start - 1 :].mean().item()


@pytest.mark.parametrize("most", [None, 30])
def test_the_scores_are_those_of_the_obvious_way(bundle, model, tokenizer, most):
    result = evaluate_core(model, tokenizer, read_bundle(bundle, most), batch=7)
    expected = []
    with torch.no_grad():
        for score, (label, kind, uri, shots, delimiter, baseline) in zip(result.tasks, SETS, strict=True):
            accuracy = slow_accuracy(bundle, kind, uri, shots, delimiter, model, tokenizer, most)
            assert (score.label, score.kind, score.shots, score.baseline) == (label, kind, shots, baseline)
            assert score.accuracy == accuracy
            assert 0 < accuracy < 1, f"{label} would not notice a mistake"
            expected.append((accuracy - 0.01 * baseline) / (1 - 0.01 * baseline))
            assert score.centered == expected[-1]
            assert score.questions == most or score.questions >= 40
    assert result.core == sum(expected) / len(expected)
    cropped = {score.label: score.cropped for score in result.tasks}
    assert cropped["pick"] and cropped["next"] and not cropped["pick_zero"]


def test_batches_change_no_answer(bundle, model, tokenizer, monkeypatch):
    for task in read_bundle(bundle, 30):
        asked = ask_all(task, tokenizer, LONGEST)
        alone = answers_right(model, task, asked, tokenizer.bos_id, 1)
        for batch in (2, 16, 1000):
            assert answers_right(model, task, asked, tokenizer.bos_id, batch) == alone
        with monkeypatch.context() as patch:  # a limit on logits makes other batches again
            patch.setattr(core_eval, "MOST_LOGITS", 3 * LONGEST * tokenizer.vocab_size)
            assert answers_right(model, task, asked, tokenizer.bos_id, 16) == alone


def test_batches_hold_similar_lengths_and_few_logits(bundle, tokenizer, monkeypatch):
    monkeypatch.setattr(core_eval, "MOST_LOGITS", 320 * 100)
    flat = [one.candidates[0] for one in ask_all(read_bundle(bundle)[3], tokenizer, LONGEST)]
    got = list(core_eval.batches(flat, 8, 320))
    assert sorted(place for rows in got for place in rows) == list(range(len(flat)))
    lengths = [[len(flat[place].tokens) for place in rows] for rows in got]
    assert [n for rows in lengths for n in rows] == sorted((n for rows in lengths for n in rows), reverse=True)
    assert all(len(rows) <= 8 and (len(rows) == 1 or 320 * rows[0] * len(rows) <= 320 * 100) for rows in lengths)
    assert max(map(len, core_eval.batches(flat, 8))) == 8


# -- the parts of the protocol ----------------------------------------------


def test_the_solved_questions_are_the_published_ones():
    """Computed with `random.Random(1234 + idx).sample([i for i in range(n) if i != idx], k)`."""
    assert shot_numbers(0, 12, 3) == [8, 2, 1]
    assert shot_numbers(1, 12, 3) == [7, 9, 8]
    assert shot_numbers(5, 12, 3) == [1, 4, 8]
    assert shot_numbers(11, 12, 3) == [8, 10, 2]
    assert shot_numbers(0, 500, 10) == [495, 399, 226, 60, 4, 47, 467, 483, 481, 414]
    assert shot_numbers(7, 500, 10) == [309, 254, 392, 109, 145, 130, 478, 100, 365, 252]
    assert shot_numbers(499, 500, 10) == [70, 271, 272, 9, 25, 455, 20, 403, 91, 293]


def test_no_question_is_its_own_example():
    for questions in (2, 5, 40):
        for number in range(questions):
            others = [i for i in range(questions) if i != number]
            for shots in (0, 1, questions - 1):
                assert shot_numbers(number, questions, shots) == random.Random(1234 + number).sample(others, shots)


def test_questions_are_shuffled_then_cropped(bundle):
    """Computed with `random.Random(1337).shuffle(list(range(12)))`."""
    path = bundle / "eval_data" / "next.jsonl"
    path.write_text("".join(json.dumps({"context": f"{n}", "continuation": "a"}) + "\n" for n in range(12)))
    whole = [6, 0, 1, 4, 10, 7, 3, 11, 2, 5, 8, 9]
    assert [question.line - 1 for question in read_bundle(bundle)[3].questions] == whole
    assert [int(question.contexts[0]) for question in read_bundle(bundle, 4)[3].questions] == whole[:4]


def task(kind, *asked, shots=0, delimiter=" "):
    return CoreTask("set", kind, shots, delimiter, 0.0, "set.jsonl", asked)


def test_prompts_are_written_as_published():
    first, second = Question(1, ("q1",), ("x", "y"), 1), Question(2, ("q2",), ("v", "w"), 0)
    texts = possible_texts(task("multiple_choice", first, second, shots=1, delimiter="\nA: "), 0)
    assert texts == ["q2\nA: v\n\nq1\nA: x", "q2\nA: v\n\nq1\nA: y"]
    first, second = Question(1, ("c1", "c2"), ("x",), 1), Question(2, ("d1", "d2"), ("y",), 1)
    assert possible_texts(task("schema", first, second, shots=1), 0) == ["d2 y\n\nc1 x", "d2 y\n\nc2 x"]
    first, second = Question(1, ("c",), (" x ",)), Question(2, ("d",), ("y\n",))
    asked = task("language_modeling", first, second, shots=1, delimiter=":\n")
    assert possible_texts(asked, 0) == ["d:\ny\n\n\nc:\n x ", "d:\ny\n\n\nc:"]


def test_the_spans(tokenizer):
    """Each word with the blank before it is one token here."""
    assert [len(tokenizer.encode(f" {word}")) for word in WORDS] == [1] * len(WORDS)
    choice = task("multiple_choice", Question(1, (" river",), ("stone over", "stone", "stone light dog"), 0))
    (asked,) = ask_all(choice, tokenizer, LONGEST)
    assert [(one.start, one.stop) for one in asked.candidates] == [(3, 4), (3, 3), (3, 5)]
    schema = task("schema", Question(1, (" river stone", " over"), ("light dog",), 0))
    (asked,) = ask_all(schema, tokenizer, LONGEST)
    assert [(one.start, one.stop) for one in asked.candidates] == [(3, 5), (2, 4)]
    following = task("language_modeling", Question(1, ("river stone",), ("light dog",)))
    (asked,) = ask_all(following, tokenizer, LONGEST)
    (one,) = asked.candidates
    assert one.tokens[one.start : one.stop].tolist() == tokenizer.encode(" light dog")
    assert one.tokens[0] == tokenizer.bos_id and not asked.cropped


def test_a_long_prompt_loses_its_beginning(tokenizer):
    (asked,) = ask_all(task("multiple_choice", Question(1, (" river" * 9,), ("stone", "over dog"), 0)), tokenizer, 6)
    (river,) = tokenizer.encode(" river")
    assert asked.cropped
    assert [one.tokens[: one.start].tolist() for one in asked.candidates] == [[river] * 5, [river] * 4]
    assert [one.tokens[one.start :].tolist() for one in asked.candidates] == [
        tokenizer.encode(" stone"), tokenizer.encode(" over dog"),
    ]  # fmt: skip
    (asked,) = ask_all(task("multiple_choice", Question(1, (" river" * 3,), ("stone", "over dog"), 0)), tokenizer, 6)
    assert not asked.cropped


def test_an_answer_that_others_begin_with_wins_only_in_the_first_place(model, tokenizer):
    for endings, winner in ((("dog", "dog light"), 0), (("dog light", "dog"), 0)):
        for gold in (0, 1):
            asked = task("multiple_choice", Question(1, (" river",), endings, gold))
            assert answers_right(model, asked, ask_all(asked, tokenizer, 9), tokenizer.bos_id, 4) == [winner == gold]
    for gold in (0, 1):  # nor can equal contexts be told apart: nothing of the texts differs
        asked = task("schema", Question(1, (" river", " river"), ("dog",), gold))
        (one,) = ask_all(asked, tokenizer, 9)
        assert all(map(math.isnan, mean_losses(model, one.candidates, tokenizer.bos_id)))
        assert answers_right(model, asked, [one], tokenizer.bos_id, 4) == [gold == 0]


@pytest.mark.parametrize(
    ("accuracy", "baseline", "expected"),
    [(0.25, 25, 0.0), (1.0, 62, 1.0), (0.55, 50, 0.1), (0.62, 62, 0.0), (0.31, 0, 0.31), (0.5, 62, -0.12 / 0.38),
     (0.2181, 9.1, 0.1271 / 0.909)],
)  # fmt: skip
def test_centring_puts_guessing_at_zero(accuracy, baseline, expected):
    assert centered(accuracy, baseline) == pytest.approx(expected, abs=1e-12)


# -- errors -----------------------------------------------------------------


def changed(file, old, new):
    def change(bundle):
        path = bundle / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def lines(file, *values):
    def change(bundle):
        (bundle / "eval_data" / file).write_text("".join(value + "\n" for value in values))

    return change


def gone(file):
    return lambda bundle: (bundle / file).unlink()


GOOD = json.dumps({"context": "river", "continuation": "a"})
CHOICE = {"query": "q", "choices": ["a", "b"], "gold": 0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (gone("core.yaml"), "there is no core.yaml in"),
        (gone("eval_meta_data.csv"), "eval_meta_data.csv is missing"),
        (gone("eval_data/schema.jsonl"), "schema.jsonl is missing"),
        (changed("core.yaml", "icl_task_type: schema", "icl_task_type: question_answering"),
         "schema has the unknown type 'question_answering'"),
        (changed("core.yaml", "  dataset_uri: schema.jsonl\n", ""), "dataset_uri is missing"),
        (changed("core.yaml", "uri: schema", "uri: ../schema"), "dataset_uri of schema points outside the bundle"),
        (changed("core.yaml", "uri: schema", "uri: /schema"), "dataset_uri of schema points outside the bundle"),
        (changed("core.yaml", "[0]", "[0, 5]"), "num_fewshot of pick_zero is not a list of one"),
        (changed("core.yaml", "[0]", "[-1]"), "num_fewshot of pick_zero is not a list of one"),
        (changed("core.yaml", "[0]", "[many]"), "num_fewshot of pick_zero is not a list of one"),
        (changed("core.yaml", "has_categories", "question_prelimiter"), "'question_prelimiter' is unknown"),
        (changed("core.yaml", "label: next_zero", "label: next"), "'next' is listed twice"),
        (changed("core.yaml", "label: schema", "label: 7"), "label is not a string"),
        (changed("eval_meta_data.csv", "\nschema,", "\nscheme,"), "has no baseline for 'schema'"),
        (changed("eval_meta_data.csv", "schema,x,50", "schema,x,"), "line 4: the baseline of 'schema' is invalid: ''"),
        (changed("eval_meta_data.csv", "schema,x,50", "schema,x,100"), "the baseline of 'schema' is invalid: '100'"),
        (changed("eval_meta_data.csv", "Random baseline", "Baseline"), "has no column 'Random baseline'"),
        (lines("next.jsonl", GOOD, '{"context": "x", "cont'), "next.jsonl, line 2 is not JSON"),
        (lines("next.jsonl", GOOD, "", GOOD), "next.jsonl, line 2 is not JSON"),
        (lines("next.jsonl", GOOD, "[1]"), "next.jsonl, line 2: it is not a JSON object"),
        (lines("next.jsonl", GOOD, '{"context": "x"}'), "next.jsonl, line 2: the field 'continuation' is missing"),
        (lines("next.jsonl", GOOD, '{"context": 1, "continuation": "a"}'), "the field 'context' is not a string"),
        (lines("next.jsonl"), "next.jsonl has no questions"),
        (lines("next.jsonl", GOOD, GOOD), "next has only 2 questions, but each needs 2 solved examples"),
        (lines("first/pick.jsonl", json.dumps({**CHOICE, "gold": 2})), "line 1: gold is 2, not a number from 0 to 1"),
        (lines("first/pick.jsonl", json.dumps({**CHOICE, "gold": True})), "line 1: gold is True"),
        (lines("first/pick.jsonl", json.dumps({**CHOICE, "choices": ["a"]})), "'choices' is not a list of"),
        (lines("first/pick.jsonl", json.dumps({"query": "q", "gold": 0})), "the field 'choices' is missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_an_error(bundle, change, says):
    change(bundle)
    with pytest.raises(DataError) as caught:
        read_bundle(bundle)
    assert says in caught.value.message
    assert caught.value.remedy


def test_a_bundle_that_is_not_there(tmp_path):
    with pytest.raises(NotFound, match="there is no CORE bundle"):
        read_bundle(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="neither a folder nor a zip file"):
        read_bundle(tmp_path / "file")
    with pytest.raises(UsageError):
        read_bundle(tmp_path, 0)


def test_a_bundle_may_be_a_zip_file_or_lie_one_folder_down(bundle, tmp_path):
    whole = read_bundle(bundle)
    (tmp_path / "outer").mkdir()
    shutil.move(bundle, tmp_path / "outer" / "eval_bundle")
    packed = tmp_path / "packed.zip"
    shutil.make_archive(str(packed.with_suffix("")), "zip", tmp_path / "outer")
    for place in (tmp_path / "outer", packed):
        assert [task.questions for task in read_bundle(place)] == [task.questions for task in whole]
    with zipfile.ZipFile(packed) as opened:
        inside = opened.getinfo("eval_bundle/eval_data/schema.jsonl")
    damaged = bytearray(packed.read_bytes())
    at = inside.header_offset + 200
    damaged[at : at + 40] = bytes(40)
    packed.write_bytes(damaged)
    with pytest.raises(DataError, match=r"schema\.jsonl cannot be unpacked"):
        read_bundle(packed)


def test_the_published_form_of_the_list_is_read():
    text = """
# a comment
max_seq_len: 2048
tokenizer:
  kwargs:
    model_max_length: 2048

icl_tasks:
-
  label: jeopardy
  dataset_uri: world_knowledge/jeopardy_all.jsonl # a path
  num_fewshot: [10]
  continuation_delimiter: "\\nAnswer: " # this separates
  has_categories: true
- label: 'it''s # one'
  num_fewshot:
    - 3
    - "#"
  mixed: [a b, 'c, d', "e\\"", -1]
after: 1
"""
    assert read_core_yaml(text) == [
        {"label": "jeopardy", "dataset_uri": "world_knowledge/jeopardy_all.jsonl", "num_fewshot": [10],
         "continuation_delimiter": "\nAnswer: ", "has_categories": True},
        {"label": "it's # one", "num_fewshot": [3, "#"], "mixed": ["a b", "c, d", 'e"', -1]},
    ]  # fmt: skip


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "lists nothing under icl_tasks"),
        ("- label: a", "lists nothing under icl_tasks"),
        ("icl_tasks: []", "lists nothing under icl_tasks"),
        ("icl_tasks: {label: a}", "lists nothing under icl_tasks"),
        ("icl_tasks:\n- label: a\n- b", "item 2 of icl_tasks is no mapping"),
        ("icl_tasks:\n- 1: a", "item 1 of icl_tasks is no mapping"),
        ("icl_tasks:\n- label: a\nlabel\n", "line 4: could not find expected ':'"),
        ("icl_tasks:\n- label: a\n   type: b", "line 3: mapping values are not allowed here"),
        ("icl_tasks:\n- label: a\n  label: b", "line 3: the key 'label' is there twice"),
        ("icl_tasks:\n- label: &x a", "line 2: anchors, aliases and tags are not accepted"),
        ("icl_tasks:\n- label: !!python/name:os.system a", "line 2: anchors, aliases and tags are not accepted"),
        (BOMB, "line 1: anchors, aliases and tags are not accepted"),
        ("icl_tasks: " + "[" * 5000, "line 1: it is nested deeper than 16 levels"),
        ("icl_tasks:\n- label: " + "x" * 300_000, "is larger than 262,144 characters"),
        ("icl_tasks:\n- label: 2020-13-45", "is not readable YAML: month must be in 1..12"),
        ("icl_tasks:\n- label: " + "9" * 5000, "is not readable YAML: Exceeds the limit"),
        ('icl_tasks:\n- label: "a', "line 2: found unexpected end of stream"),
        ("icl_tasks:\n- label: [1", "line 2: expected ',' or ']', but got '<stream end>'"),
        ("icl_tasks:\n-\tlabel: \x00", "is not readable YAML"),
    ],
)  # fmt: skip
def test_any_other_yaml_is_refused_with_its_place(text, says):
    with pytest.raises(DataError) as caught:
        read_core_yaml(text, "core.yaml")
    assert says in caught.value.message and caught.value.message.startswith("core.yaml")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("context", "delimiter", "answer", "why"),
    [
        ("river d", "", "og", "a token spans the end of its context and the start of its answer"),
        ("river", " ", "stone " * 9, "its answer alone is longer than the model's 8 tokens"),
        ("river", " ", ("stone " * 8).strip(), "its answer alone is longer than the model's 8 tokens"),
    ],
)
def test_answers_that_cannot_be_found_in_the_tokens(context, delimiter, answer, why, tokenizer):
    asked = task("language_modeling", Question(7, (context,), (answer,)), delimiter=delimiter)
    with pytest.raises(DataError) as caught:
        ask_all(asked, tokenizer, 8)
    assert caught.value.message == f"set cannot be scored: set.jsonl, line 7: {why}"
    # one token before the answer is enough
    asked = task("language_modeling", Question(7, ("river",), (("stone " * 7).strip(),)))
    assert ask_all(asked, tokenizer, 8)[0].candidates[0].start == 1


def test_a_broken_model_is_an_error(bundle, tokenizer):
    model = GPT(GPTConfig(LONGEST, tokenizer.vocab_size, 1, 1, 1, 16))
    model.init_weights(0)
    with torch.no_grad():
        model.lm_head.weight[5] = math.nan
    for one in read_bundle(bundle):
        with pytest.raises(CheckpointError, match="not finite"):
            evaluate_core(model, tokenizer, [one])


def test_the_tokenizer_must_be_the_models(bundle, model):
    other = Tokenizer.train(["a"], 265)
    with pytest.raises(ConfigError, match="the tokenizer has 265 ids, but the model has 320"):
        evaluate_core(model, other, read_bundle(bundle))
    with pytest.raises(ConfigError):
        evaluate_core(model, other, [])


# -- the command ------------------------------------------------------------


@pytest.fixture
def checkpoint(model, tokenizer, tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    weights = {name: np.ascontiguousarray(value.detach().numpy()) for name, value in model.named_parameters()}
    meta = CheckpointMeta(None, model.config, 0, 3, "", tokenizer.digest, None, datetime.now(UTC).isoformat())
    write_checkpoint(folder, weights, meta, SystemDisk())
    tokenizer.save(folder / FILE_NAME)
    return folder


def test_the_command_prints_a_table_and_writes_json_and_csv(bundle, checkpoint, model, tokenizer, tmp_path, capsys):
    expected = evaluate_core(model, tokenizer, read_bundle(bundle, 20))
    command = ["eval", str(checkpoint), "--core", str(bundle), "--max-per-task", "20"]
    assert entry.run(command) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[1:7]] == [*(label for label, *_ in SETS), "CORE"]
    assert out[6].split()[1] == f"{expected.core:.4f}"
    assert "were cropped at the start" in out[7]
    file = tmp_path / "core.csv"
    assert entry.run([*command, "--json", "--batch", "3", "--csv", str(file)]) == 0
    captured = capsys.readouterr()
    values = json.loads(captured.out)
    assert captured.err == ""
    assert values["core"] == expected.core and values["version"] == 3 and values["max_per_task"] == 20
    assert [one["accuracy"] for one in values["tasks"]] == [score.accuracy for score in expected.tasks]
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["label"] for row in rows] == [*(label for label, *_ in SETS), "CORE"]
    assert float(rows[-1]["centered"]) == expected.core
    assert [float(row["centered"]) for row in rows[:-1]] == [score.centered for score in expected.tasks]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--csv", "x.csv"], 2, "give its bundle with --core"),
        (["--max-per-task", "5"], 2, "give its bundle with --core"),
        (["--core", "b", "--tokens", "5"], 2, "--tokens and --core cannot be combined"),
        (["--core", "b"], 3, "there is no CORE bundle b"),
        (["--core", "b", "--csv", "no/x.csv"], 3, "the folder no does not exist"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(arguments, code, says, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert entry.run(["eval", str(checkpoint), *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and says in captured.err


def test_without_a_tokenizer_the_command_says_where_to_give_one(bundle, checkpoint, capsys):
    (checkpoint / FILE_NAME).unlink()
    assert entry.run(["eval", str(checkpoint), "--core", str(bundle)]) == 3
    assert "there is no tokenizer.json" in capsys.readouterr().err
