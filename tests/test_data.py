"""Tests of data.py: the toy world against an oracle of its own, files with faults, tokens, formats, batches.

The tests under APPRENTICE_REAL (a folder with data/esnli/esnli_dev.csv and t5/spiece.model) compare with the real vocabulary.
"""
import csv
import doctest
import hashlib
import http.server
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import data
from data import FORMATS, LABELS, BucketSampler, DataError, Example, Tokenizer, collate, encode_examples, read_examples, toy_examples

HERE = Path(__file__).resolve().parent
REAL = os.environ.get("APPRENTICE_REAL")
needs_real = pytest.mark.skipif(not REAL, reason="APPRENTICE_REAL names no folder with the real data")
DOMAINS = ("park", "harbour")
TOY_DIGESTS = {("park", "train"): "1b856a4f788eb39a", ("park", "test"): "e666ab9242aec903", ("harbour", "train"): "ad87f682d0981553",
               ("harbour", "test"): "17b73b08f4d91d27"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    data.tell.cache_clear()


# ---- the toy world

@pytest.fixture(scope="module")
def toy():
    return {(domain, split): toy_examples(count, 0, domain, split) for domain in DOMAINS
            for split, count in (("train", 20_000), ("validation", 1_000), ("test", 3_000))}


def test_toy_labels_are_balanced_and_rows_depend_on_the_seed_alone(toy):
    for rows in toy.values():
        counts = Counter(row.label for row in rows)
        assert set(counts) == set(LABELS) and max(counts.values()) - min(counts.values()) <= 1
        assert len({row.id for row in rows}) == len(rows)
    assert toy_examples(50, 3) == toy_examples(50, 3) != toy_examples(50, 4)
    for (domain, split), digest in TOY_DIGESTS.items():
        texts = [[row.id, row.premise, row.hypothesis, row.label, list(row.explanations), row.kind] for row in toy_examples(3000, 7, domain, split)]
        assert hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16] == digest, "figures in the README stand on these very rows"
    state = random.getstate()
    toy_examples(5, 1)
    assert random.getstate() == state, "the global random state is not ours to move"


def test_toy_shape(toy):
    for (_, split), rows in toy.items():
        for row in rows[:2000]:
            assert 10 <= len(row.premise.split()) <= 15 and 6 <= len(row.hypothesis.split()) <= 10
            assert len(row.explanations) == len(set(row.explanations)) == (1 if split == "train" else 3)
            for text in (row.premise, row.hypothesis, *row.explanations):
                assert re.fullmatch(r"[a-z]+(,? [a-z]+)*\.", text), text
        two = sum("+" in row.kind or row.kind == "breadth" for row in rows) / len(rows)
        assert 0.45 < two < 0.65, "about half of the rows take two steps"


def meanings(domain):
    """word or phrase -> (aspect, the set of narrowest things it can be), read off the tables, without the generator's code."""
    found = {}
    for aspect, table in json.loads(data.WORLDS.read_text())[domain].items():
        for words, wider in table.items():
            members = set(words.split())
            for word in members:
                found[word] = (aspect, {word})
            for word in wider:
                found[word] = (aspect, found.get(word, (aspect, set()))[1] | members)
    return found


def oracle(row, known):
    """The label by set theory: what the premise allows lies within what the hypothesis asks, outside of it, or on both sides."""
    def told(text):
        return dict(known[word] for word in re.findall(r"fewer than six|more than six|[a-z]+", text) if word in known)

    premise, (said, _, denied) = told(row.premise), row.hypothesis.partition(" but not ")
    verdicts = []
    for negated, part in ((False, told(said)), (True, told(denied))):
        for aspect, asked in part.items():
            allowed = premise.get(aspect)
            verdict = "neutral" if allowed is None else "yes" if allowed <= asked else "neutral" if allowed & asked else "no"
            verdicts.append({"yes": "no", "no": "yes"}.get(verdict, verdict) if negated else verdict)
    return "contradiction" if "no" in verdicts else "neutral" if "neutral" in verdicts else "entailment"


@pytest.mark.parametrize("domain", DOMAINS)
def test_toy_labels_follow_from_the_knowledge(toy, domain):
    known = meanings(domain)
    for split in data.SPLITS:
        for row in toy[domain, split]:
            assert oracle(row, known) == row.label, row


@pytest.mark.parametrize("domain", DOMAINS)
def test_toy_reasons_are_true_and_come_to_the_label(toy, domain):
    known = meanings(domain)
    endings = {"entailment": (" is ", " is not "), "neutral": (" may or may not be ",), "contradiction": (" cannot be ", " must be ")}
    for row in toy[domain, "train"]:
        because, claim = row.explanations[0].rsplit(", so ", 1)
        assert any(ending in claim for ending in endings[row.label]), row
        for step in because.split(", and "):
            fact = re.fullmatch(r"(?:an? |the )?(\w+) (is not|need not be|is) (.+?)(?:, not (.+))?", step)
            if "no " in step and not re.search(r"not", step):
                continue                                                     # "no place is told", "several is no exact number"
            def last(text):
                return known[re.search(r"(fewer than six|more than six|\w+)$", text)[1]][1]
            subject, truth = known[fact[1]][1], last(fact[3])
            if fact[2] == "is":
                assert subject <= truth, step
            else:
                assert (subject & truth and not subject <= truth) if fact[2] == "need not be" else not subject & truth, step
            assert fact[4] is None or not subject & last(fact[4]), step


@pytest.mark.parametrize("domain", DOMAINS)
def test_toy_splits_share_no_premise_and_hold_out_combinations(toy, domain):
    known = meanings(domain)

    def combinations(row):
        words = [(word, known[word][0]) for word in row.premise.rstrip(".").split() if word in known]
        return {(kind, word) for kind, aspect in words if aspect == "kind" for word, other in words if other != "kind"}

    shown = {split: set().union(*(combinations(row) for row in toy[domain, split])) for split in data.SPLITS}
    for split, others in (("validation", ("train",)), ("test", ("train", "validation"))):
        for row in toy[domain, split]:
            assert any(all(pair not in shown[other] for other in others) for pair in combinations(row)), row
        premises = {row.premise for row in toy[domain, split]}
        assert not any(row.premise in premises for other in others for row in toy[domain, other])
    words = [Counter(word for row in toy[domain, split] for word in row.premise.split()) for split in data.SPLITS]
    assert set(words[0]) == set(words[1]) == set(words[2]), "held out are combinations, not words"


def all_words(row):
    return re.findall("[a-z]+", " ".join((row.premise, row.hypothesis, *row.explanations)))


def test_toy_domains_share_grammar_and_no_content(toy):
    words = [{word for row in toy[domain, "train"] for word in all_words(row)} for domain in DOMAINS]
    content = [{word for aspect, table in json.loads(data.WORLDS.read_text())[domain].items() if aspect != "count"
                for word in re.findall("[a-z]+", json.dumps(table))}
               for domain in DOMAINS]
    assert not content[0] & content[1] and words[0] - content[0] == words[1] - content[1]
    assert all(130 <= len(some) <= 250 for some in words)


def probe(features, labels, test_features, test_labels, steps=60):
    """Accuracy on the test rows of a logistic regression (full batch, Adam) over bags of features, each a list of strings."""
    vocabulary = {name: i for i, name in enumerate(sorted({name for row in features for name in row}))}

    def bags(rows):
        rows = [[vocabulary[name] for name in row if name in vocabulary] for row in rows]
        return np.concatenate(rows), np.array([len(row) for row in rows])

    def scores(ids, lengths):
        return np.add.reduceat(weight[ids], np.concatenate([[0], lengths.cumsum()[:-1]]))

    ids, lengths = bags(features)
    weight, mean, square = np.zeros((3, len(vocabulary), 3))
    truth = np.eye(3)[[LABELS.index(label) for label in labels]]
    for step in range(1, steps + 1):
        likely = np.exp(scores(ids, lengths))
        error = np.repeat((likely / likely.sum(1, keepdims=True) - truth) / len(truth), lengths, axis=0)
        gradient = np.stack([np.bincount(ids, error[:, k], len(vocabulary)) for k in range(3)], 1)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        weight -= 0.03 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)
    return np.mean(scores(*bags(test_features)).argmax(1) == [LABELS.index(label) for label in test_labels])


def grams(text):
    words = text.split()
    return words + [f"{a} {b}" for a, b in zip(words, words[1:], strict=False)]


def overlap(row):
    premise, hypothesis = (text.rstrip(".") for text in (row.premise, row.hypothesis))
    shared = len(set(premise.split()) & set(hypothesis.split()))
    pairs = len(set(grams(premise)) & set(grams(hypothesis)))
    size = len(hypothesis.split())
    return [f"shared {shared}", f"pairs {pairs}", f"share {round(10 * shared / size)}", f"left {size - shared}"]


def test_the_probe_finds_a_shortcut_that_is_there(toy):
    train, test = toy["park", "train"][:4000], toy["park", "test"][:500]
    leak = probe([grams(row.explanations[0]) for row in train], [row.label for row in train],
                 [grams(row.explanations[0]) for row in test], [row.label for row in test])
    assert leak > 0.9, "reasons give their label away; a probe that does not see it proves nothing"


@pytest.mark.parametrize("domain", DOMAINS)
def test_toy_has_no_shortcut(toy, domain):
    train, test = toy[domain, "train"], toy[domain, "test"]
    labels, test_labels = [row.label for row in train], [row.label for row in test]
    for look in (lambda row: grams(row.premise), lambda row: grams(row.hypothesis), overlap):
        accuracy = probe([look(row) for row in train], labels, [look(row) for row in test], test_labels)
        print(f"{domain}: {accuracy:.3f}")
        assert accuracy < 0.40


def test_read_toy_by_name():
    assert len(read_examples("toy:300", "train")) == 300 and len(read_examples("toy-harbour:30", limit=50)) == 50
    assert read_examples("toy:300", "train") == toy_examples(300)
    assert read_examples("toy-harbour", "test", limit=5) == toy_examples(1000, 0, "harbour", "test")[:5]
    with pytest.raises(DataError, match="toy-moon.*no known name"):
        read_examples("toy-moon")
    with pytest.raises(DataError, match="dev.*legal are train"):
        read_examples("toy", "dev")


# ---- files

def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


DEV_HEADER = ["pairID", "gold_label", "Sentence1", "Sentence2"] + [
    name.format(k) for k in (1, 2, 3)
    for name in ("Explanation_{}", "Sentence1_marked_{}", "Sentence2_marked_{}", "Sentence1_Highlighted_{}", "Sentence2_Highlighted_{}")]


def dev_file(path, rows, encoding="utf-8"):
    with open(path, "w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([DEV_HEADER, *rows])
    return path


def dev_row(name, label, premise="A dog naps.", hypothesis="A dog rests.", reasons=("one", "two", "three")):
    marks = [(reason, f"A *{reason}* naps.", "A dog *rests.*", "1", "{}") for reason in reasons]
    return [name, label, premise, hypothesis, *(cell for mark in marks for cell in mark)]


def test_official_dev_layout(tmp_path):
    path = dev_file(tmp_path / "esnli_dev.csv", [
        dev_row("1", "entailment"), dev_row("2", "-"),
        dev_row("3", "neutral", 'He said, "no".\nTwice.', reasons=("a", "", "c"))], "utf-8-sig")
    rows = read_examples(path)
    assert [row.id for row in rows] == ["1", "3"], "the label - is left out; a byte order mark is no part of pairID"
    assert rows[0].explanations == ("one", "two", "three") and rows[0].highlights[2] == ("A *three* naps.", "A dog *rests.*")
    assert rows[1].premise == 'He said, "no". Twice.' and rows[1].explanations == ("a", "c")
    assert [marks[0] for marks in rows[1].highlights] == ["A *a* naps.", "A *c* naps."], "highlights stay beside their explanation"


def test_official_train_layout(tmp_path):
    header = ("pairID,gold_label,Sentence1,Sentence2,Explanation_1,WorkerId,Sentence1_marked_1,Sentence2_marked_1,"
              "Sentence1_Highlighted_1,Sentence2_Highlighted_1")
    path = write(tmp_path / "esnli_train_1.csv", f"{header}\n7,contradiction,A cat.,n/a,A reason.,W1,*A* cat.,,0,{{}}\n8,neutral,P.,H.,,W2\n")
    first, second = read_examples(path)
    assert first == Example("7", "A cat.", "n/a", "contradiction", ("A reason.",), (("*A* cat.", ""),)), "n/a is a text like any other"
    assert second.explanations == () and second.label == "neutral", "cells missing at the end of a row are empty"


def test_faults_name_file_line_column_and_value(tmp_path):
    path = dev_file(tmp_path / "x.csv", [dev_row("1", "entailment", "Two\nlines."), dev_row("2", "Entails")])
    with pytest.raises(DataError, match=r"x\.csv:4: gold_label is 'Entails'; it may be entailment, neutral, contradiction"):
        read_examples(path)
    path = write(tmp_path / "y.csv", "premise,hypothesis,Label\na,b,neutral\n")
    with pytest.raises(DataError, match=r"y\.csv:1: no column for the label .*present: premise, hypothesis, Label"):
        read_examples(path)
    path = write(tmp_path / "y.csv", "premise,hypothesis,label,why\na,b,neutral,c\n")
    row = {"premise": "a", "hypothesis": "b", "label": "neutral"}
    lines = write(tmp_path / "y.jsonl", "".join(json.dumps(row | why) + "\n" for why in ({"id": None}, {"id": "", "why": "c"})))
    assert [e.id for e in read_examples(lines)] == ["y-1", "y-2"], "what is empty tells no row from another"
    assert [e.explanations for e in read_examples(f"{lines}?rationale=why")] == [(), ("c",)]
    more = [{"why": "c"}, {}, *[{"label": "odd"}] * 3]
    faulty = write(tmp_path / "f.jsonl", "".join(json.dumps(row | why) + "\n" for why in more))
    assert len(read_examples(f"{faulty}?rationale=why&max_bad=0.7")) == 2
    with pytest.raises(DataError, match="y.jsonl: no row has whi, which was named for the rationale"):
        read_examples(f"{lines}?rationale=whi")
    for ours in ("split", "rationale", "id"):  # a name that was given is not passed over
        with pytest.raises(DataError, match=rf"y\.csv:1: no column for the {ours} \(one of whi\)"):
            read_examples(f"{path}?{ours}=whi")
    path = write(tmp_path / "z.csv", "premise,hypothesis,label\na,b,neutral\na, b, c,neutral\n")
    with pytest.raises(DataError, match=r"z\.csv:3: more cells than columns"):
        read_examples(path)
    with pytest.raises(DataError, match=r"s\.csv:3: no column for the label"):
        read_examples(write(tmp_path / "s.csv", "premise,hypothesis,label\na,b,neutral\na,b\n"))
    with pytest.raises(DataError, match=r"l\.csv:2: premise is 'caf.', not UTF-8"):
        read_examples(write(tmp_path / "l.csv", "premise,hypothesis,label\ncafé,b,neutral\n", "latin-1"))
    with pytest.raises(DataError, match=r"e\.csv:1: .*present: none"):
        read_examples(write(tmp_path / "e.csv", ""))
    with pytest.raises(DataError, match=r"t\.doc:1: .*\.csv, \.tsv \(or \.txt\) or \.jsonl"):
        read_examples(write(tmp_path / "t.doc", "a"))
    with pytest.raises(DataError, match="absent.csv: no such file"):
        read_examples(tmp_path / "absent.csv")


def test_json_lines(tmp_path):
    lines = [{"id": 5, "premise": "p", "hypothesis": "h", "label": "neutral", "rationale": "r", "source": "teacher", "tokens": 9},
             {"premise": "p", "hypothesis": "h", "label": None, "explanations": ["a", "b"]},
             {"premise": "p", "hypothesis": "h", "label": "ENTAILMENT ", "rationale": None}]
    path = write(tmp_path / "a.jsonl", "\n\n".join(map(json.dumps, lines)))
    assert read_examples(path) == [Example("5", "p", "h", "neutral", ("r",)), Example("a-3", "p", "h", None, ("a", "b")),
                                   Example("a-5", "p", "h", "entailment")]
    for bad, message in (('{"premise": ', r":2: not JSON"), ("[1]", r":2: .*not an object"),
                         ('{"premise": 3, "hypothesis": "h", "label": null}', "premise is 3"),
                         ('{"premise": "p", "hypothesis": "h", "label": 1}', r":2: label is 1; .*three readings are in use, FILE\?labels=ENC"),
                         ('{"premise": "p", "hypothesis": "h", "label": 3}', r":2: label is 3; it may be"),
                         ('{"premise": "p", "hypothesis": "", "label": "neutral"}', r":2: hypothesis is empty"),
                         ('{"premise": "p", "hypothesis": "h", "label": [1]}', r":2: label is \[1\]"),
                         ('{"premise": "p", "label": "neutral"}', "no column for the hypothesis.*present: premise, label"),
                         ('{"premise": "p", "hypothesis": "h", "label": "", "explanations": "r"}', "an explanation is None, not a text"),
                         ('{"premise": "\\ud800", "hypothesis": "h", "label": ""}', r":2: premise is '\\ud800', not UTF-8"),
                         ("[" * 99_999, ":2: not JSON")):
        with pytest.raises(DataError, match=message):
            read_examples(write(tmp_path / "b.jsonl", f"{json.dumps(lines[0])}\n{bad}\n"))


def test_tables_with_other_names(tmp_path):
    columns, row = "pair_ID\tsentence_A\tsentence_B\tentailment_label\tscore", "1\tA \"dog\" naps\tA dog\tNEUTRAL\t4"
    sick = write(tmp_path / "SICK.tsv", f"{columns}\n{row}\n")
    assert read_examples(sick) == [Example("1", 'A "dog" naps', "A dog", "neutral")]
    plain = write(tmp_path / "p.csv", "label,hypothesis,premise\r\n,h,p\r\nneutral,h2,p2\r\n")
    assert read_examples(plain) == [Example("p-2", "p", "h", None), Example("p-3", "p2", "h2", "neutral")]
    assert len(read_examples(plain, limit=1)) == 1


def test_a_file_is_cut_by_premise(tmp_path):
    path = write(tmp_path / "a.csv", "premise,hypothesis,label\n" + "".join(f"premise {i // 3},h {i},neutral\n" for i in range(6000)))
    parts = {split: read_examples(path, split) for split in data.SPLITS}
    assert sum(map(len, parts.values())) == 6000 == len(read_examples(path))
    assert 0.75 < len(parts["train"]) / 6000 < 0.85 and all(0.07 < len(parts[split]) / 6000 < 0.13 for split in ("validation", "test"))
    premises = [{row.premise for row in rows} for rows in parts.values()]
    assert not premises[0] & premises[1] and not premises[0] & premises[2] and not premises[1] & premises[2]


@pytest.mark.parametrize("letters, label", [("ENC", "neutral"), ("nec", "entailment"), ("CNE", "neutral")])
def test_numbers_need_to_be_told_and_columns_can_be(tmp_path, letters, label):
    path = write(tmp_path / "n.csv", "text_a,text_b,gold\na,b,1\nc,d,-1\n")
    with pytest.raises(DataError, match="no column for the premise"):
        read_examples(path)
    names = f"{path}?premise=text_a&hypothesis=text_b&label=gold"
    with pytest.raises(DataError, match="n.csv:2: gold is '1'; .* three readings are in use"):
        read_examples(names)
    assert read_examples(f"{names}&labels={letters}") == [Example("n-2", "a", "b", label)]
    write(tmp_path / "n.csv", "text_a,text_b,gold\na,b,1.0\nc,d,-1.0\ne,f,\n")                         # as pandas writes a column with a gap
    assert [e.label for e in read_examples(f"{names}&labels={letters}")] == [label, None]
    for wrong in ("labels=ENE", "premises=a", "max_bad=ten", "max_bad", "NEC"):
        with pytest.raises(DataError, match="after . stand labels=ENC"):
            read_examples(f"{path}?{wrong}")


def test_rows_set_aside_are_told_and_listed(tmp_path, capsys):
    good = "".join(f"{i},p {i},h {i},neutral\n" for i in range(300))
    path = write(tmp_path / "m.csv", f"id,premise,hypothesis,label\n{good}x,  A \t dog ,N/A,ENTAILMENT\ny,p,,neutral\nz,p,h,-\nv,p,h,maybe\n", "utf-8-sig")
    rows = read_examples(path)
    assert len(rows) == 301 and rows[-1] == Example("x", "A dog", "N/A", "entailment")
    told = capsys.readouterr().err
    listed = (tmp_path / "cache" / "set_aside" / "m.csv.txt")
    assert "2 faulty rows and 1 with the label - of 304 are set aside" in told and str(listed) in told
    assert listed.read_text().splitlines()[0] == f"{path}:303: hypothesis is empty" and len(listed.read_text().splitlines()) == 3
    assert f"{path}:304: {data.NO_LABEL}" in listed.read_text() and f"{path}:305: label is 'maybe'; it may be entailment, " in listed.read_text()
    data.tell.cache_clear()
    assert len(read_examples(write(tmp_path / "e.csv", "premise,hypothesis,label\n" + "p,h,maybe\np,h,neutral\n" * 9), limit=5)) == 5
    assert "e.csv: 5 faulty rows" in capsys.readouterr().err, "who reads no further is told of those before"
    with pytest.raises(DataError, match=r"m.csv:303: hypothesis is empty; 2 of 304 are at fault, over the share 0.005 .FILE.max_bad=SHARE."):
        read_examples(path, max_bad=0.005)
    assert not capsys.readouterr().err, "the error is told once"
    assert len(read_examples(f"{path}?max_bad=.5", max_bad=0.005)) == 301
    assert len(read_examples(write(tmp_path / "d.csv", "premise,hypothesis,label\na,b,-\na,b,neutral\n"))) == 1, "the label - is no fault"


@pytest.mark.parametrize("wrong", ['x,"p,h,neutral', 'x,p,"h,neutral', 'x,p,h,"neutral', '"x,p,h,neutral'])
def test_a_quote_that_is_not_closed_takes_no_other_rows_along(tmp_path, wrong):
    good = [f'{i},"p, {i}","two\nlines, and more",neutral' for i in range(500)]
    for at in (0, 250, 499):
        path = write(tmp_path / f"{at}.csv", "\n".join(["id,premise,hypothesis,label", *good[:at], wrong, *good[at:], 'y,p,"h",neutral']) + "\n")
        assert [e.id for e in read_examples(path)] == [*map(str, range(500)), "y"]
        assert (tmp_path / "cache" / "set_aside" / path.name).with_suffix(".csv.txt").read_text().startswith(f"{path}:{2 + 2 * at}: a quote that is not closed")


@pytest.mark.parametrize("text, expected", [
    ('"A man\nwalks.",He moves.,entailment\nC,D,neutral\n', [("A man walks.", "He moves."), ("C", "D")]),
    ('A cat.,"It\nis cold, outside.",neutral\nA,"It is cold,\nnow.",neutral\n', [("A cat.", "It is cold, outside."), ("A", "It is cold, now.")]),
    ('A,"see:\n9,x,neutral\nend",neutral\nC,D,neutral\n', [("A", "see: 9,x,neutral end"), ("C", "D")]),
    ('A,"a ""b""\r\nc",neutral\r\nC,D,neutral\r\n', [("A", 'a "b" c'), ("C", "D")]),
])
def test_whole_cells_hold_any_lines(tmp_path, text, expected):
    rows = read_examples(write(tmp_path / "a.csv", "premise,hypothesis,label\n" + text))
    assert [(e.premise, e.hypothesis) for e in rows] == expected


def test_torn_rows_without_labels_take_nothing_along(tmp_path):
    rows = [f'{i},{chr(34) * (i == 5)}a man {i},b,' for i in range(1000)]          # open to the end of the file
    assert len(read_examples(write(tmp_path / "a.csv", "\n".join(["id,premise,hypothesis,label", *rows])))) == 999
    rows = ['1,"a b,c d,', "2,e f,g h,", '3,i j,"k, l",', '4,"m,n,', '5,"o,p,', "6,q,r,"]
    path = write(tmp_path / "b.csv", "\n".join(["id,premise,hypothesis,label", *rows]))
    assert [e.id for e in read_examples(path, max_bad=0.9)] == ["2", "3", "6"]


def test_a_split_that_is_none_is_a_fault(tmp_path, capsys):
    names = ["train"] * 300 + ["val", "Valid ", "training", "TEST", "fold"]
    path = write(tmp_path / "a.csv", "premise,hypothesis,label,split\n" + "".join(f"a{i},b,neutral,{name}\n" for i, name in enumerate(names)))
    assert [len(read_examples(path, split)) for split in (*data.SPLITS, None)] == [301, 2, 1, 304]
    assert f"{path}:306: split is 'fold'" in (tmp_path / "cache" / "set_aside" / "a.csv.txt").read_text() and "1 faulty rows" in capsys.readouterr().err


def test_an_empty_explanation_may_be_null(tmp_path):
    row = {"premise": "a", "hypothesis": "b", "label": "neutral", "rationale": "x", "Explanation_2": None}
    assert read_examples(write(tmp_path / "a.jsonl", json.dumps(row)))[0].explanations == ("x",)


def test_the_hubs_copy_of_e_snli_keeps_its_reasons(tmp_path):
    row = {"premise": "a", "hypothesis": "b", "label": 1, "explanation_1": "x", "explanation_2": None, "explanation_3": "z"}
    assert read_examples(f"{write(tmp_path / 'a.jsonl', json.dumps(row))}?labels=ENC")[0].explanations == ("x", "z")


def test_a_predictions_file_is_read_as_it_was_answered(tmp_path):
    """A simulator learns what a run answers, and not what would have been right."""
    line = {"id": "1", "label": "neutral", "rationale": "so it says.", "gold_label": "entailment", "right": 0.0, "premise": "a", "hypothesis": "b"}
    for row in (line, dict(sorted(line.items()))):
        assert read_examples(write(tmp_path / "predictions.jsonl", json.dumps(row))) == [Example("1", "a", "b", "neutral", ("so it says.",))]


def test_what_was_mended_is_counted(tmp_path, capsys):
    path = dev_file(tmp_path / "m.csv", [
        dev_row("1", "Entailment", "A  dog naps. "), dev_row("2", "neutral", "Two\nlines.", reasons=("one", " ", "three")),
        dev_row("3", "", reasons=("", "", "")), ["4", "neutral", "P.", "H.", "no stars", "P.", "H."], dev_row("5", "neutral")], "utf-8-sig")
    read_examples(path)
    told = capsys.readouterr().err
    assert told == ("m.csv: of 5 rows, mended or noted: byte order mark 1, cells with doubled or outer spaces 2, cells with line breaks 1, explanations "
                    "without a highlighted word 1, labels with capitals or spaces 1, rows with some explanations empty 1, rows without a label 1, "
                    "rows without an explanation 1\n")
    read_examples(path, "train")
    assert not capsys.readouterr().err, "once is enough"
    read_examples(dev_file(tmp_path / "clean.csv", [dev_row("1", "entailment")]))
    assert not capsys.readouterr().err


def test_reasons_without_sentences_find_theirs(tmp_path, tokenizer):
    pairs = dev_file(tmp_path / "pairs.csv", [dev_row("1", "entailment"), dev_row("2", "neutral"), dev_row("3", "-"), dev_row("4", "")])
    lines = [{"id": str(i), "entailment": f"e{i}", "neutral": f"n{i}", "contradiction": f"c{i}"} for i in (2, 1, 4)]
    path = write(tmp_path / "gpt.jsonl", "\n".join(map(json.dumps, lines)))
    name = f"{path}?pairs={pairs}"
    split = write(tmp_path / "split.jsonl", "".join(json.dumps({"id": i, "premise": f"p{i}", "hypothesis": "h", "label": "neutral", "split": "test"}) + "\n"
                                                    for i in (1, 2)))
    assert [e.premise for e in read_examples(f"{path}?pairs={split}&max_bad=1", "test")] == ["p2", "p1"], "in the splits of the pairs"
    assert read_examples(name) == [Example(i, "A dog naps.", "A dog rests.", label, reasons) for i, label, reasons in
                                   (("2", "neutral", ("n2",)), ("1", "entailment", ("e1",)), ("4", None, ()))]
    table = write(tmp_path / "reasons.csv", "id,entailment,neutral,contradiction\n2,e2,n2,c2\n")
    assert [e.explanations for e in read_examples(f"{table}?pairs={pairs}")] == [("n2",)]
    for ours, asked in (("pairID", ""), ("uid", "&id=uid")):
        other = write(tmp_path / "other.jsonl", path.read_text().replace('"id"', f'"{ours}"'))
        assert read_examples(f"{other}?pairs={pairs}{asked}") == read_examples(name)
    rows = len(data.encoded_rows(name, None, tokenizer, ("explain",))["explain"])
    dev_file(pairs, [dev_row("1", "neutral"), dev_row("2", ""), dev_row("4", "")])
    assert (rows, len(data.encoded_rows(name, None, tokenizer, ("explain",))["explain"])) == (2, 1), "other pairs are other rows"
    with pytest.raises(DataError, match="gpt.jsonl:1: no column for the premise"):
        read_examples(path)
    write(path, json.dumps(lines[0] | {"id": "9"}))
    with pytest.raises(DataError, match="gpt.jsonl:1: the source named by pairs= holds no row of this id"):
        read_examples(name)
    with pytest.raises(DataError, match="nothing.csv: no such file"):
        read_examples(f"{path}?pairs=nothing.csv")


@needs_real
def test_a_real_teachers_reasons_find_their_pairs():
    folder = Path(REAL) / "data" / "esnli"
    rows = read_examples(f"{folder / 'gpt2m_rationales_dev.jsonl'}?pairs={folder / 'esnli_dev.csv'}")
    assert len(rows) == 9842 and Counter(row.label for row in rows) == {"entailment": 3329, "contradiction": 3278, "neutral": 3235}
    assert rows[0].label == "neutral" and rows[0].explanations == ("Two women embracing does not imply they are sisters hugging goodbye.",)


def test_mixing(tmp_path):
    one = write(tmp_path / "a+b@2.csv", "premise,hypothesis,label,split\n" + "".join(f"p{i},h,neutral,train\n" for i in range(400)) + "q,h,neutral,test\n")
    assert len(read_examples(one)) == 401, "a file may be called as it likes"
    one = one.rename(tmp_path / "one.csv")
    mix = read_examples("toy:3+toy-harbour:5", "train")
    park, harbour = toy_examples(3), toy_examples(5, domain="harbour")
    assert mix == [park[0], harbour[0], park[1], harbour[1], park[2], harbour[2], harbour[3], harbour[4]]
    assert read_examples(f"{one}@2", "train") == [row for row in read_examples(one, "train") for _ in range(2)]
    half = read_examples(f"{one}@0.5", "train")
    assert 160 < len(half) < 240 and half == read_examples(f"{one}@0.5", "train") and len({row.premise for row in half}) == len(half)
    assert [row.premise for row in read_examples(f"toy:4+{one}@0.5", "test") if "q" == row.premise] == ["q"], "only training rows are drawn"
    assert len(read_examples("toy:4@0.5+toy-harbour:5@3", "train")) >= 15
    assert len(read_examples("toy:4@3")) == 3 * 4 + 1000 + 1000 and len(read_examples(f"{one}@2")) == 801
    with pytest.raises(DataError, match="mars"):
        read_examples("toy:4+mars")


def test_snli_lines(tmp_path):
    line = {"annotator_labels": ["neutral"], "captionID": "3.jpg#4", "gold_label": "neutral", "pairID": "3.jpg#4r1n", "sentence1": "A person.",
            "sentence1_binary_parse": "( A person )", "sentence2": "A man."}
    for name in ("train", "dev", "test"):
        write(tmp_path / f"snli_1.0_{name}.jsonl", json.dumps(line | {"pairID": name}) + "\n" + json.dumps(line | {"gold_label": "-"}) + "\n")
    assert read_examples(tmp_path, "validation") == [Example("dev", "A person.", "A man.", "neutral")]
    assert [row.id for row in read_examples(tmp_path)] == ["train", "dev", "test"]


@needs_real
def test_sick_in_its_own_splits():
    path = Path(REAL) / "data" / "sick" / "SICK_corrected.tsv"
    rows = {split: read_examples(path, split) for split in data.SPLITS}
    with open(path, encoding="utf-8") as file:
        plain = [line.rstrip("\n").split("\t") for line in file][1:]
    assert len(plain) == sum(map(len, rows.values())) == 9840
    for split, name in (("train", "TRAIN"), ("validation", "TRIAL"), ("test", "TEST")):
        assert [(row.id, row.label) for row in rows[split]] == [(cells[0], cells[3].lower()) for cells in plain if cells[11] == name]


# ---- fetching

@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine that gives parts of files: .ranges says whether it does, .log what was asked for."""
    root = tmp_path / "server"
    root.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted, asked = root / self.path.strip("/"), self.headers.get("Range")
            httpd.log.append((wanted.name, asked))
            if not wanted.exists():
                return self.send_error(404)
            body, start = wanted.read_bytes(), int(asked[6:-1]) if asked and httpd.ranges else 0
            if start >= len(body):
                return self.send_error(416)
            self.send_response(206 if asked and httpd.ranges else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start:len(body) - httpd.cut])

        def log_message(self, *arguments):
            pass

    httpd = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    httpd.root, httpd.log, httpd.ranges, httpd.cut, httpd.url = root, [], True, 0, f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("ESNLI_URL", httpd.url)
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def official(server, monkeypatch):
    """Small files under the official names, and as many rows asked for; the pauses between tries take no time."""
    for k, name in enumerate(("esnli_train_1.csv", "esnli_train_2.csv", "esnli_dev.csv", "esnli_test.csv")):
        dev_file(server.root / name, [dev_row(f"{k}-{i}", "neutral", "A dog\nnaps." * 500) for i in range(3)])
    monkeypatch.setattr(data, "FOLDERS", ({split: dict.fromkeys(files, 3) for split, files in data.FOLDERS[0].items()}, data.FOLDERS[1]))
    monkeypatch.setattr(data.time, "sleep", lambda seconds: None)
    return server


def test_download_resumes_and_is_whole_or_nothing(official, tmp_path):
    folder = tmp_path / "here"
    path, part, body = folder / "esnli_dev.csv", folder / "esnli_dev.part.csv", (official.root / "esnli_dev.csv").read_bytes()
    official.cut = len(body)
    with pytest.raises(DataError, match="by hand.*esnli_dev.csv"):
        data.fetch_esnli(folder, "validation")
    assert not path.exists() and len(official.log) == 5, "an empty reply is tried again"
    official.cut = 9_000
    with pytest.raises(DataError, match="by hand.*esnli_dev.csv"):
        data.fetch_esnli(folder, "validation")
    assert not path.exists() and body.startswith(part.read_bytes()) and 0 < part.stat().st_size < len(body)
    official.cut, have = 0, part.stat().st_size
    data.fetch_esnli(folder, "validation")
    assert path.read_bytes() == body and not part.exists() and official.log[-1] == ("esnli_dev.csv", f"bytes={have}-")
    path.rename(part)
    data.fetch_esnli(folder, "validation")                                   # all of it is in .part: 416, then from the start
    assert path.read_bytes() == body
    path.unlink()
    official.ranges = False
    part.write_bytes(b"something else")
    data.fetch_esnli(folder, "validation")
    assert path.read_bytes() == body, "a server that sends the whole file must not be appended"
    (official.root / "esnli_test.csv").unlink()
    official.log.clear()
    with pytest.raises(DataError, match=r"404.*by hand to .*esnli_test\.csv"):
        data.fetch_esnli(folder)
    assert official.log[-1][0] == "esnli_test.csv" and len(official.log) == 3, "404 is no failure that passes; what is there is not asked for"


def test_what_was_fetched_is_counted(official, tmp_path):
    two = (official.root / "esnli_dev.csv").read_text().rpartition("2-2")[0]
    for content, found in (("<html>", "no column for the premise"), (two, "holds 2 rows, not 3")):
        write(official.root / "esnli_dev.csv", content)
        with pytest.raises(DataError, match=found):
            data.fetch_esnli(tmp_path / "here", "validation")
        assert not list((tmp_path / "here").iterdir())


def test_esnli_is_fetched_once(official, tmp_path, monkeypatch):
    assert [row.id for row in read_examples("esnli", "validation")] == ["2-0", "2-1", "2-2"]
    assert [name for name, _ in official.log] == ["esnli_dev.csv"]
    assert len(read_examples("esnli")) == 12 and len(read_examples("esnli", "train")) == 6 and len(official.log) == 4
    assert len(read_examples(tmp_path / "cache" / "esnli", "test", limit=2)) == 2, "the folder can be named too"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no esnli_test.csv; .*download esnli"):
        read_examples(tmp_path / "empty", "test")
    monkeypatch.setenv("ESNLI_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "other"))
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9/esnli_dev\.csv.*by hand to .*other/esnli/esnli_dev\.csv"):
        read_examples("esnli", "validation")


# ---- tokens

@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "deep" / "spiece.model"
    texts = [text for row in toy_examples(3000) for name in ("predict", "explain", "label_then_rationale", "rationale_then_label")
             for text in FORMATS[name].render(row)]
    data.train_vocabulary(texts, path, 400)
    assert [file.name for file in path.parent.iterdir()] == ["spiece.model"], "nothing half-written stays"
    return Tokenizer(path)


def test_trained_vocabulary_has_t5s_layout_and_whole_words(tokenizer):
    assert 200 < tokenizer.vocab_size <= 500
    words = {word for row in toy_examples(2000, 5) for word in all_words(row)}
    assert all(len(tokenizer.encode(word)) == 2 for word in {*words, *LABELS}), "each word is one piece"
    for row in toy_examples(200, 6):
        assert tokenizer.decode(tokenizer.encode(row.premise)) == row.premise
    text = toy_examples(1)[0].premise
    assert tokenizer.encode(text)[-1] == 1 and 0 not in tokenizer.encode(text) and 2 not in tokenizer.encode(text)
    assert 2 in tokenizer.encode("日")
    assert tokenizer.encode("") == [1] and tokenizer.decode([]) == ""
    assert tokenizer.path.name == "spiece.model"


def test_special_tokens(tokenizer):
    last = tokenizer.vocab_size - 1
    a, b = tokenizer.encode("a")[:-1], tokenizer.encode("b")[:-1]
    assert tokenizer.encode("a <extra_id_0> b") == [*a, last, *b, 1] == tokenizer.encode("a<extra_id_0>b")
    assert tokenizer.encode("<extra_id_99>") == [last - 99, 1]
    assert tokenizer.encode("a</s> b <pad>") == [*a, 1, *b, 0, 1]
    assert tokenizer.decode([0, *a, last, 1, *b, last + 20, 1, 0]) == "a b"
    assert tokenizer.decode(torch.tensor(tokenizer.encode("a spaniel"))) == "a spaniel"


def test_vocabulary_faults(tmp_path, tokenizer):
    with pytest.raises(DataError, match="nothing.model: no SentencePiece vocabulary there"):
        Tokenizer(tmp_path / "nothing.model")
    for content in (b"", b"not a model", tokenizer.path.read_bytes()[:500]):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(DataError, match="bad.model"):
            Tokenizer(tmp_path / "bad.model")
    import sentencepiece
    with open(tmp_path / "other.model", "wb") as file:                       # the trainer's own layout: <unk> <s> </s>
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(["a dog naps here"] * 20), model_writer=file, vocab_size=15,
                                                 hard_vocab_limit=False, minloglevel=2)
    with pytest.raises(DataError, match="other.model: begins with the pieces <unk> <s> </s>"):
        Tokenizer(tmp_path / "other.model")
    with pytest.raises(DataError, match="no vocabulary of 3 pieces"):
        data.train_vocabulary(["a dog naps here"] * 20, tmp_path / "small.model", 3)
    with pytest.raises(DataError, match="there is no text"):
        data.train_vocabulary([], tmp_path / "small.model", 300)
    assert not list(tmp_path.glob("small*"))


@needs_real
def test_ids_equal_transformers():
    tokenizer = Tokenizer(Path(REAL) / "t5" / "spiece.model")
    cases = json.loads((HERE / "golden" / "tokenizer_t5.json").read_text(encoding="utf-8"))
    assert len(cases) >= 60 and tokenizer.vocab_size == 32100
    for case in cases:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        if 2 not in case["ids"]:                                             # transformers drops an unknown, we show it
            assert tokenizer.decode(case["ids"]) == case["decoded"], case["text"]


@needs_real
def test_real_dev_split():
    rows = read_examples(Path(REAL) / "data" / "esnli" / "esnli_dev.csv")
    assert len(rows) == 9842 and all(len(row.explanations) == len(row.highlights) == 3 for row in rows)
    assert Counter(row.label for row in rows) == {"entailment": 3329, "contradiction": 3278, "neutral": 3235}
    tokenizer = Tokenizer(Path(REAL) / "t5" / "spiece.model")
    for name, most in (("predict", 0.04), ("explain", 0.09)):
        encoded = encode_examples(tokenizer, FORMATS[name], [(row, 0) for row in rows])
        lengths = [(len(source), len(target)) for source, target, _ in encoded]
        assert padding(lengths, BucketSampler(lengths, 64, 0)) <= most


# ---- formats

SIMULATE = ("simulate_input", "simulate_reason", "simulate_both")
EXAMPLE = Example("e1", "A spaniel naps.", "A dog rests.", "entailment", ("A spaniel is a dog.", "Napping is resting."))


def test_the_examples_in_the_docstrings_are_true():
    found = doctest.testmod(data)
    assert found.attempted and not found.failed


def test_formats_write_what_they_say():
    pair = "premise: A spaniel naps. hypothesis: A dog rests."
    assert FORMATS["predict"].render(EXAMPLE) == (f"predict: {pair}", "entailment")
    assert FORMATS["explain"].render(EXAMPLE, 1) == (f"explain: {pair}", "Napping is resting.")
    assert FORMATS["label_then_rationale"].render(EXAMPLE) == (f"judge: {pair}", "entailment explanation: A spaniel is a dog.")
    assert FORMATS["rationale_then_label"].render(EXAMPLE) == (f"reason: {pair}", "A spaniel is a dog. answer: entailment")
    assert FORMATS["simulate_both"].render(EXAMPLE, 1) == (f"guess: {pair} reason: Napping is resting.", "entailment")
    sources = [FORMATS["instruction"].render(Example("x", f"P{i}.", "H.", "neutral"))[0] for i in range(10, 50)]
    assert all(f"P{i}." in text and "H." in text and "OPTIONS: - yes" in text for i, text in enumerate(sources, 10))
    assert set(Counter(re.sub(r"P\d+", "P", text) for text in sources).values()) <= set(range(5, 16)), "each wording is used"
    assert FORMATS["instruction"].render(EXAMPLE) == FORMATS["instruction"].render(replace(EXAMPLE, id="other")), "a pair keeps its wording"
    assert {format.name: format.parts for format in FORMATS.values()} == {
        "predict": ("label",), "explain": ("rationale",), "label_then_rationale": ("label", "rationale"),
        "rationale_then_label": ("rationale", "label"), "instruction": ("label",), **dict.fromkeys(SIMULATE, ("label",))}
    assert FORMATS["predict"].needs == {"label"} and FORMATS["simulate_both"].needs == {"label", "rationale"}, "a shown reason must be there"
    asking = Example("", "p", "h", None)
    assert all(format.render(asking)[1] == "" for format in FORMATS.values()), "an unlabelled pair without a reason has no target"


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("label", LABELS)
def test_what_is_written_is_read_back(name, label):
    format = FORMATS[name]
    target = format.render(Example("x", "p", "h", label, ("The answer: none. It is neutral.",)))[1]
    expected = (label if "label" in format.parts else None, "The answer: none. It is neutral." if "rationale" in format.parts else "")
    assert format.parse(target) == expected
    assert format.parse(f" {target} ") == expected


@pytest.mark.parametrize("name, text, expected", [
    ("predict", "Entailment.", ("entailment", "")),
    ("predict", " NEUTRAL ", ("neutral", "")),
    ("predict", "", (None, "")),
    ("predict", "entailment neutral", (None, "entailment neutral")),
    ("predict", "it is neutral", (None, "it is neutral")),
    ("predict", "neutrality", (None, "neutrality")),
    ("explain", " entailment ", (None, "entailment")),
    ("label_then_rationale", "Neutral. Explanation: it may be.", ("neutral", "it may be.")),
    ("label_then_rationale", "neutral", ("neutral", "")),
    ("label_then_rationale", "neutral because", (None, "neutral because")),
    ("label_then_rationale", "", (None, "")),
    ("label_then_rationale", "neutral explanation: a\nb", ("neutral", "a\nb")),
    ("label_then_rationale", "explanation: x", (None, "explanation: x")),
    ("rationale_then_label", "a b. answer: Contradiction.", ("contradiction", "a b.")),
    ("rationale_then_label", "answer: neutral", ("neutral", "")),
    ("rationale_then_label", "a b. answer: maybe", (None, "a b. answer: maybe")),
    ("rationale_then_label", "neutral", (None, "neutral")),
    ("rationale_then_label", "x answer: neutral and more", (None, "x answer: neutral and more")),
    ("rationale_then_label", "my nonanswer: neutral", (None, "my nonanswer: neutral")),
    ("predict", "CONTRAD\u0130CT\u0130ON", (None, "CONTRAD\u0130CT\u0130ON")),  # what is an i in one alphabet is none in another
    ("instruction", "Yes.", ("entailment", "")),
    ("instruction", "- no", ("contradiction", "")),
    ("instruction", "it is  not possible to tell", ("neutral", "")),
    ("instruction", "yes and no", (None, "yes and no")),
    ("instruction", "", (None, "")),
])
def test_parsers_are_strict_but_not_silly(name, text, expected):
    assert FORMATS[name].parse(text) == expected


@pytest.mark.parametrize("name", list(FORMATS))
def test_label_tokens_in_token_space(tokenizer, name):
    for row in [*toy_examples(60, 9), EXAMPLE, Example("", "p", "h", None)]:
        ((source, target, flags),) = encode_examples(tokenizer, FORMATS[name], [(row, 0)])
        texts = FORMATS[name].render(row)
        assert (source, target) == (tokenizer.encode(texts[0]), tokenizer.encode(texts[1])), "piece by piece = the whole"
        assert len(flags) == len(target)
        if row.label:
            parts = FORMATS[name].parts
            marked = [token for token, flag in zip(target, flags, strict=True) if flag]
            word = FORMATS[name].words[LABELS.index(row.label)] if name == "instruction" else row.label
            label = tokenizer.encode(word)[:-1] if "label" in parts else []
            assert marked == label + [1] * (parts[-1] == "label")


@needs_real
def test_pieces_equal_the_whole_with_the_real_vocabulary():
    tokenizer = Tokenizer(Path(REAL) / "t5" / "spiece.model")
    for row in read_examples(Path(REAL) / "data" / "esnli" / "esnli_dev.csv", limit=500):
        for format in FORMATS.values():
            assert encode_examples(tokenizer, format, [(row, 0)], max_target=1000)[0][1] == tokenizer.encode(format.render(row)[1])


def test_long_texts_are_cut_and_keep_the_end(tokenizer):
    row = toy_examples(1)[0]
    for format in FORMATS.values():
        ((source, target, flags),) = encode_examples(tokenizer, format, [(row, 0)], max_source=7, max_target=2)
        (whole,) = encode_examples(tokenizer, format, [(row, 0)])
        assert source == whole[0][:6] + [1] and target == whole[1][:1] + [1] and len(flags) == 2
        assert flags[1] == flags[0], "the end belongs to what it ends"


# ---- batches

def test_collate_pads_on_the_right():
    batch = collate([([5, 6, 1], [7, 1], [True, True]), ([8, 1], [9, 4, 1], [True, False, False])], ids=(3, 4))
    assert batch.source.tolist() == [[5, 6, 1], [8, 1, 0]] and batch.source_mask.tolist() == [[True] * 3, [True, True, False]]
    assert batch.labels.tolist() == [[7, 1, -100], [9, 4, 1]] and batch.label_tokens.tolist() == [[True, True, False], [True, False, False]]
    assert (batch.source.dtype, batch.source_mask.dtype, batch.labels.dtype) == (torch.long, torch.bool, torch.long) and batch.ids == (3, 4)
    moved = batch.to("meta")
    assert moved.source.device.type == moved.label_tokens.device.type == "meta" and moved.ids == (3, 4)
    assert data.Batch(batch.source, batch.source_mask, batch.labels).to("cpu").label_tokens is None


def padding(lengths, sampler):
    """The share of padding in an epoch's cells, over all sides (source, target) that `lengths` holds."""
    cells = tokens = 0
    for batch in sampler.batches(0):
        for side in zip(*(lengths[i] for i in batch), strict=True):
            cells, tokens = cells + max(side) * len(side), tokens + sum(side)
    return 1 - tokens / cells


def test_buckets_pad_little():
    rng = random.Random(0)                                                   # e-SNLI's lengths: a middle of 31 tokens, a long tail
    sources = [min(120, max(10, int(rng.lognormvariate(3.45, 0.35)))) for _ in range(20_000)]
    pairs = [(source, min(90, max(3, int(rng.lognormvariate(2.75, 0.5))))) for source in sources]
    alone = [(source,) for source in sources]
    assert padding(alone, BucketSampler(sources, 64, 0)) <= 0.03
    assert padding(pairs, BucketSampler(pairs, 64, 0)) <= 0.08, "rows of like source and like target length"
    assert padding(pairs, BucketSampler([0] * len(pairs), 64, 0)) > 0.40, "the same rows without buckets"


def test_company_changes():
    rng = random.Random(0)
    pairs = [(int(rng.lognormvariate(3.45, 0.35)), int(rng.lognormvariate(2.75, 0.5))) for _ in range(6000)]
    sampler = BucketSampler(pairs, 32, 0)
    company = [{(i, j) for batch in sampler.batches(epoch) for i in batch for j in batch if i < j} for epoch in (0, 1)]
    assert len(company[0] & company[1]) < 0.6 * len(company[0]), "many rows that meet in an epoch do not meet in the next"
    first = [np.mean([pairs[i][0] for i in batch]) for batch in sampler.batches(0)]
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.3, "long batches come between short ones"


# ---- encoded rows

def same(rows, expected):
    return len(rows) == len(expected) and all([list(a), list(b), list(c)] == list(map(list, other)) for (a, b, c), other in zip(rows, expected, strict=True))


def test_encoded_rows_are_those_of_encode_examples(tokenizer, tmp_path, monkeypatch, capsys):
    examples = toy_examples(70, 1, split="test")
    lines = [{"premise": row.premise, "hypothesis": row.hypothesis, "label": row.label, "explanations": row.explanations} for row in examples]
    lines[3]["explanations"], lines[5]["label"], lines[6]["premise"] = [], None, "a </s> b"
    path = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, lines)))
    tasks = ("predict", "explain")
    rows = data.encoded_rows(path, None, tokenizer, tasks, 20, 12)
    assert "2 of 70 rows lack a label or a rationale" in capsys.readouterr().err
    usable = [row for row in read_examples(path) if row.label and row.explanations]
    for task in tasks:
        assert same(rows[task], encode_examples(tokenizer, FORMATS[task], [(row, 0) for row in usable], 20, 12))
        assert rows[task].lengths.tolist() == [[len(source), len(target)] for source, target, _ in rows[task]]
        everyone = data.encoded_rows(usable, None, tokenizer, tasks, 20, 12, explanations=3)[task]
        assert same(everyone, encode_examples(tokenizer, FORMATS[task], [(row, k) for row in usable for k in range(3)], 20, 12))
    batch = collate([rows["explain"][i] for i in range(9)])
    plain = collate(encode_examples(tokenizer, FORMATS["explain"], [(row, 0) for row in usable[:9]], 20, 12))
    assert all(torch.equal(getattr(batch, name), getattr(plain, name)) for name in ("source", "source_mask", "labels", "label_tokens"))
    assert len(data.encoded_rows("toy:30+toy-harbour:9@2", "train", tokenizer, ("predict",), limit=25)["predict"]) == 25

    def count():
        return len(list((tmp_path / "cache" / "encoded").iterdir()))

    before = count()
    monkeypatch.setattr(data, "encode_examples", None)
    assert len(data.encoded_rows(path, None, tokenizer, tasks, 20, 12)["predict"]) == 68, "the second time nothing is encoded"
    monkeypatch.undo()
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    for left in (0, 40):
        for file in (tmp_path / "cache" / "encoded").glob("*/predict.ids"):  # as a power cut leaves them
            whole = file.read_bytes()
            file.unlink()  # what is mapped of it stays
            file.write_bytes(whole[:left])
        assert same(data.encoded_rows(path, None, tokenizer, tasks, 20, 12)["predict"], rows["predict"])
    bad = write(tmp_path / "bad.jsonl", path.read_text() + "\n[]" * 9)
    with pytest.raises(DataError, match="9 of 79 are at fault"):
        data.encoded_rows(bad, None, tokenizer, tasks)
    data.encoded_rows(path, None, tokenizer, tasks, 20, 13)
    write(path, path.read_text().replace("spaniel", "poodle"))
    data.encoded_rows(path, None, tokenizer, tasks, 20, 12)
    assert count() == before + 2, "other limits and other bytes are other rows"
    with pytest.raises(DataError, match="none of 1 rows has a label and a rationale, which predict and explain need"):
        data.encoded_rows([Example("x", "p", "h", "neutral")], None, tokenizer, tasks)
    assert count() == before + 2, "nothing half-written stays"


def test_sampler_takes_every_row_once_an_epoch_in_an_order_of_its_own():
    lengths = [random.Random(i).randrange(5, 50) for i in range(1000)]
    batches = iter(BucketSampler(lengths, 32, seed=1))
    epochs = [[next(batches) for _ in range(32)] for _ in range(2)]
    for epoch in epochs:
        assert sorted(i for batch in epoch for i in batch) == list(range(1000)) and all(1 <= len(batch) <= 32 for batch in epoch)
    assert epochs[0] != epochs[1]
    assert epochs == [BucketSampler(lengths, 32, 1).batches(0), BucketSampler(lengths, 32, 1).batches(1)]
    assert BucketSampler(lengths, 32, 2).batches(0) != epochs[0]


def test_sampler_resumes_in_the_middle_of_an_epoch():
    lengths = [random.Random(i).randrange(5, 50) for i in range(500)]
    sampler = BucketSampler(lengths, 32, seed=1)
    going = iter(sampler)
    for steps in (0, 1, 20, 16, 3):                                          # 16 batches an epoch: also at its very end
        for _ in range(steps):
            next(going)
        other = BucketSampler(lengths, 32, seed=1)
        other.place = start, done = sampler.place
        resumed, ahead = iter(other), BucketSampler(lengths, 32, seed=1)
        expected = [batch for epoch in range(start, start + 4) for batch in ahead.batches(epoch)][done:]
        assert [next(resumed) for _ in range(20)] == expected[:20]
    assert next(going) == expected[0], "the first sampler goes on with just what the resumed one began with"


# ---- the command

def test_command(tmp_path, capsys, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["data.py", *map(str, arguments)])
        try:
            data.run_main(data.main)
            return 0, *capsys.readouterr()
        except SystemExit as e:
            return e.code, *capsys.readouterr()

    file, handed = write(tmp_path / "a.csv", "premise,hypothesis,label,rationale\np one,h,neutral,because\nP one,h,entailment,\n"), []
    monkeypatch.setattr(data, "SAMPLE", 100)
    monkeypatch.setattr(data.os, "execv", lambda program, arguments: handed.append(arguments[1:]))
    status, out, _ = run(file)
    assert status == 0 and "2 rows on 1 premises" in out and "1 pairs come twice or more in a split, 0 in several splits, 1 with several labels" in out
    assert handed == [[str(HERE.parent / "evaluate.py"), f"--data={Path('out') / 'data-a.jsonl'}"]]
    assert run(f"--vocabulary={tokenizer.path}")[0] == run("toy:9", f"--vocabulary={tokenizer.path}")[0] == 0
    assert "python data.py download [esnli]" in run("--help")[1]
    for arguments in (("nothing.csv",), ("--speed=9",), ("download", "snli"), ("download", "esnli", "here"), (file, file), (file, "--vocabulary=none")):
        status, _, err = run(*arguments)
        assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, err


def test_command_as_a_process(tmp_path):
    failed = subprocess.run([sys.executable, str(HERE.parent / "data.py"), "nothing.csv"], capture_output=True, text=True, timeout=60)
    assert failed.returncode == 2 and failed.stderr.startswith("error: nothing.csv") and "Traceback" not in failed.stderr
    with subprocess.Popen([sys.executable, str(HERE.parent / "data.py"), "toy:50"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as early:
        early.stdout.close()  # as head does
        assert early.stderr.read() == b"" and early.wait() == 0


def test_download_command(official, tmp_path, capsys):
    data.main(["download", "esnli", f"--out={tmp_path / 'here'}"])
    assert "esnli_test.csv" in capsys.readouterr().out
    assert len(read_examples(tmp_path / "here", "train")) == 6


def page(out):
    """The table of a page: {name: [a number for each label]}, and its lines that begin with a name and a colon."""
    rows = {line[:46].strip(): [float(cell.replace(",", "")) for cell in line[46:].split()] for line in out.splitlines()
            if re.match(".{46} +[0-9.,]+( |$)", line)}
    return rows, dict(line.split(": ", 1) for line in out.splitlines() if re.match(r"\S[^:]+: ", line))


def test_a_page_counts_what_one_can_count_by_hand(tmp_path, capsys, tokenizer):
    lines = [{"premise": "A man sleeps.", "hypothesis": "A man is awake.", "label": "contradiction", "explanations": ["Just because he can."]},
             {"premise": "A man runs.", "hypothesis": "Nobody runs, no man.", "label": "contradiction", "explanations": ["A man runs.", "A he does it."]},
             {"premise": "A cat sits.", "hypothesis": "A cat sits.", "label": "entailment", "split": "test"},
             {"premise": "A cat", "hypothesis": "A cat sits", "label": ""}]
    twins = [{"premise": "a MAN runs.", "hypothesis": "nobody runs, no man.", "label": "contradiction"},
             {"premise": "A cat sits.", "hypothesis": "a cat sits.", "label": "neutral", "split": "train"}]
    lines = [{"split": "train", "explanations": [], "id": str(i)} | line for i, line in enumerate(lines + twins)]
    sample = data.explore(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines))), tmp_path / "a" / "b.png", tokenizer)
    out = capsys.readouterr().out
    table, told = page(out)
    assert (tmp_path / "a" / "b.png").read_bytes().startswith(b"\x89PNG") and len(sample) == 6
    assert out.splitlines()[0].split() == ["6", "rows", "on", "4", "premises", "entailment", "neutral", "contradiction", "none"]
    assert table["all"] == [1, 1, 3, 1] and table["train"] == [0, 1, 3, 1] and table["validation"] == [0] * 4 and table["test"] == [1, 0, 0, 0]
    assert "1 pairs come twice or more in a split, 1 in several splits, 1 with several labels; 1 premises stand in several splits" in out
    assert table["words of its premise"] == [3, 3, 3, 2] and table["words of its explanation"] == [0, 0, 3.7, 0]
    assert table["% of hypotheses with a negation"] == [0, 0, 66.7, 0]
    assert table["% of the hypothesis' words not in the premise"] == [0, 0, 50, 33.3]
    assert table["% of explanations: just because"] == [0, 0, 33.3, 0] and "% of explanations: implies" not in table
    assert table["% of words that two explanations share"] == [0, 0, 28.6, 0]
    lengths = [len(tokenizer.encode(line["premise"])) - 1 for line in lines if line["label"] == "contradiction"]
    assert table["tokens of its premise"][2] == round(sum(lengths) / 3, 1)
    longer = [len(tokenizer.encode(text)) - 1 > 16 for text in ("Just because he can.", "A man runs.", "A he does it.")]
    assert table["% cut at 16: tokens of its explanation"] == [0, 0, round(100 * sum(longer) / 3, 1), 0] and any(longer)
    assert table["% cut at 16: tokens of its source"] == [100] * 4
    assert told["min words of its explanation"].startswith("1 ") and told["comes twice, with several labels"] == "5 neutral"
    write(tmp_path / "h.csv", ",".join(DEV_HEADER) + "\n" + ",".join(dev_row("x", "neutral", reasons=("one", "")))  + "\n")
    data.explore(str(tmp_path / "h.csv"), tmp_path / "b.png")
    out = capsys.readouterr().out
    assert page(out)[0]["% of the premise's words highlighted"] == [33.3] and page(out)[0]["% of the hypothesis' words highlighted"] == [33.3]
    assert "Lengths in tokens are not told" in out
    with pytest.raises(DataError, match="there are no rows"):
        data.explore(write(tmp_path / "e.csv", "premise,hypothesis,label\n"), tmp_path / "c.png")


def test_phrases_that_tell_the_label():
    groups = {label: [(Example("", "", f"a dog {word}", label), {})] * 300 for label, word in zip(LABELS, ("rests now", "may rest", "a dog"), strict=True)}
    found = data.telling_phrases(groups, lambda e: [e.hypothesis])
    assert found == {"entailment": {"now": 1, "rests": 1, "a": 1 / 3, "dog": 1 / 3}, "neutral": {"may": 1, "rest": 1, "a": 1 / 3, "dog": 1 / 3},
                     "contradiction": {"dog a": 1, "a dog": 1 / 3}}


def test_large_data_are_sampled(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data, "SAMPLE", 50)
    sample = data.explore("toy:3000", tmp_path / "b.png")
    assert page(capsys.readouterr().out)[0]["train"] == [1000, 1000, 1000]
    places = [i for i, e in enumerate(read_examples("toy:3000")) if e in sample]
    assert len(sample) == 50 and 1500 < np.mean(places) < 3500, "drawn from all rows alike"


def test_what_takes_metrics_ends_the_page(tmp_path):
    rng, rows = random.Random(0), []
    for i in range(400):
        label = rng.choice(LABELS)
        rows.append({"premise": f"{rng.choice('abcdefgh')} {i}", "hypothesis": f"it is {label[:4]}", "label": label,
                     "explanations": ["the very same words here"] * 2})
    file = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    done = subprocess.run([sys.executable, str(HERE.parent / "data.py"), str(file)], capture_output=True, text=True, timeout=100, cwd=tmp_path)
    table = {line[:32].strip(): line[32:].split() for line in done.stdout.splitlines()}
    assert done.returncode == 0 and (tmp_path / "out" / "data-a.png").exists() and len(read_examples(tmp_path / "out" / "data-a.jsonl")) == 400
    found = {name: [float(cell) for cell in cells if re.fullmatch(r"\d+\.\d", cell)] for name, cells in table.items()}
    assert found["n-grams of the hypothesis alone"][0] == 100, "the label can be read off"
    assert all(25 < found[f"n-grams of the {name} alone"][0] < 45 for name in ("premise", "explanation"))
    assert found["human, against the others"] == [100.0] * 5, "ROUGE and BLEU of annotators who agree"


@needs_real
def test_the_page_of_the_real_dev_split(tmp_path, capsys):
    data.explore(Path(REAL) / "data" / "esnli" / "esnli_dev.csv", tmp_path / "b.png", Tokenizer(Path(REAL) / "t5" / "spiece.model"))
    out = capsys.readouterr().out
    table, told = page(out)
    assert "2 pairs come twice or more in a split, 0 in several splits, 0 with several labels; 0 premises stand in several splits" in out
    assert table["all"] == np.sum([table[split] for split in data.SPLITS], 0).tolist() == [3329, 3235, 3278]
    negation, because = table["% of hypotheses with a negation"], table["% of explanations: just because"]
    assert negation[2] > 3 * max(negation[:2]) and 18 < because[1] < 25 and max(because[0], because[2]) < 1
    assert "nobody 100%" in told["hypothesis phrases of contradiction"] and "sleeping 88%" in told["hypothesis phrases of contradiction"]
    assert told["explanation phrases of neutral"].startswith("just because 99%")
    assert table["% of the premise's words highlighted"][1] == 0, "of a neutral pair only the hypothesis was to be marked"
    assert table["% cut at 64: tokens of its source"][1] < 10 < table["% cut at 32: tokens of its source"][1]
    assert 16 < table["tokens of its premise"][0] < 20 and table["tokens of its premise"][0] > table["words of its premise"][0]
