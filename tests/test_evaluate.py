"""evaluate.py against rouge-score, NLTK and sacrebleu (by golden values), hand-worked metrics, and its command line with small runs.

With APPRENTICE_REAL=DIR (a folder with peers/rouge_cases.json and data/esnli/) the real development split is scored too.
"""
import contextlib
import csv
import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.bert_score_make import Words, texts
from golden.model_make import SHAPE, weights_of

import evaluate as ev
from apprentice import Answer, Apprentice
from data import FORMATS, LABELS, DataError, Example, Tokenizer, read_examples, split_of, toy_examples, train_vocabulary
from model import SIZES, T5, T5Config, hugging_face_names, load_weights, weights_digest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).with_name("golden")
REAL = os.environ.get("APPRENTICE_REAL")
real = pytest.mark.skipif(not REAL, reason="APPRENTICE_REAL does not name a folder with real data")
E, N, C = LABELS


def golden(name):
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def check_rouge(case):
    found = ev.rouge(case["pred"], case["refs"], stem=case["stem"])
    for kind, expected in case["expected"].items():
        assert found[kind] == pytest.approx(expected, abs=1e-6), (kind, case)


# --- ROUGE and BLEU ---------------------------------------------------------------------------------------------------

def test_stems_are_those_of_nltk():
    cases = golden("rouge_stems.json")
    assert len(cases) >= 1990
    assert [word for word, stem in cases if ev.porter_stem(word) != stem] == []


def test_the_stems_that_the_source_gives_as_examples():
    examples = re.findall(r"(\w+) -> (\w+)", (ROOT / "evaluate.py").read_text(encoding="utf-8").split("def rouge_tokens")[0])
    one_step = {"conflated", "controll"}                       # shown for one step, changed further by later ones
    assert len(examples) > 10
    assert [(w, s, ev.porter_stem(w)) for w, s in examples if w not in one_step and ev.porter_stem(w) != s] == []


def test_rouge_is_that_of_rouge_score():
    cases = golden("rouge_cases.json")
    assert len(cases) == 400
    assert sum(case["expected"]["rougeL"] != case["expected"]["rougeLsum"] for case in cases) > 50    # the union LCS is at work
    for case in cases:
        check_rouge(case)


def test_rouge_takes_each_metric_from_its_own_best_reference_and_the_first_of_equals():
    found = ev.rouge("a b x c d", ["a b c d e f", "c d x a b"])
    assert found["rouge1"] == (1, 1, 1)                        # the second reference
    assert found["rougeL"] == pytest.approx((4 / 5, 4 / 6, 8 / 11))    # the first
    assert ev.rouge("a b", ["a", "a b c d"])["rouge1"] == pytest.approx((0.5, 1, 2 / 3))   # both 2/3: the first wins
    assert ev.rouge("a b", "a") == ev.rouge("a b", ["a"])
    with pytest.raises(ValueError, match="at least one reference"):
        ev.rouge("a", [])


def test_only_words_of_four_letters_and_more_are_stemmed():
    assert ev.rouge_tokens("His dog WAS lying; ties, café!") == ["his", "dog", "was", "lie", "tie", "caf"]
    assert ev.rouge_tokens("Ties", stem=False) == ["ties"]
    assert ev.porter_stem("was") == "wa" and ev.rouge("was", "wa")["rouge1"] == (0, 0, 0)


def test_lcs_length_is_that_of_the_textbook_table():
    rng = random.Random(0)
    for _ in range(300):
        a, b = (rng.choices("abcde", k=rng.randint(0, 90)) for _ in range(2))
        table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
        for i, x in enumerate(a, 1):
            for j, y in enumerate(b, 1):
                table[i, j] = table[i - 1, j - 1] + 1 if x == y else max(table[i - 1, j], table[i, j - 1])
        assert len(ev._lcs(a, b)) == table[-1, -1]


def test_bleu_is_that_of_sacrebleu():
    cases = golden("bleu_cases.json")
    assert len(cases) == 200 and sum(case["expected"] > 0 for case in cases) > 100
    for case in cases:
        assert ev.bleu(case["preds"], case["refs"]) == pytest.approx(case["expected"], abs=1e-6), case


def test_bleu_by_hand_and_its_errors():
    # 4, 2, 0, 0 matches of 5, 4, 3, 2; the empty orders count 1/2 and 1/4; as long as the reference
    expected = 100 * (4 / 5 * 2 / 4 * (1 / 2) / 3 * (1 / 4) / 2) ** 0.25
    assert ev.bleu(["the cat sat the mat"], [["the cat on the mat"]]) == pytest.approx(expected)
    assert ev.bleu(["the cat sat the mat"], ["the cat on the mat"]) == pytest.approx(expected)
    assert ev.bleu(["a b c d"], [["a b c d e f g h", "x y"]]) == pytest.approx(100)    # the closer length, of two the shorter
    for wrong in (([], []), (["a"], []), (["a"], [[]])):
        with pytest.raises(ValueError, match="reference"):
            ev.bleu(*wrong)


# --- metrics ----------------------------------------------------------------------------------------------------------

def rows(*labels, explanations=("because it is so", "it is so"), kinds=()):
    """Examples 0, 1, ... with these gold labels, two rows to a premise."""
    kinds = kinds or [""] * len(labels)
    return [Example(str(i), f"premise {i // 2}", f"it is number {i}", label, explanations, (), kind)
            for i, (label, kind) in enumerate(zip(labels, kinds, strict=True))]


def said(*labels, rationale="because it is so"):
    return [{"id": str(i), "label": label, "rationale": rationale} for i, label in enumerate(labels)]


def scored(examples, predictions):
    return ev.evaluate(ev.join(examples, predictions))


def test_label_metrics_by_hand():
    found = ev.label_metrics([E, E, E, N, N, C], [E, E, N, N, None, "maybe"])
    assert found["accuracy"] == 3 / 6                          # an answer without a label stays in the denominator
    assert found["valid"] == 4 / 6
    assert found["labels"][E] == pytest.approx({"precision": 1, "recall": 2 / 3, "f1": 4 / 5, "rows": 3})
    assert found["labels"][N] == pytest.approx({"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "rows": 2})
    assert found["labels"][C] == {"precision": 0, "recall": 0, "f1": 0, "rows": 1}
    assert found["macro_f1"] == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)
    assert found["confusion"] == {E: {E: 2, N: 1, C: 0, "none": 0}, N: {E: 0, N: 1, C: 0, "none": 1}, C: {E: 0, N: 0, C: 0, "none": 1}}
    assert ev.label_metrics([E, N], [E, N])["macro_f1"] == 1   # a label that no row has does not lower the mean


def test_the_interval_is_of_clusters_and_seeded():
    rng = np.random.default_rng(0)
    by_cluster = rng.random(300) < 0.7
    values, clusters = np.repeat(by_cluster, 3), np.repeat([f"p{i}" for i in range(300)], 3)
    low, high = ev.bootstrap_interval(values, clusters)
    width = 2 * 1.96 * np.sqrt(by_cluster.mean() * (1 - by_cluster.mean()) / 300)      # the rows of a premise agree: 300 draws, not 900
    assert high - low == pytest.approx(width, rel=0.1)
    assert (low + high) / 2 == pytest.approx(by_cluster.mean(), abs=0.01)
    assert ev.bootstrap_interval(values, clusters) == (low, high) != ev.bootstrap_interval(values, clusters, seed=1)
    single = ev.bootstrap_interval(values, np.arange(900))
    assert (single[1] - single[0]) * np.sqrt(3) == pytest.approx(high - low, rel=0.1)


def test_evaluate_counts_what_it_cannot_parse_and_leaves_out_only_rows_without_gold():
    found = scored(rows(E, N, C, None), said(E, None, N, E))
    assert (found["rows"], found["premises"]) == (3, 2)
    assert found["accuracy"] == pytest.approx(1 / 3) and found["valid"] == pytest.approx(2 / 3)
    assert found["unparseable"] == ["1"]
    assert found["reasons"]["rows"] == 3 and found["reasons"]["references"] == "2" and found["reasons"]["stemming"] is True
    assert found["reasons"]["rouge1"]["f"] == 1 and found["reasons"]["bleu"] == pytest.approx(100)
    json.dumps(found)
    assert found == scored(rows(E, N, C, None), said(E, None, N, E)[::-1])    # found by id


def test_reasons_are_plain_means_and_missing_where_nothing_was_written():
    examples = rows(E, N, C, C)
    examples[3] = Example("3", "p", "h", C)                    # nobody explained this one
    predictions = said(E, N, C, C)
    predictions[1]["rationale"], predictions[2]["rationale"] = "", "it is so, is it not"
    found = scored(examples, predictions)["reasons"]
    each = [ev.rouge(p["rationale"], ["because it is so", "it is so"])["rougeL"] for p in predictions[:3]]
    assert found["rows"] == 3
    assert found["rougeL"]["f"] == pytest.approx(sum(scores[2] for scores in each) / 3)        # the empty reason counts as 0
    assert found["rougeL"]["precision"] == pytest.approx(sum(scores[0] for scores in each) / 3)
    assert found["rougeL"]["interval"][0] <= found["rougeL"]["f"] <= found["rougeL"]["interval"][1]
    assert scored(examples, said(E, N, C, C, rationale=""))["reasons"] is None
    assert scored(rows(E, N, explanations=()), said(E, N))["reasons"] is None


@pytest.mark.parametrize("examples, predictions, message", [
    (rows(E, N), said(E), "1 rows of the data have no prediction.*'1'"),
    (rows(E), said(E, N), "1 predictions are for no row of the data.*'1'"),
    (rows(E), said(E) + said(E), "1 predictions share their id"),
    (rows(E) + rows(E), said(E), "1 rows of the data share their id"),
    (rows(None), said(E), "no row of the data has a gold label"),
])
def test_what_does_not_fit_together_is_an_error(examples, predictions, message):
    with pytest.raises(DataError, match=message):
        ev.join(examples, predictions)


def test_baselines():
    examples = rows(E, E, N, None)
    found = ev.reference_baselines(examples)
    assert found["majority class (entailment)"]["accuracy"] == pytest.approx(2 / 3)
    copy = [ev.rouge(e.hypothesis, e.explanations)["rouge1"][2] for e in examples[:3]]
    assert found["copy the hypothesis"]["reasons"]["rouge1"]["f"] == pytest.approx(np.mean(copy))
    human = found["human, against the others"]["reasons"]
    assert human["references"] == "1" and human["rouge1"]["f"] == pytest.approx(ev.rouge("because it is so", "it is so")["rouge1"][2])
    assert found["template of the gold label"]["reasons"]["rows"] == 3
    template = found["template of the gold label"]["reasons"]
    assert template["rows"] == 3
    filled = ["it is number 0 because premise 0.", "it is number 1 because premise 0.", "Just because premise 1 does not mean that it is number 2."]
    assert template["rougeL"]["f"] == pytest.approx(np.mean([ev.rouge(t, examples[0].explanations)["rougeL"][2] for t in filled]))


# --- the labels' probabilities -----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random T5 with a vocabulary that breaks the options "yes", "no", ... into pieces, and toy rows."""
    examples, path = toy_examples(200, split="test"), tmp_path_factory.mktemp("tiny") / "spiece.model"
    train_vocabulary([text for e in examples for text in (e.premise, e.hypothesis, *e.explanations)], path, 200)
    torch.manual_seed(0)
    tokenizer = Tokenizer(path)
    return T5(replace(SIZES["nano"], vocab_size=tokenizer.vocab_size)).eval(), tokenizer, examples


@pytest.mark.parametrize("format, before, words", [
    ("multitask", "", LABELS), ("label_then_rationale", "", LABELS), ("rationale_then_label", "a dog is a cat. answer: ", LABELS),
    ("instruction", "", ("yes", "it is not possible to tell", "no"))])
def test_label_scores_are_those_of_one_label_at_a_time(tiny, format, before, words):
    model, tokenizer, examples = tiny
    pairs, apprentice = [(e.premise, e.hypothesis) for e in examples[:5]], Apprentice(model, tokenizer, format)
    found = apprentice.score_labels(pairs, ["a dog is a cat."] * 5, batch_size=2)
    for i, (premise, hypothesis) in enumerate(pairs):
        task = FORMATS["predict" if format == "multitask" else format]
        source = torch.tensor([tokenizer.encode(task.render(Example(str(i), premise, hypothesis, None))[0])])
        sums = []
        for word in words:
            prefix, target = tokenizer.encode(before)[:-1], tokenizer.encode(before + word)[:-1]
            with torch.no_grad():
                scores = model(source, torch.tensor([[0, *target[:-1]]])).log_softmax(-1)[0]
            sums.append(sum(float(scores[t, target[t]]) for t in range(len(prefix), len(target))))
        assert found[i].tolist() == pytest.approx(torch.tensor(sums).log_softmax(0).tolist(), abs=1e-4)
    if format == "rationale_then_label":
        own = [answer.rationale for answer in apprentice.answer(pairs)]
        assert torch.allclose(apprentice.score_labels(pairs), apprentice.score_labels(pairs, own), atol=1e-6)
        assert not torch.allclose(found, apprentice.score_labels(pairs, [""] * 5), atol=1e-3)


# --- BERTScore --------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def encoder():
    """The T5 of golden/model_make.py."""
    model = T5(T5Config(**SHAPE, feed_forward_proj="gated-gelu", tie_word_embeddings=False)).eval()
    names = [(name, part) for ours, theirs in hugging_face_names(model.config).items()
             for name, part in zip(theirs, model.get_parameter(ours).chunk(len(theirs)), strict=True)]
    load_weights(model, weights_of({name: part.shape for name, part in names}), "golden")
    return model


def test_bert_score_is_that_of_the_package(encoder):
    predictions, references = texts()
    for case in golden("bert_score.json"):
        found = torch.stack(ev.bert_score(predictions, references, encoder, Words(), layer=case["layer"], idf=case["idf"]), dim=1)
        assert (found - torch.tensor(case["expected"])).abs().max() < 1e-4, (case["layer"], case["idf"])


def test_bert_score_where_it_differs_from_the_package(encoder):
    P, R, F = ev.bert_score(["", "w3 w4", "w5", "w3 w4 w5", "w5"], ["w3", "", "w5", "w3 w4 w5", ["w5 w6 w7", "w5"]], encoder, Words())
    assert P.tolist() == pytest.approx([0, 0, 1, 1, 1], abs=1e-6)    # a text without tokens scores 0, one token does not
    for wrong in (("w3", "w3"), (["w3"], [[]]), (["w3"], ["w3", "w4"])):
        with pytest.raises(ValueError, match="bert_score: a list of . predictions needs as many"):
            ev.bert_score(*wrong, encoder, Words())
    assert R.tolist() == pytest.approx([0, 0, 1, 1, 1], abs=1e-6) and F.tolist() == pytest.approx([0, 0, 1, 1, 1], abs=1e-6)
    with torch.no_grad():                                            # one pair by hand: the states without </s>, every cosine
        a, b = (encoder.encode(torch.tensor([Words().encode(text)]))[0, :-1].double().numpy() for text in ("w9 w8", "w7 w9 w6"))
    cosines = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    P, R, _ = ev.bert_score(["w9 w8", "w3 w3 w3 w3 w3 w3"], ["w7 w9 w6", "w3"], encoder, Words())     # the second row pads the first
    assert (float(P[0]), float(R[0])) == pytest.approx((cosines.max(1).mean(), cosines.max(0).mean()), abs=1e-5)


def test_bert_score_with_a_baseline(encoder, tmp_path, monkeypatch):
    predictions, references = texts()
    plain = torch.stack(ev.bert_score(predictions, references, encoder, Words()))
    P, R, F = ev.bert_score(predictions, references, encoder, Words(), baseline=(0.5, 0.25, 0.0))
    assert torch.allclose(P, 2 * plain[0] - 1, atol=1e-6) and torch.allclose(R, (4 * plain[1] - 1) / 3, atol=1e-6) and torch.equal(F, plain[2])

    (tmp_path / "model.safetensors").write_bytes(b"1")
    monkeypatch.setattr(ev.Apprentice, "load", lambda name, device: Apprentice(encoder, Words()))
    examples = [Example(str(i), f"p {i}", "h", E, (text,)) for i, text in enumerate(predictions)]
    scorer = ev.bert_scorer(tmp_path, examples, layer=1, rescale=True)
    store = json.loads((tmp_path / "bert_score.json").read_text())
    (key, baseline), = store.items()
    assert key.startswith("layer 1, idf False") and scorer.keywords["baseline"] == baseline
    pairs = random.Random(0).sample(predictions, 60)
    strangers = torch.stack(scorer(pairs, random.Random(1).sample(pairs, 60)))
    same, unlike = torch.stack(scorer(predictions, predictions)), strangers.mean(1)
    assert same.min() > 0.9999 and unlike.abs().max() < 0.1    # 1 stays 1, and what has nothing to do with it is 0 on average
    (tmp_path / "bert_score.json").write_text(json.dumps({key: [0.1, 0.2, 0.3]}))
    assert ev.bert_scorer(tmp_path, examples, layer=1, rescale=True).keywords["baseline"] == [0.1, 0.2, 0.3]     # found again
    (tmp_path / "model.safetensors").write_bytes(b"2")                                                           # but not for other weights
    assert ev.bert_scorer(tmp_path, examples, layer=1, rescale=True).keywords["baseline"] == baseline
    assert "baseline" not in ev.bert_scorer(tmp_path, examples, idf=True).keywords


# --- calibration and comparison -----------------------------------------------------------------------------------------

def test_calibration_error_by_hand():
    # bin 5 (0.5 to 0.6): two rows of confidence 0.55, one right; bin 9: two rows, 0.9 and 1.0, both right
    sure = torch.tensor([0.55, 0.55, 0.9, 1.0])
    scores = torch.stack([sure, (1 - sure) * 0.9, (1 - sure) * 0.1], dim=1).clamp(min=1e-30).log()
    found = ev.calibration(scores, torch.tensor([0, 1, 0, 0]), scores, torch.tensor([0, 1, 0, 0]))
    assert found["table"]["as it is"]["ECE"] == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)
    assert found["pictures"][0]["lines"]["as it is"] == (pytest.approx((0.55, 0.95)), pytest.approx((0.5, 1.0)))
    assert ev.calibration(scores, torch.tensor([0, 1, 0, 0]), scores[:0], torch.tensor([]))["table"] == {"as it is": found["table"]["as it is"]}
    all_wrong = ev.calibration(scores[2:], torch.tensor([1, 1]), scores, torch.tensor([0, 1, 0, 0]))
    assert all_wrong["table"]["as it is"]["ECE"] == pytest.approx(0.95)


def test_a_temperature_put_in_is_found_again():
    generator = torch.Generator().manual_seed(0)
    true = 2 * torch.randn(20_000, 3, generator=generator)
    gold = torch.multinomial(true.softmax(-1), 1, generator=generator)[:, 0]
    half = slice(0, 10_000), slice(10_000, None)
    table = ev.calibration(3 * true[half[0]], gold[half[0]], 3 * true[half[1]], gold[half[1]])["table"]
    assert float(table["temperature fitted"]["temperature"]) == pytest.approx(3, rel=0.05)
    assert table["temperature fitted"]["ECE"] < 0.02 < 0.08 < table["as it is"]["ECE"]
    accuracy = float((true[half[0]].argmax(1) == gold[half[0]]).float().mean())
    assert table["as it is"]["accuracy"] == table["temperature fitted"]["accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("wins, losses, p", [(0, 5, 2 / 2**5), (1, 7, 2 * (1 + 8) / 2**8), (3, 3, 1), (0, 0, 1),
                                             (10, 25, 0.016673847800121)])               # the last: scipy.stats.binomtest(10, 35).pvalue
def test_mcnemar_is_the_binomial_test(wins, losses, p):
    first = lines_of(*[(E, E, "a")] * wins, *[(N, E, "a")] * losses, (E, E, "a"))
    other = lines_of(*[(N, E, "a")] * wins, *[(E, E, "a")] * losses, (E, E, "a"))
    assert ev.comparison(first, {"other": other})["table"]["minus other"]["p"] == f"{p:.2g}"


def lines_of(*rows):
    """(label, gold, reason) -> lines, two to a premise."""
    lines = [{"id": str(i), "label": label, "gold_label": gold, "right": float(label == gold), "rationale": reason, "references": ("a b c d",),
              "marked": [], "premise": f"p {i // 2}", "hypothesis": "h", "kind": "", "text": ""} for i, (label, gold, reason) in enumerate(rows)]
    return [{**line, **ev.read_reason(line)} for line in lines]


def test_comparison_by_hand():
    first = lines_of((E, E, "a b c d"), (E, E, "a b"), (N, E, "x"), (None, C, "a b c d"), (C, C, "a b c d"))
    other = lines_of((E, E, "a b c d"), (C, E, "a b"), (E, E, "x"), (N, C, "x"), (N, C, "x"))
    row = ev.comparison(first, {"other": other})["table"]["minus other"]
    assert row["right"] == pytest.approx(1 / 5) and (row["only this right"], row["only the other"]) == (2, 1) and row["p"] == "1"
    assert row["same answer"] == pytest.approx(1 / 5) and row["differ, both wrong"] == 1 and row["ROUGE-L"] == pytest.approx(2 / 5)
    assert row["clauses in common"] == pytest.approx(3 / 5)    # the reasons of three rows are the same, those of two have no clause in common
    assert row["right, 95%"][0] < 0.2 < row["right, 95%"][1] and row["ROUGE-L, 95%"][0] >= 0
    alike = ev.comparison(first, {"itself": first})["table"]["minus itself"]
    assert alike["right"] == 0 and alike["right, 95%"] == (0, 0)           # paired: no doubt about rows that are the same


def test_what_is_seen_of_a_reason():
    line = {"premise": "Two women are hugging.", "hypothesis": "The sisters are sleeping.", "references": ["Sisters are women, and they hug."], "marked": []}
    found = ev.read_reason({**line, "rationale": "They hug, because sisters are women."})
    assert (found["clauses named"], found["template"], found["copy"], found["words"], found["joints"]) == (1, 0, 0, 6, 3)
    assert ev.read_reason({**line, "rationale": "Sisters are women."})["clauses named"] == 0.5
    frame = ev.read_reason({**line, "rationale": "Just because two women are hugging does not mean the sisters are sleeping."})
    assert frame["template"] == 1 and frame["copy"] == 0
    assert ev.read_reason({**line, "rationale": "Just because they hug they need not be family."})["template"] == 0
    assert ev.read_reason({**line, "rationale": "Two women hugging"})["copy"] == 1
    marked = ev.join([Example("0", "p", "h", E, ("so",), (("two *women* hug", "*The sisters*, *hugging*"),))], said(E, rationale="Sisters hug."))[0]
    assert marked["marked"] == ["hug", "sister", "the", "women"] and ev.read_reason(marked)["marked words named"] == 2 / 4
    lines = [{**line, **found, "rationale": "They hug, because sisters are women. And so"}]
    table = ev.manner({"one": lines, "silent": [{**line, "rationale": ""}]})["table"]
    assert set(table) == {"one"} and table["one"]["words"] == "6.0" and table["one"]["different words"] == 8
    assert table["one"]["most used joints"] == ", because . and"


def test_what_training_never_said(tmp_path):
    line = {"premise": "p", "hypothesis": "h", "references": ["a b c d e"], "rationale": "The dog, a pet, sleeps."}     # the dog a · dog a pet · a pet sleeps

    def file(name, *rows):
        lines = [{"premise": "p", "hypothesis": "h", "label": E, "explanations": texts, "split": "train"} for texts in rows]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
        return str(tmp_path / name)

    def unheard(**settings):
        return ev.unheard([line], settings["data"], tmp_path, settings)

    people = file("people.jsonl", ["The dog: A PET!", "a b c"], [])
    new = unheard(data=people)
    assert new == {("a", "pet", "sleeps"), ("b", "c", "d"), ("c", "d", "e")} and ev.unheard([line], "toy", tmp_path, {"data": people}) is None
    assert unheard(data=people, explanations=1) == new | {("a", "b", "c")}
    said = file("said.jsonl", ["b c d"])
    file("teacher.jsonl", ["c d e"])
    assert unheard(data=people, teacher=f"x@2+{said}@0.5", teacher_writes="rest") == {("a", "pet", "sleeps")}
    assert unheard(data=people, teacher=f"x@2+{said}@0.5") == {("a", "pet", "sleeps"), ("c", "d", "e")}
    assert len(unheard(data=people, teacher_writes="all")) == 5 and unheard(data=people, teacher="gone.jsonl") is None
    taught = {"premise": "a", "hypothesis": "h", "label": E, "explanations": ["The dog, a pet"]}                     # of a file for all rows it hears
    for name, *rows in (("d", "a train", "p test", "v validation"), ("t", "t test", "u train")):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(taught | {"premise": row[0], "explanations": [], "split": row[2:]}) + "\n" for row in rows))
    how = {"data": str(tmp_path / "d.jsonl"), "tests": str(tmp_path / "t.jsonl")}
    for row, heard in (({}, 2), ({"premise": "u"}, 2), ({"premise": "P"}, 0), ({"premise": "v"}, 0), ({"premise": "t"}, 0), ({"label": ""}, 0)):
        (tmp_path / "all.jsonl").write_text(json.dumps(taught | row) + "\n")                                        # none to held-out premises
        assert len(unheard(**how)) - len(unheard(**how, teacher=str(tmp_path / "all.jsonl"))) == heard
    assert len(unheard(data=people, hypothesis_only=0.5)) == 3 and ("nothing", "is", "known") not in ev.unheard(
        [line | {"rationale": "nothing is known."}], people, tmp_path, {"data": people, "hypothesis_only": 0.5})
    wrong = tmp_path / "wrong.jsonl"  # with another label than gold, which counts other_labels
    wrong.write_text(json.dumps({"premise": "p", "hypothesis": "h", "label": N, "rationale": "b c d"}))
    assert [("b", "c", "d") in unheard(data=people, teacher=str(wrong), other_labels=counts) for counts in (0.0, 0.5)] == [True, False]
    more = file("more.jsonl", ["the dog a"], ["dog a pet"])
    assert unheard(data=more, labelled_rows=1) - unheard(data=more) == {("dog", "a", "pet")}
    for given, heard in ((True, 0), (False, 1)):  # of a file whose labels are the data's own it hears no more rows than labelled_rows
        (tmp_path / "told.jsonl").write_text(json.dumps(taught | {"premise": "z", "explanations": ["dog a pet"], "given": given}))
        way = {"data": more, "labelled_rows": 1}
        assert unheard(**way, teacher="gone.jsonl") is None
        assert len(unheard(**way)) - len(unheard(**way, teacher=str(tmp_path / "told.jsonl"))) == heard
    assert ev.read_reason({**line, "marked": []}, new)["new triples"] == pytest.approx(1 / 3)
    assert "new triples" not in ev.read_reason({**line, "marked": []})
    assert "new triples" not in ev.read_reason({**line, "rationale": "so", "marked": []}, new)


def test_breakdown_by_hand():
    lines = lines_of((E, E, "a b c d"), (N, E, "a b"), (N, N, "x"), (None, C, "x y z"), (C, C, "a b c d e f"), (C, C, "x"))
    for line, kind, premise in zip(lines, ["u", "u", "", "v", "", ""], ["h", "a", "a a", "a a a", "a a a a", "h a a a a"], strict=True):
        line |= {"kind": kind, "premise": premise}
    table = ev.breakdown(lines)["table"]
    assert table["gold: entailment"]["rows"] == 2 and table["gold: entailment"]["right"] == 0.5
    assert table["gold: entailment"]["ROUGE-L"] == pytest.approx((1 + 2 / 3) / 2)
    assert table["kind: u"]["rows"] == 2 and table["kind: v"]["right"] == 0 and "kind: " not in table
    words = {name.split(": ")[1]: row["rows"] for name, row in table.items() if name.startswith("words of the pair")}
    assert words == {"2 to 2": 2, "3 to 4": 2, "5 to 6": 2}
    overlap = {name.split(": ")[1]: (row["rows"], row["right"]) for name, row in table.items() if name.startswith("overlap")}
    assert overlap == {"0 to 0": (4, 0.5), "100 to 100": (2, 1)}                # the hypothesis is "h"


def test_trade_off_by_hand(tmp_path):
    def run(name, accuracy, parameters, bench, rouge=0.5):
        (tmp_path / name).mkdir()
        if bench:
            told = {"latency_ms": {"float32": {"median": bench[0]}}, "memory_bytes": {"float32": bench[1]}}
            (tmp_path / name / "bench.json").write_text(json.dumps(told))
        findings = {"Simulatability": {"table": {"n-grams": {"LAS": 0.1}}}, "Consistency": {"table": {"its own": {"nearer to its own pair": 0.75}, "x": {}}}}
        return {str(tmp_path / name): {"accuracy": accuracy, "parameters": parameters, "reasons": {"rougeL": {"f": rouge}}, "findings": findings}}

    teacher, student = run("teacher", 0.9, 1000, (18, 8e6)), run("student", 0.882, 120, (2, 2e6))
    found = ev.trade_off(teacher | student | run("worse", 0.5, 200, (4, 1e6)))
    rows = list(found["table"].values())
    assert [row["on the front"] for row in rows] == ["parameters µs kB", "parameters µs kB", "kB"]      # the worst one is the leanest
    assert rows[1]["beside the largest"] == "98% of the accuracy, 12% of the parameters, 9.0x as fast"
    assert (rows[1]["µs"], rows[1]["kB"], rows[1]["LAS"], rows[1]["nearer"]) == (2000, 2000, 0.1, 0.75)
    marks = {(shown["x"], shown["y"]): [points[2] for points in shown["lines"].values()] for shown in found["pictures"]}
    assert len(marks) == 9 and marks["parameters", "accuracy"] == ["o", "o", "x"] and marks["kB", "ROUGE-L"] == ["x", "x", "o"]
    unmeasured = ev.trade_off(teacher | run("new", 0.9, 1000, None))
    assert [row["on the front"] for row in unmeasured["table"].values()] == ["parameters"] * 2          # equals do not beat each other
    assert {shown["x"] for shown in unmeasured["pictures"]} == {"parameters"}
    file = {"answers.jsonl": {**run("file", 0.8, 0, None)[str(tmp_path / "file")], "parameters": None}}
    assert ev.trade_off(teacher | file)["table"]["answers.jsonl"]["beside the largest"] == "89% of the accuracy"
    twin = run("twin", 0.45, 1000, None)
    for runs in (teacher | twin, twin | teacher):                                                       # of equals the best, whichever is named first
        table = ev.trade_off(runs)["table"].items()
        assert {Path(name).name: row["beside the largest"][:4] for name, row in table} == {"teacher": "100%", "twin": "50% "}
    (tmp_path / "blank.jsonl").write_text(json.dumps({"id": 1, "label": "Neutral ", "rationale": " \n "}))
    assert ev.read_predictions(tmp_path / "blank.jsonl") == [{"id": "1", "label": "neutral", "rationale": "", "text": ""}]


# --- faithfulness -------------------------------------------------------------------------------------------------------

def test_leakage_adjusted_simulatability_by_hand():
    # leaking rows (reason alone right): 4, both - input = +1, 0, 0, 0 -> 1/4; others: 2, both - input = +1, -1 -> 0; LAS 1/8
    from_input, from_reason = [0, 1, 1, 0, 0, 1], [1, 1, 1, 1, 0, 0]
    from_both = [1, 1, 1, 0, 1, 0]
    row = ev.leakage_adjusted(from_input, from_reason, from_both, range(6))
    assert row["LAS"] == pytest.approx(1 / 8) and row["simulatability"] == pytest.approx(1 / 6)
    assert (row["rows that leak"], row["that do not"]) == (4, 2)
    low, high = row["95% interval"]
    assert low < 1 / 8 < high
    # a reason that only gives the answer away: simulatability is fooled, LAS is not defined on one bin
    given = ev.leakage_adjusted([0, 0, 1], [1, 1, 1], [1, 1, 1], range(3))
    assert given["simulatability"] == pytest.approx(2 / 3) and given["LAS"] is None is given["95% interval"]
    # ten leaking rows with the gain of the leak for each row without: LAS counts the bins alike (Hase et al. 2020, figure 2)
    many = ev.leakage_adjusted([0] * 11, [1] * 10 + [0], [1] * 10 + [0], range(11))
    assert many["LAS"] == pytest.approx(0.5) and many["simulatability"] == pytest.approx(10 / 11)


class Simulator:
    """Guesses that are known: entailment from the pair; what the reason begins with from the reason, and from both but where the reason says "odd"."""

    def answer(self, pairs, rationales):
        return [Answer(None, "", "\n".join((E, reason.split()[0], E if "odd" in reason else reason.split()[0]))) for reason in rationales]


def test_a_learnt_simulator_is_asked_of_unseen_premises_only():
    unseen = [f"p{i}" for i in range(6)]
    answers, reasons = [E, N, N, C, C, C], [f"{E} yes", f"{N} so", f"{N} odd", f"{E} odd", f"{C} so", f"{N} odd"]
    lines = [{"premise": premise, "hypothesis": "h", "label": label, "rationale": reason}
             for premise, label, reason in zip(unseen, answers, reasons, strict=True)]
    seen = [{"premise": f"p{i}", "hypothesis": "h", "label": C, "rationale": "so"} for i in range(10, 40)]
    heard = {line["premise"] for line in seen}
    row = ev.simulatability(seen + lines, simulator=Simulator(), heard=heard)["table"]["T5"]
    # leaks: rows 0, 1, 2, 4; there both minus input = 0, +1, 0, +1 -> 1/2; others: rows 3, 5: 0, 0 -> 0
    assert (row["rows that leak"], row["that do not"]) == (4, 2)
    assert row["LAS"] == pytest.approx(1 / 4) and row["simulatability"] == pytest.approx(2 / 6)
    assert row["right from input"] == pytest.approx(1 / 6) and row["from both"] == pytest.approx(3 / 6)
    assert set(ev.simulatability(seen, simulator=Simulator(), heard=heard)["table"]) == {"n-grams"}          # nothing unseen to ask it of


def test_what_a_simulator_learns_is_not_asked_of_it(tiny, tmp_path, monkeypatch):
    """Whatever the data's own splits are: a file's, all of whose rows its premises' hash calls test, and those of predictions made elsewhere."""
    model, tokenizer, _ = tiny
    examples = [e for e in toy_examples(1500, 3) if split_of(e.premise) == "test"]
    rows = [{"id": e.id, "premise": e.premise, "hypothesis": e.hypothesis, "label": e.label, "explanations": e.explanations} for e in examples]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_of(model, tokenizer, run := tmp_path / "run", "multitask", data=str(tmp_path / "data.jsonl"))
    made = tmp_path / "made.jsonl"
    made.write_text("".join(json.dumps({**row, "rationale": "so.", "split": ["test", "train"][i % 2]}) + "\n" for i, row in enumerate(rows)))
    run_of(model, tokenizer, tmp_path / "first", "simulate", data=str(run / "predictions.jsonl"), answers_of=weights_digest(run))
    run_of(model, tokenizer, tmp_path / "second", "simulate", data=str(made))
    monkeypatch.setattr(Apprentice, "answer_once", lambda _, pairs, folder, num_beams=1: [Answer(E, "so.", "")] * len(pairs))
    told = {}
    monkeypatch.setattr(ev, "simulatability", lambda lines, seed, simulator, heard: told.update({str(simulator.run["settings"]["data"]): (lines, heard)})
                        or ev.finding(ev.manner, {"n-grams": {}}))
    ev.main([str(run), "--probes=0", f"--simulator={tmp_path / 'first'}"])
    ev.main([str(made), f"--data={tmp_path / 'data.jsonl'}", "--probes=0", f"--simulator={tmp_path / 'second'}"])
    for data, ((lines, heard), share) in zip(told, zip(told.values(), (0.8, 0.5), strict=True), strict=True):
        assert heard == {e.premise.lower() for e in read_examples(data, "train")} and heard < {line["premise"].lower() for line in lines}
        assert len(heard) / len({line["premise"] for line in lines}) == pytest.approx(share, abs=0.15)


def test_the_cheap_reader_learns_and_never_from_its_own_premise():
    words = {E: "is", N: "maybe", C: "cannot"}
    lines = [{"premise": f"p{i % 40}"} for i in range(120)]
    training = [(i, f"it {words[LABELS[i % 3]]} so", LABELS[i % 3]) for i in range(120)]
    found = ev.cross_fitted(lines, training, {"same": [text for _, text, _ in training], "turned": ["it maybe so"] * 120})
    assert found["same"] == [label for _, _, label in training] and set(found["turned"]) == {N}
    own = [(i, f"only{i % 40}", LABELS[i % 40 % 3]) for i in range(120)]         # each premise has a word that tells its label, and no other
    found = ev.cross_fitted(lines, own, {"own": [text for _, text, _ in own]})["own"]
    assert np.mean([a == label for a, (_, _, label) in zip(found, own, strict=True)]) < 0.6


class Built:
    """A toy model whose ways are known: one answers by the end of its reason; the other knows the label and says what fits any such row."""

    def __init__(self, examples, faithful):
        self.gold, self.faithful = {(e.premise, e.hypothesis): e for e in examples}, faithful

    def answer(self, pairs):
        rng, by_label = random.Random(0), {label: [e for e in self.gold.values() if e.label == label] for label in LABELS}
        examples = [self.gold[pair] for pair in pairs]
        return [Answer(e.label, (e if self.faithful else rng.choice(by_label[e.label])).explanations[0], "") for e in examples]

    def score_labels(self, pairs, reasons):
        def read(reason):
            return N if "may or may not" in reason else C if "cannot be" in reason or "must be" in reason else E

        labels = [read(reason) if self.faithful else self.gold[pair].label for pair, reason in zip(pairs, reasons, strict=True)]
        return torch.tensor([[float(label == other) for other in LABELS] for label in labels]).log_softmax(-1)


def test_the_suite_tells_a_faithful_model_from_one_that_is_not():
    examples = read_examples("toy", split="test", limit=400)
    moves, nearer, read = {}, {}, {}
    for faithful in (True, False):
        model = Built(examples, faithful)
        answers = model.answer([(e.premise, e.hypothesis) for e in examples])
        lines = ev.join(examples, [{"id": e.id, **vars(a)} for e, a in zip(examples, answers, strict=True)])
        moves[faithful] = {name: row["answer moves"] for name, row in ev.forced_reasons(lines, model.score_labels)["table"].items()}
        table = ev.consistency(lines)["table"]["its own reason"]
        nearer[faithful], read[faithful] = table["nearer to its own pair"], table["read as the answer"]
    assert read[True] > 0.9 and read[False] > 0.9                                # the label can be read out of either's reasons: it proves nothing
    assert nearer[True] > 0.9 and 0.4 < nearer[False] < 0.6
    turned = next(line for line in lines if line["label"] == C)
    turned["rationale"] = next(line for line in lines if line["label"] == E)["rationale"]
    table = ev.consistency(lines)["table"]
    assert 0.4 < table["control: another row's"]["nearer to its own pair"] < 0.6 and table["control: another row's"]["read as the answer"] is None
    assert turned["argues_for"] == E and sum("argues_for" in line for line in lines) < 20
    assert moves[True]["another row's, other answer"] == 1 and moves[True]["another row's, same answer"] == 0 and moves[True]["first 0%"] > 0.5
    assert set(moves[False].values()) == {0}


def test_inserted_words():
    lines = [{"premise": "p", "hypothesis": "a dog is near the bench", "label": E, "rationale": ""}] * 2
    asked = []

    def answer(pairs):
        asked.extend(pairs)
        return [Answer(C if i < 3 else E, f"it is {hypothesis}" if i == 0 else "so", "") for i, (_, hypothesis) in enumerate(pairs)]

    row = ev.insertions(lines, answer)["table"]["inserted words"]
    assert row == {"tried": 6, "answer flips": 0.5, "flips whose reason names it": pytest.approx(1 / 3)}
    told = [Answer(C, "no colour is told, happily", "")] * 3
    for seed in range(20):  # "old" is no word of that
        row = ev.insertions([{**lines[0], "hypothesis": "A dog naps"}], lambda pairs: told[: len(pairs)], seed)["table"]["inserted words"]
        assert row == {"tried": 1, "answer flips": 1, "flips whose reason names it": 0}
    assert all(len(hypothesis.split()) == 7 and {"dog", "is", "near", "the", "bench"} < set(hypothesis.split()) for _, hypothesis in asked)
    adjectives = "happy strange quiet famous tired clever friendly"
    line = {**lines[0], "hypothesis": "an old dog and a cat", "rationale": "An owl."}
    for said, word in ((adjectives, "quite"), (adjectives.replace("happy ", "") + " old", "happy"), (adjectives.replace("happy", "an apple"), "happy")):
        ev.insertions([line | {"premise": said}], lambda pairs: asked.extend(pairs) or [Answer(E, "", "")] * len(pairs))
        assert [hypothesis for _, hypothesis in asked[-2:]] == [f"a {word} old dog and a cat", f"an old dog and a {word} cat"]
    ev.insertions([line | {"premise": adjectives, "hypothesis": "a cat"}], lambda pairs: asked.extend(pairs) or [Answer(E, "", "")])
    assert asked[-1][1] == "an old cat"                        # the article goes with the word
    assert re.fullmatch(r"an? \w+ dog is near the bench", asked[0][1]) and re.fullmatch(r"a dog is \w+ near the bench", asked[1][1])


@pytest.fixture
def explainer(tiny):
    """An Apprentice of random weights that answers and explains, and four rows that it has answered."""
    model, tokenizer, examples = tiny
    apprentice = Apprentice(model, tokenizer, "multitask", max_target=8)
    answers = apprentice.answer([(e.premise, e.hypothesis) for e in examples[:4]])
    answers = [{"id": e.id, "label": E, "rationale": a.rationale or "so"} for e, a in zip(examples, answers, strict=False)]
    return apprentice, ev.join(examples[:4], answers), examples


def test_noise_grows_from_nothing_and_leaves_no_trace(explainer, monkeypatch):
    apprentice, lines, _ = explainer
    pairs = [(line["premise"], line["hypothesis"]) for line in lines]
    before = apprentice.answer(pairs)
    lines = [{**line, "label": a.label, "rationale": a.rationale} for line, a in zip(lines, before, strict=True)]
    found = ev.noise_curves(lines, apprentice, seed=1)
    table = list(found["table"].values())
    assert table[0]["answer stays"] == 1 and table[0]["kept, answer stays"] == 1 and "kept, answer moves" not in table[0]
    assert table[-1]["kept, answer stays"] < 0.7               # noise of four times the embeddings' size drowns them
    assert apprentice.answer(pairs) == before and not apprentice.model.encoder._forward_pre_hooks
    with monkeypatch.context() as patch:
        patch.setattr("apprentice.BUDGET", 1)                  # each row by itself
        assert ev.noise_curves(lines, apprentice, seed=1) == found and ev.noise_curves(lines, apprentice, seed=2) != found
    read = []
    with apprentice.model.encoder.dropout.register_forward_pre_hook(lambda _, args: read.append(args[0]) if args[0].shape[1] > 10 else None):
        ev.noise_curves(lines[:1], apprentice, seed=1)
    sources = [x for x in read if len(x) == 1][::2]            # not what leaves it
    assert all(torch.equal(a[:, -9:], b[:, -9:]) for a, b in zip(sources[::2], sources[1::2], strict=True)), "label and reason hear the same noise"
    assert not torch.equal(sources[0][:, -9:], sources[2][:, -9:])
    bare = [{**line, "references": ()} for line in lines]
    assert all("ROUGE-L" not in row and row.keys() == found["table"][name].keys() - {"ROUGE-L"} for name, row in
               ev.noise_curves(bare, apprentice, seed=1)["table"].items())


@pytest.mark.parametrize("format", ["multitask", "label_then_rationale"])
def test_attributions_are_what_a_token_made_larger_does(explainer, format):
    apprentice, lines, _ = explainer
    model, tokenizer = apprentice.model, apprentice.tokenizer
    reason = "a dog is a pet."
    found = ev.attributions(Apprentice(model, tokenizer, format), lines[0], reason)
    pair = f"premise: {lines[0]['premise']} hypothesis: {lines[0]['hypothesis']}"
    first = {"multitask": ("predict: ", "explain: "), "label_then_rationale": ("judge: ", "judge: ")}[format]
    counts = [len(tokenizer.encode(text)) - 1 for text in ("premise:", lines[0]["premise"], "hypothesis:", lines[0]["hypothesis"])]
    own = [*range(counts[0], sum(counts[:2])), *range(sum(counts[:3]), sum(counts))]  # the tokens of the two sentences
    label, told = tokenizer.encode(E)[:-1], tokenizer.encode(reason)[:-1]
    if format == "multitask":
        targets = {"label": ([], [*label, 1]), "rationale": ([], [*told, 1])}
    else:
        targets = {"label": ([], label), "rationale": (label, [*tokenizer.encode("explanation:")[:-1], *told, 1])}
    for (part, (before, after)), lead in zip(targets.items(), first, strict=True):
        x = model.shared(torch.tensor([tokenizer.encode(lead + pair)])).detach()
        ids = [*before, *after]

        def score(place, factor, x=x, ids=ids, before=before):                          # log-probability with one token's embedding made larger
            scaled = x.clone()
            scaled[0, place] *= factor
            with torch.no_grad():
                states = model.decode(torch.tensor([[0, *ids[:-1]]]), model.encoder(scaled))
                logp = model.unembed.product(states).double().log_softmax(-1)[0]
            return sum(float(logp[t, i]) for t, i in enumerate(ids) if t >= len(before))

        skipped, eps = len(tokenizer.encode(lead)) - 1, 1e-2
        wanted = [abs(score(skipped + i, 1 + eps) - score(skipped + i, 1 - eps)) / (2 * eps) for i in own]
        assert found[part].shape == (len(own),) and found[part] == pytest.approx(wanted, abs=0.02 * max(wanted))


def test_attribution_overlap_is_spearmans(monkeypatch):
    values = iter([([0.1, 3, 2, 0.5, 0.7], [2, 5, 1, 0.3, 4])] * 2 + [([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])] * 2)
    monkeypatch.setattr(ev, "attributions", lambda *_: dict(zip(("label", "rationale"), map(np.array, next(values)), strict=True)))
    table = ev.attribution_overlap(lines_of((E, E, "a"), (E, E, "b")), None)["table"]
    assert table["its own reason"]["rank correlation, %"] == pytest.approx(0.5)          # scipy.stats.spearmanr
    assert table["control: another row's"]["rank correlation, %"] == pytest.approx(-1)


def test_landscape_steps_are_as_long_as_the_weights(explainer):
    apprentice, _, examples = explainer
    model, seen = apprentice.model, []
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    hook = model.register_forward_pre_hook(lambda *_: seen.append({name: p - start[name] for name, p in model.named_parameters()}))
    found = ev.landscape(examples[:8], apprentice, 3)
    hook.remove()
    steps, heights = found["pictures"][0]["contours"]
    assert steps == [-1, 0, 1] and np.shape(heights) == (3, 3) and len(seen) == 9 * 2            # two tasks a point
    assert all(torch.equal(p, start[name]) for name, p in model.named_parameters())
    for name, p in start.items():
        corner, sides = seen[0][name], (seen[2][name], seen[6][name])                           # (-1, -1); (-1, 0), (0, -1)
        if p.dim() == 2:
            assert all(torch.allclose(side.norm(dim=1), p.norm(dim=1), rtol=1e-3, atol=1e-5) for side in sides)
            assert torch.allclose(corner, sides[0] + sides[1], atol=1e-5) and not torch.allclose(sides[0], sides[1])
        else:
            assert not corner.any()
    losses = []
    for task in ("predict", "explain"):                                                          # the middle: the run's own loss, one row at a time
        logp = []
        for e in examples[:8]:
            source, target = (apprentice.tokenizer.encode(text) for text in FORMATS[task].render(e))
            target = target[:7] + [1] if len(target) > 8 else target                             # max_target
            with torch.no_grad():
                scores = model(torch.tensor([source]), torch.tensor([[0, *target[:-1]]])).log_softmax(-1)[0]
            logp += [float(scores[t, i]) for t, i in enumerate(target)]
        losses.append(-np.mean(logp))
    assert heights[1][1] == pytest.approx(np.mean(losses), abs=1e-4)
    assert found["table"]["up to 0 away"]["mean loss"] == f"{heights[1][1]:.3f}" and ev.picture("a", "b", contours=(steps, heights)).startswith(b"\x89PNG")


# --- answers that are kept ------------------------------------------------------------------------------------------------

class Counting(Apprentice):
    """An Apprentice that counts what it is asked, and breaks when it has had enough."""

    def __init__(self, most=10**9):
        self.asked, self.most = 0, most

    def answer(self, pairs, num_beams):
        if self.asked + len(pairs) > self.most:
            raise KeyboardInterrupt
        self.asked += len(pairs)
        return [Answer(E, f"{premise} {hypothesis}", "t\u2028") for premise, hypothesis in pairs]


def test_answers_are_kept_until_the_weights_change(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    pairs, opt = [(f"p{i}", "h") for i in range(1200)], {"num_beams": 1}
    broken = Counting(most=1000)
    with pytest.raises(KeyboardInterrupt):
        broken.answer_once(pairs, tmp_path, **opt)
    store = tmp_path / "answers.jsonl"
    store.write_text(store.read_text() + "\n" + store.read_text().split("\n")[-1][:-9])      # killed while it wrote a line
    resumed = Counting()
    answers = resumed.answer_once(pairs, tmp_path, **opt)
    assert resumed.asked == 200 and [a.rationale for a in answers] == [f"p{i} h" for i in range(1200)] and answers[0].text == "t\u2028"
    again, beams, other = Counting(), Counting(), Counting()
    assert again.answer_once(pairs[:700], tmp_path, **opt) == answers[:700] and again.asked == 0
    beams.answer_once(pairs[:7], tmp_path, num_beams=4)
    (tmp_path / "model.safetensors").write_bytes(b"2")
    other.answer_once(pairs[:7], tmp_path, **opt)
    assert (beams.asked, other.asked) == (7, 7)


# --- the command line -------------------------------------------------------------------------------------------------

class Oracle(Apprentice):
    """In place of Apprentice: right but for every third row, and not to be parsed on the first; what it writes would break a page."""

    run, format, model = {"settings": {"data": "toy", "name": "<i>"}}, "rationale_then_label", torch.nn.Linear(3, 2)
    tasks = [FORMATS["rationale_then_label"]]

    def __init__(self):
        pass

    @classmethod
    def load(cls, run_dir, device="cpu"):
        return cls()

    def answer(self, pairs, num_beams):
        gold = {(e.premise, e.hypothesis): e for e in read_examples("toy", split="test") + read_examples("toy", split="validation")}
        found = [Answer(gold[pair].label if i % 3 else E, "<script>x</script> " + gold[pair].explanations[0], "raw") if pair in gold
                 else Answer(C, "", "") for i, pair in enumerate(pairs)]
        found[0] = Answer(None, "", "</article><script>y</script>")
        return found

    def score_labels(self, pairs, rationales):
        return torch.tensor([[0.8, 0.1, 0.1]]).log().expand(len(pairs), 3)


def test_a_run_gets_its_figures_predictions_picture_and_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ev, "Apprentice", Oracle)
    run = tmp_path / "run & <b>one"
    run.mkdir()
    (tmp_path / "two").mkdir()
    ev.main([str(run), str(tmp_path / "two"), "--limit=60", "--seed=3"])
    printed = capsys.readouterr().out
    for text in ("copy the hypothesis", "Calibration", "Forced reasons", "Consistency", "minus", "report.html"):
        assert text in printed
    result = json.loads((run / "eval.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)  # NaN is no JSON
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 60 == result["rows"] and (result["limit"], result["seed"], result["split"]) == (60, 3, "test")
    assert {"id", "label", "rationale", "gold_label", "references", "premise", "hypothesis", "kind", "new triples"} <= set(lines[1])
    assert {"Where it is right", "The trade-off", "Against the others", "Simulatability", "Labels"} <= set(result["findings"])
    assert result["accuracy"] == sum(line["label"] == line["gold_label"] for line in lines) / 60
    assert result["unparseable"] == [lines[0]["id"]]
    assert (run / "confusion.png").read_bytes().startswith(b"\x89PNG")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;y&lt;/script&gt;" in page and "run &amp; &lt;b&gt;one" in page
    assert set(re.findall(r'(?:src|href)="?([^\s">]{5})', page)) == {"data:"}      # nothing from outside
    assert "60 rows (a sample, seed 3) of toy, split test" in page and "kind+place" in page and "&lt;i&gt;" in page
    shown = dict(re.findall(r"<summary>([^:<]+): (\d+ of \d+)<", page))
    assert shown["Right"].startswith("10 of") and shown["No label to be found in the answer"] == "1 of 1" and shown["Where the runs part"] == "0 of 0"
    assert page.count("<article>") == sum(int(count.split()[0]) for count in shown.values())

    # the same predictions scored from the file give the same figures, and need no --split
    (tmp_path / "p.jsonl").write_text((run / "predictions.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    ev.main([str(tmp_path / "p.jsonl"), "--data=toy", "--limit=60", "--seed=3"])
    again = json.loads((tmp_path / "p.eval.json").read_text(encoding="utf-8"))
    assert result["parameters"] == 8 and float(result["ms_an_answer"]) > 0         # which a file of answers cannot tell
    same = [key for key in result if key not in ("run", "settings", "findings", "parameters", "ms_an_answer", "weights")]
    assert [again[key] for key in same] == [result[key] for key in same]
    assert (tmp_path / "p.report.html").is_file()


def run_of(model, tokenizer, folder, format, data="toy", **told):
    """A run folder of this network."""
    model.save_pretrained(folder)
    (folder / "spiece.model").write_bytes(tokenizer.path.read_bytes())
    (folder / "run.json").write_text(json.dumps({"settings": {"data": data, "format": format, "max_target": 6}, **told}))


def test_labels_alone_beside_reasons_beside_other_data(tiny, tmp_path, capsys):
    model, tokenizer, _ = tiny
    for name, format, data in (("labels", "predict", "toy"), ("reasons", "multitask", "toy"), ("elsewhere", "predict", "toy-harbour")):
        run_of(model, tokenizer, tmp_path / name, format, data)
    labels, reasons, elsewhere = paths = [str(tmp_path / name) for name in ("labels", "reasons", "elsewhere")]
    ev.main([*paths, "--limit=30", "--probes=0"])
    found = {path: json.loads((Path(path) / "eval.json").read_text()) for path in paths}
    tables = {path: {title: finding["table"] for title, finding in one["findings"].items()} for path, one in found.items()}
    assert found[labels]["baselines"] == found[reasons]["baselines"] != found[elsewhere]["baselines"]
    assert found[labels]["reasons"] is None and found[reasons]["reasons"]["rows"] == 30
    assert set(tables[labels]["The reasons"]) == {reasons, "human"} == set(tables[reasons]["The reasons"]) and "Against the others" not in tables[elsewhere]
    assert tables[labels]["The answers"][reasons] == tables[reasons]["The answers"][reasons] and elsewhere not in tables[labels]["The answers"]
    for one, other in ((labels, reasons), (reasons, labels)):    # only what both have is compared
        assert {"right", "p"} < set(row := tables[one]["Against the others"][f"minus {other}"]) and "ROUGE-L" not in row
        assert {path: row["ROUGE-L"] is None for path, row in tables[one]["The trade-off"].items()} == {labels: True, reasons: False}
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({"premise": e.premise, "hypothesis": e.hypothesis, "label": e.label}) + "\n" for e in toy_examples(12)))
    ev.main([labels, elsewhere, f"--data={bare}", "--split=all", "--probes=0"])   # where nobody gives a reason
    found = json.loads((Path(elsewhere) / "eval.json").read_text())["findings"]
    assert found["The reasons"]["table"] == {} and set(found["The trade-off"]["table"]) == {labels, elsewhere}


def test_a_run_that_answers_before_it_explains(tiny, tmp_path, monkeypatch, capsys):
    model, tokenizer, _ = tiny
    model.save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(tokenizer.path.read_bytes())
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"data": "toy", "format": "multitask", "max_target": 6}}))
    ev.main([str(tmp_path), "--limit=12", "--probes=3", "--landscape=3", f"--bert_score={tmp_path}", "--layer=1", "--idf", "--rescale"])
    result = json.loads((tmp_path / "eval.json").read_text())
    findings, table = result["findings"], result["findings"]["The answers"]["table"]
    assert "Forced reasons" not in findings and "Landscape" in findings    # no reason stands before the label
    assert result["reasons"]["bert_score"]["f"] == table[str(tmp_path)]["BERTScore"] and result["layer"] == 1 and result["idf"] is True
    assert "BERTScore" in table["human, against the others"] and "layer 1, idf True" in (tmp_path / "bert_score.json").read_text()
    table = findings["Calibration"]["table"]
    assert 0.05 <= float(table["temperature fitted"]["temperature"]) <= 20 and 1 / 3 < table["as it is"]["mean confidence"] <= 1
    with pytest.raises(DataError, match="did not learn what .* answers: python distill.py configs/simulator.py"):
        ev.main([str(tmp_path), f"--simulator={tmp_path}"])
    lines = (tmp_path / "answers.jsonl").read_text().strip().split("\n")
    ev.main([str(tmp_path), "--limit=12", "--probes=3"])
    assert (tmp_path / "answers.jsonl").read_text().strip().split("\n") == lines    # nothing was asked again
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(Apprentice, "answer", lambda _, pairs, num_beams=1: asked.append(num_beams) or [Answer(E, "a dog", "")] * len(pairs))
        ev.main([str(tmp_path), "--limit=3", "--probes=1", "--num_beams=2"])
    assert len(asked) > 9 and set(asked) == {2}               # the answers, three for their cost, the inserted words, six for the noise

    # rows without reasons: nothing is said of what can't be compared with any
    bare = "".join(json.dumps({"premise": e.premise, "hypothesis": e.hypothesis, "label": e.label}) + "\n" for e in toy_examples(12))
    assert any(split_of(e.premise) == "validation" for e in toy_examples(12))
    (tmp_path / "bare.jsonl").write_text(bare)
    ev.main([str(tmp_path), f"--data={tmp_path / 'bare.jsonl'}", "--split=all", "--probes=3", "--landscape=3"])
    findings = json.loads((tmp_path / "eval.json").read_text())["findings"]
    assert "Landscape" not in findings and "ROUGE-L" not in findings["The reasons"]["table"][str(tmp_path)]
    assert set(findings["Calibration"]["table"]) == {"as it is"}     # all validation rows are scored themselves: none is left to fit a temperature on

    # a simulator is one of the weights that answered what it has learnt
    simulator = tmp_path / "simulator"
    simulator.mkdir()
    for name in ("config.json", "model.safetensors", "spiece.model"):
        (simulator / name).write_bytes((tmp_path / name).read_bytes())
    told = {"settings": {"format": "simulate", "data": str(tmp_path / "predictions.jsonl")}, "answers_of": weights_digest(tmp_path)}
    for mark, says in (("", None), ("x", "has learnt what other weights of .* answered: evaluate .* without it, delete .*, train it anew")):
        (simulator / "run.json").write_text(json.dumps(told | {"answers_of": told["answers_of"] + mark}))
        with pytest.raises(DataError, match=says) if says else contextlib.nullcontext():
            ev.main([str(tmp_path), "--limit=12", "--probes=0", f"--simulator={simulator}"])
    with pytest.raises(DataError, match="is a simulator, which foretells"):
        ev.main([str(simulator)])
    pairs = []                                                # of two runs each may have its own
    for name in "ab":
        run_of(T5(model.config), tokenizer, tmp_path / name, "multitask")
        run_of(model, tokenizer, tmp_path / f"{name}-simulator", "simulate", data=str(tmp_path / name), answers_of=weights_digest(tmp_path / name))
        pairs += [(str(tmp_path / name), str(tmp_path / f"{name}-simulator"))]
    runs, simulators = zip(*pairs, strict=True)
    ev.main([*runs, "--limit=2", "--probes=0", f"--simulator={','.join(simulators)}"])


def test_a_predictions_file_for_all_rows_of_a_file(tmp_path):
    examples = rows(*(LABELS[i % 3] for i in range(40)))
    with open(tmp_path / "data.jsonl", "w", encoding="utf-8") as file:
        for e in examples:
            row = {"id": e.id, "premise": e.premise, "hypothesis": e.hypothesis, "label": e.label, "explanations": e.explanations}
            file.write(json.dumps(row) + "\n")
    answers = tmp_path / "mine.jsonl"
    answers.write_text("".join(json.dumps({"id": int(e.id), "label": e.label, "rationale": "so\u2028so"}, ensure_ascii=False) + "\n"
                               for e in examples), encoding="utf-8")
    ev.main([str(answers), f"--data={tmp_path / 'data.jsonl'}"])
    result = json.loads((tmp_path / "mine.eval.json").read_text(encoding="utf-8"))
    assert (result["rows"], result["accuracy"], result["split"]) == (40, 1, "all")
    ev.main([str(answers), f"--data={tmp_path / 'data.jsonl'}", "--limit=7"])
    assert json.loads((tmp_path / "mine.eval.json").read_text(encoding="utf-8"))["rows"] == 7
    assert "7 rows (a sample, seed 0)" in (tmp_path / "mine.report.html").read_text(encoding="utf-8")


def test_reasons_on_data_that_has_none_are_scored_without_a_readers_help(tmp_path, capsys):
    rows = toy_examples(90, 5)
    data = tmp_path / "bare.jsonl"
    data.write_text("".join(json.dumps({"id": e.id, "premise": e.premise, "hypothesis": e.hypothesis, "label": e.label}) + "\n" for e in rows))
    said = tmp_path / "said.jsonl"
    said.write_text("".join(json.dumps({"id": e.id, "label": e.label, "rationale": e.explanations[0]}) + "\n" for e in rows))
    ev.main([str(said), f"--data={data}"])
    found = json.loads((tmp_path / "said.eval.json").read_text())["findings"]
    assert "Simulatability" in found and "Consistency" not in found and "wrote" in capsys.readouterr().out


@pytest.mark.parametrize("line, message", [
    ('{"id": "0"}', "line 1.*label"), ("no json", "line 1"), ('[1]', "line 1"),
    ('{"id": "0", "label": 2, "rationale": ""}', 'line 1.*"label": 2'),
    ('{"id": "0", "label": null, "rationale": ["a"]}', "line 1")])
def test_a_bad_line_of_predictions_is_named(tmp_path, line, message):
    (tmp_path / "p.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        ev.read_predictions(tmp_path / "p.jsonl")


def test_predictions_may_begin_with_a_byte_order_mark_and_shout(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id": 1, "label": " NEUTRAL", "rationale": null}\n', encoding="utf-8-sig")
    assert ev.read_predictions(tmp_path / "p.jsonl") == [{"id": "1", "label": "neutral", "rationale": "", "text": ""}]


@pytest.mark.parametrize("text", ['{"latency_ms":', "[]", '{"latency_ms": 5}'])
def test_a_bench_that_is_none_is_named(tmp_path, text):
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(DataError, match="bench.json is not what bench.py writes"):
        ev.trade_off({str(tmp_path): {"findings": {}, "accuracy": 1.0}})


def test_bad_command_lines_are_one_line_and_status_2(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id": "nobody", "label": null, "rationale": ""}\n', encoding="utf-8")
    for arguments, message in ((["out/none"], "out/none is neither"), ([f"{tmp_path}/p.jsonl"], "--data="),
                               ([f"{tmp_path}/p.jsonl", "--data=toy", "--limit=-1"], "--limit=-1"), (["--data=toy", "--seed=-1"], "--seed=-1"),
                               ([f"{tmp_path}/p.jsonl", "--data=toy"], "'nobody'"), ([str(tmp_path), "--limt=3"], "limt"),
                               (["--limit=3"], "name a run"), ([f"{tmp_path}/p.jsonl", "--landscape=-1"], "--landscape=-1")):
        with pytest.raises((DataError, SystemExit), match=re.escape(message)):
            ev.main(arguments)
    done = subprocess.run([sys.executable, "evaluate.py", "out/none"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and not done.stdout


def test_help_is_the_docstring(capsys):
    ev.main(["--help"])
    assert capsys.readouterr().out.strip() == ev.__doc__.strip()


# --- real data --------------------------------------------------------------------------------------------------------

@real
def test_real_rouge_cases():
    cases = json.loads((Path(REAL) / "peers/rouge_cases.json").read_text(encoding="utf-8"))
    assert len(cases) >= 12
    for case in cases:
        check_rouge(case)


@real
def test_the_whole_development_split_is_scored_in_time():
    folder = Path(REAL) / "data/esnli"
    with open(folder / "esnli_dev.csv", encoding="utf-8", newline="") as file:
        gold = {row["pairID"]: row for row in csv.DictReader(file)}
    written = [json.loads(line) for line in open(folder / "gpt2m_rationales_dev.jsonl", encoding="utf-8")]
    references = [[gold[row["id"]][f"Explanation_{k}"] for k in (1, 2, 3)] for row in written]
    predictions = [row[gold[row["id"]]["gold_label"]] for row in written]
    started = time.perf_counter()
    means = np.mean([[ev.rouge(p, r)[kind][2] for kind in ev.ROUGE_KINDS] for p, r in zip(predictions, references, strict=True)], axis=0)
    score = ev.bleu(predictions, references)
    assert time.perf_counter() - started < 60
    assert score == pytest.approx(40.45334296597, abs=1e-4)    # sacrebleu 2.6.0
    assert means == pytest.approx([0.62879087, 0.41251527, 0.56957744, 0.56957744], abs=1e-6)     # rouge-score 0.1.2


@real
def test_real_readers_of_ngrams_learn_nothing_rare_by_heart():
    """A logistic regression by LBFGS with a small ridge, an exact dictionary and the same halves: 56.8 from the hypothesis, 93.2 from the explanation."""
    table = ev.yardsticks(ev.read_examples(str(Path(REAL) / "data/esnli/esnli_dev.csv")))
    found = [table[f"n-grams of the {name} alone"]["accuracy"] for name in ("premise", "hypothesis", "explanation")]
    assert found == pytest.approx([1 / 3, 0.568, 0.932], abs=0.01)
