"""Is the answer right, does the reason read like a human's, and is it the reason? All metrics of one run, or of several side by side.

    python evaluate.py RUN [RUN ...]                     answer the test rows of the run's own data and score the answers
    python evaluate.py RUN --data=FILE --split=all       other rows: a file or a name that data.py knows; a split of it, or all
    python evaluate.py answers.jsonl --data=FILE         score a predictions file (a line a row: id, label, rationale) of any origin
        --limit=N        a seeded sample of N rows               --seed=0         of the sample, the bootstrap and the examples shown
        --num_beams=1    beams of the decoder                    --batch_size=64  rows answered at once         --device=cpu or cuda

A run folder gets eval.json (every figure), predictions.jsonl (a line a row, the reference beside the answer), confusion.png and
report.html, one page that works offline. A predictions file NAME.jsonl gets NAME.eval.json and NAME.report.html beside it.
Answering takes nearly all of the time; to score the 9,842 rows of the e-SNLI development split takes 6 seconds, the baselines 8 more.

Rows whose answer names no label count as wrong and are listed. N-gram scores prove little by themselves: copying the hypothesis comes
near a human's. So the baselines stand beside every figure. Shares and ROUGE are fractions in eval.json and percent in print; BLEU is
0 to 100 in both. Read next: apprentice.py (how a run answers), data.py (what a row is).
"""

import base64
import functools
import html
import io
import json
import math
import random
import re
import string
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from apprentice import Apprentice, options, run_main
from data import LABELS, DataError, read_examples

# --- n-gram scores: ROUGE and BLEU ------------------------------------------------------------------------------------
# ROUGE equals Google's rouge-score 0.1.2 (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"); its stemmer is Porter's
# (1980, "An algorithm for suffix stripping") with the extensions that NLTK switches on by default.

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
IRREGULAR = dict(zip("skies dying lying tying innings outings cannings".split(), "sky die lie tie inning outing canning".split(), strict=True))
IRREGULAR |= {word: word for word in "sky news inning outing canning howe proceed exceed succeed".split()}
STEPS = (  # Porter's steps 2, 3, 4: the measure that the stem must exceed; "suffix:replacement", where a letter before + stays and must be there
    (0, "alli:al"),
    (0, "ational:ate tional:tion enci:ence anci:ance izer:ize bli:ble entli:ent eli:e ousli:ous ization:ize ation:ate ator:ate alism:al "
        "iveness:ive fulness:ful ousness:ous aliti:al iviti:ive biliti:ble fulli:ful l+ogi:og"),
    (0, "icate:ic ative: alize:al iciti:ic ical:ic ful: ness:"),
    (1, "al: ance: ence: er: ic: able: ible: ant: ement: ment: ent: s+ion: t+ion: ou: ism: ate: iti: ous: ive: ize:"),
)  # fmt: skip


def _shape(word):
    """'c' for each consonant, 'v' for each vowel; y is a vowel after a consonant: "syzygy" is "cvcvcv", "toy" is "cvc"."""
    shape = ""
    for letter in word:
        shape += "v" if letter in "aeiou" or (letter == "y" and shape.endswith("c")) else "c"
    return shape


def _measure(word):
    """Porter's m: how often a vowel is followed by a consonant, about the number of syllables before the last."""
    return _shape(word).count("vc")


def _ends_short(word):
    """Porter's *o: consonant, vowel, consonant other than w, x, y ("hop"); NLTK adds two-letter words such as "at"."""
    shape = _shape(word)
    return shape == "vc" or (shape.endswith("cvc") and word[-1] not in "wxy")


def _rewrite(word, above, rules):
    """Apply the first rule whose suffix fits, if the measure of what stands before it exceeds `above`; no later rule is tried."""
    for suffix, replacement in (rule.split(":") for rule in rules.split()):
        if word.endswith(suffix.replace("+", "")):
            stem = word.removesuffix(suffix.split("+")[-1])
            return stem + replacement if _measure(stem) > above else word
    return word


@functools.lru_cache(maxsize=1 << 17)
def porter_stem(word):
    """The stem of a lower-case word: skating -> skate, happily -> happili, dying -> die."""
    if word in IRREGULAR or len(word) <= 2:
        return IRREGULAR.get(word, word)
    for rules in ("sses:ss ies:i ss:ss s:", "ied:i"):  # step 1a: ponies -> poni, cats -> cat, but dies -> die
        word = word[:-1] if len(word) == 4 and word.endswith(("ies", "ied")) else _rewrite(word, -1, rules)
    past = re.fullmatch("(.+)(?:ed|ing)", word)  # step 1b: agreed -> agre, hopping -> hop, falling -> fall, rating -> rate
    if word.endswith("eed"):
        word = _rewrite(word, 0, "eed:ee")
    elif past and "v" in _shape(past[1]):
        word = past[1]
        if word.endswith(("at", "bl", "iz")) or (_measure(word) == 1 and _ends_short(word)):
            word += "e"
        elif word[-1] == word[-2:-1] and _shape(word)[-1] == "c" and word[-1] not in "lsz":
            word = word[:-1]
    if word.endswith("y") and len(word) > 2 and _shape(word)[-2] == "c":  # step 1c: happy -> happi, but enjoy stays
        word = word[:-1] + "i"
    for above, rules in STEPS:
        word = _rewrite(word, above, rules)
    if word.endswith("e") and _measure(word[:-1]) > _ends_short(word[:-1]):  # step 5: probate -> probat, controlled -> control, but rate stays
        word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def rouge_tokens(text, stem=True):
    """Runs of a-z and 0-9 of the lower-cased text; words of four letters and more are stemmed: "A café!" gives ["a", "caf"]."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return [porter_stem(word) if len(word) > 3 else word for word in words] if stem else words


def _ngrams(tokens, n):
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


@functools.lru_cache(maxsize=1 << 17)  # the references of a row are met again by every baseline and every run
def _rouge_parts(text, stem):
    """A text as ROUGE sees it: tokens, the counts of unigrams and of bigrams, and the tokens of each of its lines."""
    tokens = rouge_tokens(text, stem)
    return tokens, (_ngrams(tokens, 1), _ngrams(tokens, 2)), [rouge_tokens(line, stem) for line in text.split("\n")]


def _scores(hits, predicted, wanted):
    """(precision, recall, F) of `hits` shared items among `predicted` and `wanted` ones; 0 where a side is empty."""
    precision, recall = hits / max(predicted, 1), hits / max(wanted, 1)
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def _shared(counts, other):
    """The size of the intersection of two multisets: each item counts as often as it stands in both."""
    return sum(min(count, other[item]) for item, count in counts.items() if item in other)


def _lcs(reference, prediction):
    """Indices into `reference` of a longest common subsequence, the one that rouge-score walks back to.

    Bit-parallel dynamic programming (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): bit i of row j is 0 where the LCS
    with the first j tokens of `prediction` grows at token i of `reference`. On the way back, where both ways are equally long, a token
    of the reference is dropped first; that choice shows in the union over sentences."""
    places, full = {}, (1 << len(reference)) - 1
    for i, token in enumerate(reference):
        places[token] = places.get(token, 0) | 1 << i
    rows = [full]
    for token in prediction:
        matches = rows[-1] & places.get(token, 0)
        rows.append(((rows[-1] + matches) | (rows[-1] - matches)) & full)
    i, j, found = len(reference), len(prediction), set()
    while i and j:
        if reference[i - 1] == prediction[j - 1]:
            i, j = i - 1, j - 1
            found.add(i)
        elif rows[j] >> (i - 1) & 1:
            i -= 1
        else:
            j -= 1
    return found


def _union_lcs(reference_lines, prediction_lines):
    """Summary-level LCS: of each reference line the tokens in its LCS with any predicted line, none more often than it was predicted."""
    left, hits = Counter(token for line in prediction_lines for token in line), 0
    for line in reference_lines:
        for i in set().union(*(_lcs(line, other) for other in prediction_lines)):
            hits += left[line[i]] > 0
            left[line[i]] -= 1
    return hits


def rouge(prediction, references, stem=True):
    """ROUGE of one text: {"rouge1": (P, R, F), "rouge2": ..., "rougeL": ..., "rougeLsum": ...}, fractions.

    references: a list of strings, or one string. Each metric takes P and R from the reference with its own best F (the first of
    equals), as rouge-score's score_multi does. rougeLsum reads lines as sentences. ValueError if there is no reference."""
    if not references:
        raise ValueError("rouge needs at least one reference")
    tokens, grams, lines = _rouge_parts(prediction, stem)
    best = {}
    for reference in [references] if isinstance(references, str) else references:
        wanted, wanted_grams, wanted_lines = _rouge_parts(reference, stem)
        hits = [*map(_shared, grams, wanted_grams), len(_lcs(wanted, tokens))]
        hits.append(hits[-1] if len(lines) == len(wanted_lines) == 1 else _union_lcs(wanted_lines, lines))
        for kind, hit in zip(ROUGE_KINDS, hits, strict=True):
            scores = _scores(hit, len(tokens) - (kind == "rouge2"), len(wanted) - (kind == "rouge2"))
            if kind not in best or scores[2] > best[kind][2]:
                best[kind] = scores
    return best


BLEU_RULES = (  # the tokens of the mteval-v13a script, each rule applied to the text that the last one left
    (r"\s+\Z", ""), ("<skipped>", ""), ("-\n", ""), ("\n", " "), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"), (r"\A|\Z", " "),
    ("([" + re.escape("".join(set(string.punctuation) - set("',-."))) + "])", r" \1 "),
    (r"([^0-9])([.,])", r"\1 \2 "), (r"([.,])([^0-9])", r" \1 \2"),  # full stop and comma stay inside a number only: 1,000.5
    (r"([0-9])(-)", r"\1 \2 "),
)  # fmt: skip


@functools.lru_cache(maxsize=1 << 17)
def _bleu_tokens(text):
    for pattern, replacement in BLEU_RULES:
        text = re.sub(pattern, replacement, text)
    return text.split()


def bleu(predictions, references):
    """Corpus BLEU from 0 to 100. predictions: strings; references: a list of strings (or one string) for each of them.

    Equal to sacrebleu's defaults (Papineni et al. 2002; Post 2018, "A Call for Clarity in Reporting BLEU Scores"): n-grams to 4, the
    closest reference length, exponential smoothing. ValueError if the two differ in length, are empty, or a reference is missing."""
    references = [[texts] if isinstance(texts, str) else texts for texts in references]
    if not predictions or len(predictions) != len(references) or not all(references):
        raise ValueError(f"bleu needs a non-empty list of references for each prediction: {len(predictions)} predictions, "
                         f"{len(references)} lists of references, {sum(not r for r in references)} of them empty")  # fmt: skip
    length, wanted_length, hits, totals = 0, 0, [0] * 4, [0] * 4
    for prediction, texts in zip(predictions, references, strict=True):
        tokens, sides = _bleu_tokens(prediction), [_bleu_tokens(text) for text in texts]
        length += len(tokens)
        wanted_length += min((len(side) for side in sides), key=lambda size: (abs(size - len(tokens)), size))
        for n in range(min(4, len(tokens))):
            wanted = functools.reduce(Counter.__or__, (_ngrams(side, n + 1) for side in sides))  # the largest count of any reference
            hits[n] += _shared(_ngrams(tokens, n + 1), wanted)
            totals[n] += len(tokens) - n
    if not all(totals) or not any(hits):
        return 0.0
    log_precision, smoothing = 0.0, 1
    for hit, total in zip(hits, totals, strict=True):
        if not hit:
            smoothing *= 2  # the k-th order without a match counts as 1 / 2^k matches
        log_precision += math.log((hit or 1 / smoothing) / total) / 4
    return 100 * math.exp(log_precision + min(0.0, 1 - wanted_length / length))

# --- labels and reasons -----------------------------------------------------------------------------------------------


def bootstrap_interval(values, clusters, draws=2000, seed=0, statistic=lambda means: means[:, 0]):
    """The 95% percentile interval (low, high) of the mean of `values` (N numbers), resampling whole clusters (N names).

    The rows of one premise succeed and fail together (9,824 test rows share 3,323 premises): drawing rows one by one would
    make the interval too narrow. Efron & Tibshirani 1993, chapter 8; Field & Welsh 2007 for clusters. Of values (N, K) it is
    the interval of a statistic of the K means, (draws, K) -> (draws,); draws in which it is not defined (NaN) are left out."""
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    values = np.asarray(values, dtype=float).reshape(len(cluster), -1)
    sizes, sums = np.bincount(cluster), np.stack([np.bincount(cluster, weights=column) for column in values.T], axis=1)
    rng, means = np.random.default_rng(seed), np.empty((draws, values.shape[1]))
    for i in range(draws):
        drawn = rng.integers(len(sizes), size=len(sizes))  # as many clusters as there are, with replacement
        means[i] = sums[drawn].sum(axis=0) / sizes[drawn].sum()
    return tuple(np.nanpercentile(statistic(means), [2.5, 97.5]).tolist())


def label_metrics(gold, predicted):
    """Accuracy, valid-answer rate, precision, recall and F1 of each label, macro F1, confusion[gold][predicted or "none"].

    gold: strings of LABELS; predicted: the same or anything else, which counts as "none" and so as wrong.
    macro_f1 is the mean over the labels that occur in `gold`. A ratio 0/0 is 0, as scikit-learn has it."""
    confusion = {label: dict.fromkeys((*LABELS, "none"), 0) for label in LABELS}
    for want, got in zip(gold, predicted, strict=True):
        confusion[want][got if got in LABELS else "none"] += 1
    labels = {}
    for label, row in confusion.items():
        scores = _scores(row[label], sum(other[label] for other in confusion.values()), sum(row.values()))
        labels[label] = {**dict(zip(("precision", "recall", "f1"), scores, strict=True)), "rows": sum(row.values())}
    seen = [scores["f1"] for scores in labels.values() if scores["rows"]]
    return {"accuracy": sum(row[label] for label, row in confusion.items()) / len(gold),
            "valid": (len(gold) - sum(row["none"] for row in confusion.values())) / len(gold),
            "macro_f1": sum(seen) / len(seen), "labels": labels, "confusion": confusion}  # fmt: skip


def reason_metrics(reasons, references, clusters, seed=0):
    """Plain means of ROUGE (with stemming) over the rows, the interval of ROUGE-L's F, and BLEU. A row without reference is left out.

    reasons: N strings; references: N lists of strings; clusters: N premises. None if there is nothing to score: no reference at
    all, or not one reason (a run that gives labels only)."""
    rows = [row for row in zip(reasons, references, clusters, strict=True) if row[1]]
    if not any(reason.strip() for reason, _, _ in rows):
        return None
    reasons, references, clusters = zip(*rows, strict=True)
    pairs = tqdm(rows, desc="ROUGE", unit="text", leave=False, disable=len(rows) < 2000)
    scores = [rouge(reason, texts) for reason, texts, _ in pairs]
    sizes = sorted({len(texts) for texts in references})
    metrics = {"rows": len(rows), "references": str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}", "stemming": True}
    for kind in ROUGE_KINDS:
        metrics[kind] = dict(zip(("precision", "recall", "f"), np.mean([row[kind] for row in scores], axis=0).tolist(), strict=True))
    metrics["rougeL"]["interval"] = bootstrap_interval([row["rougeL"][2] for row in scores], clusters, seed=seed)
    return {**metrics, "bleu": bleu(reasons, references)}


def join(examples, predictions):
    """The lines of predictions.jsonl: each prediction (a dict with id, label and rationale), and what its example holds beside it.
    DataError unless every example has exactly one prediction, found by its id."""
    answers, rows = {p["id"]: p for p in predictions}, {e.id for e in examples}
    for what, wrong in (("rows of the data share their id with another row", len(examples) - len(rows)),
                        ("predictions share their id with another one", len(predictions) - len(answers)),
                        ("predictions are for no row of the data", [i for i in answers if i not in rows]),
                        ("rows of the data have no prediction", [e.id for e in examples if e.id not in answers])):  # fmt: skip
        if wrong:
            first = "" if isinstance(wrong, int) else f", the first has the id {wrong[0]!r}"
            raise DataError(f"{wrong if isinstance(wrong, int) else len(wrong)} {what}{first}; was another split or sample answered?")
    return [{**answers[e.id], "gold_label": e.label, "references": e.explanations, "premise": e.premise, "hypothesis": e.hypothesis,
             "kind": e.kind} for e in examples]  # fmt: skip


def evaluate(examples, predictions, seed=0):
    """All metrics of `predictions`, dicts with id, label (of LABELS, or None) and rationale, on `examples` (data.Example).

    Every example with a gold label is scored; an answer that could not be parsed (label None) is wrong and stands in
    "unparseable". Examples without a gold label are counted in "unlabelled". Returns a dict that json can write.
    DataError if the two do not match (`join`) or nothing can be scored."""
    lines = [line for line in join(examples, predictions) if line["gold_label"]]
    if not lines:
        raise DataError("no row of the data has a gold label, so nothing can be scored")
    gold, predicted, reasons, references, premises, kinds = (
        [line[key] for line in lines] for key in ("gold_label", "label", "rationale", "references", "premise", "kind"))  # fmt: skip
    right = [want == got for want, got in zip(gold, predicted, strict=True)]
    by_kind = {kind: [r for r, other in zip(right, kinds, strict=True) if other == kind] for kind in sorted(set(kinds)) if any(kinds)}
    return {"rows": len(lines), "unlabelled": len(examples) - len(lines), "premises": len(set(premises)),
            **label_metrics(gold, predicted), "accuracy_interval": bootstrap_interval(right, premises, seed=seed),
            "unparseable": [line["id"] for line in lines if line["label"] not in LABELS],
            "kinds": {kind: {"rows": len(r), "accuracy": sum(r) / len(r)} for kind, r in by_kind.items()},
            "reasons": reason_metrics(reasons, references, premises, seed)}  # fmt: skip


def template_reason(example):
    """A reason made of the gold label and the two sentences: no thought, and yet as good as a human's in n-grams."""
    premise, hypothesis = (text[:1].lower() + text[1:].strip().rstrip(".") for text in (example.premise, example.hypothesis))
    return {"entailment": f"{hypothesis} because {premise}.",
            "neutral": f"Just because {premise} does not mean that {hypothesis}.",
            "contradiction": f"It cannot be that {hypothesis} if {premise}."}[example.label]  # fmt: skip


def reference_baselines(examples, seed=0):
    """What a reader needs beside a model's figures on the same rows: {name: metrics}, each with parts of what evaluate() returns.

    "human" scores the first explanation against the others, one reference fewer than the rest, which lowers it."""
    scored = [e for e in examples if e.label]
    gold, premises, references = [e.label for e in scored], [e.premise for e in scored], [e.explanations for e in scored]
    majority = Counter(gold).most_common(1)[0][0]
    reasons = {"copy the hypothesis": ([e.hypothesis for e in scored], references),
               "template of the gold label": ([template_reason(e) for e in scored], references),
               "human, against the others": ([(*texts, "")[0] for texts in references], [texts[1:] for texts in references])}  # fmt: skip
    return {f"majority class ({majority})": label_metrics(gold, [majority] * len(gold)),
            **{name: {"reasons": reason_metrics(*texts, premises, seed)} for name, texts in reasons.items()}}  # fmt: skip


# --- tables, pictures and the page ------------------------------------------------------------------------------------
# A table is {row: {column: value}}: a float is a share and shown in percent, a pair of floats an interval, None a dash, text stays as it is.

NOTE = ("Intervals are bootstrapped over premises. N-gram scores prove little: compare the copy and the template. "
        "The human line has one reference fewer than the others, which lowers it.")  # fmt: skip


def headline(metrics):
    """The row of the main table for what evaluate() or a baseline holds."""
    reasons = metrics.get("reasons") or {}
    rouges = zip(("ROUGE-1", "ROUGE-2", "ROUGE-L", "Lsum"), (reasons.get(kind, {}).get("f") for kind in ROUGE_KINDS), strict=True)
    return {"accuracy": metrics.get("accuracy"), "95% interval": metrics.get("accuracy_interval"), "valid": metrics.get("valid"),
            "macro F1": metrics.get("macro_f1"), **dict(rouges), "BLEU": reasons["bleu"] / 100 if reasons else None}  # fmt: skip


def about_reasons(reasons):
    """The line that says how ROUGE and BLEU were taken; reasons: a result of reason_metrics."""
    if not reasons:
        return "There are no reasons to score."
    return (f"ROUGE: F of the best of {reasons['references']} references, Porter stemming, plain mean of {reasons['rows']:,} rows. "
            "BLEU: of the whole corpus.")  # fmt: skip


def cells(table):
    """A table as lines of text, the header first."""
    def text(value):
        if isinstance(value, (list, tuple)):
            return " to ".join(map(text, value))
        return "–" if value is None else f"{100 * value:.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value

    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    return [("", *columns)] + [(name, *(text(row.get(column)) for column in columns)) for name, row in table.items()]


def print_cells(table):
    """Print a table with aligned columns."""
    lines = cells(table)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in lines:
        print("  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]))


def print_table(named_metrics):
    """Print {name: metrics} as one aligned table, a line a name."""
    print_cells({name: headline(metrics) for name, metrics in named_metrics.items()})


def picture(draw):
    """PNG bytes of what draw(axes) draws."""
    figure, png = Figure(figsize=(5.6, 3.9), dpi=160, layout="constrained"), io.BytesIO()
    draw(figure.subplots())
    figure.savefig(png, format="png")
    return png.getvalue()


def confusion_picture(confusion):
    """PNG bytes of the confusion matrix: a row a gold label, a column a predicted one; colour and percent are shares of the row."""
    columns = (*LABELS, "none")
    counts = np.array([[confusion[label][column] for column in columns] for label in LABELS])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def draw(axes):
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(LABELS)), LABELS, rotation=90, va="center")
        axes.set(xlabel="predicted", ylabel="gold")
        for (i, j), n in np.ndenumerate(counts):
            axes.text(j, i, f"{n:,}\n{100 * shares[i, j]:.1f}%", ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")

    return picture(draw)


STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --card: #f4f6f9; --page: #fff; --good: #137a4b;
  --bad: #b3382c }
@media (prefers-color-scheme: dark) { img { filter: invert(.92) hue-rotate(180deg); mix-blend-mode: lighten }
  :root { --ink: #e4e8ee; --soft: #9aa5b4; --line: #333b47; --card: #1b212a; --page: #12161c; --good: #4cc38a; --bad: #f0796b } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { margin: 0; font-size: 1.6rem } h2 { margin: 2.5rem 0 .75rem; font-size: 1.15rem } p { margin: .3rem 0 } summary { cursor: pointer }
.soft, th, dt { color: var(--soft); font-weight: 400 } .soft, table { font-size: .9rem }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin-top: 1.5rem }
.cards div, article { background: var(--card); border-radius: .6rem; padding: .8rem 1rem } .cards b { display: block; font-size: 1.7rem }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; overflow-wrap: normal }
th, td { padding: .4rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
img { display: block; width: 100%; max-width: 34rem; height: auto; border-radius: .4rem } article { margin: .75rem 0 }
dl { display: grid; grid-template-columns: 6.5rem 1fr; gap: .2rem .75rem; margin: 0 } dd { margin: 0; white-space: pre-wrap }
.good { color: var(--good); font-weight: 600 } .bad { color: var(--bad); font-weight: 600 }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr } dd { margin-bottom: .4rem } }
"""


def html_table(table):
    """A table that scrolls sideways on its own; every cell is escaped."""
    rows = ["".join(f"<{tag}>{html.escape(cell)}" for cell in line) for tag, line in zip(["th", *["td"] * len(table)], cells(table), strict=True)]
    return f"<div class=wide><table><tr>{'<tr>'.join(rows)}</table></div>"


def html_line(line):
    """One card for a line of predictions.jsonl, nothing edited, everything escaped."""
    answer = line["label"] or "none"
    fields = {"premise": line["premise"], "hypothesis": line["hypothesis"], "gold": line["gold_label"], "answer": answer,
              "reason": line["rationale"], "raw text": line.get("text") if line["label"] not in LABELS else "",
              **{f"human {i}": text for i, text in enumerate(line["references"], start=1)}}  # fmt: skip
    mark = {"answer": " class=good" if answer == line["gold_label"] else " class=bad"}
    return "<article><dl>" + "".join(f"<dt>{name}</dt><dd{mark.get(name, '')}>{html.escape(str(text))}</dd>"
                                     for name, text in fields.items() if text) + "</dl></article>"  # fmt: skip


def html_picture(png, alt):
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def report_page(result, lines, settings):
    """The report as one HTML page that needs nothing outside it.

    result: what eval.json holds; lines: the rows of predictions.jsonl; settings: {name: value} of the run."""
    name, reasons = html.escape(result["run"]), result["reasons"]
    figures = {"accuracy": (result["accuracy"], result["accuracy_interval"]), "macro F1": (result["macro_f1"], ()),
               "valid answers": (result["valid"], ())}  # fmt: skip
    if reasons:
        figures["ROUGE-L of the reasons"] = reasons["rougeL"]["f"], reasons["rougeL"]["interval"]
    parts = [f"<h1>{name}</h1><p class=soft>{html.escape(result['about'])}<div class=cards>"]
    for title, (value, interval) in figures.items():
        between = "95%: " + " to ".join(f"{100 * end:.1f}" for end in interval) if interval else ""
        parts.append(f"<div>{title}<b>{100 * value:.1f}%</b><span class=soft>{between}</span></div>")
    beside = {result["run"]: headline(result), **{who: headline(metrics) for who, metrics in result["baselines"].items()}}
    parts += ["</div><h2>Beside the baselines</h2>", html_table(beside), f"<p class=soft>In percent. {about_reasons(reasons)} {NOTE}",
              "<h2>Which labels are confused</h2>", html_picture(confusion_picture(result["confusion"]), "confusion matrix, gold by predicted"),
              "<h2>Label by label</h2>", html_table(result["labels"])]  # fmt: skip
    if result["kinds"]:
        parts += ["<h2>Kind by kind</h2>", html_table(result["kinds"])]
    lines = random.Random(result["seed"]).sample(lines, len(lines))
    groups = {"Right": [line for line in lines if line["label"] == line["gold_label"]],
              "Wrong": [line for line in lines if line["label"] in LABELS and line["label"] != line["gold_label"]],
              "No label to be found in the answer": [line for line in lines if line["label"] not in LABELS]}  # fmt: skip
    for title, group in groups.items():
        shown = "none" if not group else "all of them" if len(group) <= 10 else f"10 of {len(group):,}, drawn by chance"
        parts += [f"<h2>{title}: {shown}</h2>", *map(html_line, group[:10])]
    if settings:
        parts += ["<h2>Settings</h2><details><summary>every setting of the run</summary>",
                  html_table({key: {"value": str(value)} for key, value in settings.items()}), "</details>"]  # fmt: skip
    return ('<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">'
            f"<title>{name}: evaluation</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>\n")  # fmt: skip


# --- command line -----------------------------------------------------------------------------------------------------


def read_predictions(path):
    """The rows of a JSONL predictions file as dicts with id, label, rationale and text; DataError names the line that is wrong."""
    predictions = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                row = {"id": str(row["id"]), "label": row["label"], "rationale": row.get("rationale") or "", "text": row.get("text", "")}
            except (json.JSONDecodeError, TypeError, KeyError) as error:
                raise DataError(f"{path}, line {number}: not a JSON object with id, label and rationale: {error!r}") from None
            if not isinstance(row["label"], str | None) or not isinstance(row["rationale"], str):
                raise DataError(f"{path}, line {number}: label {row['label']!r} and rationale must be text; a label is one of "
                                f"{', '.join(LABELS)}, or null for an answer without one")  # fmt: skip
            predictions.append(row)
    return predictions


def load_rows(name, split, opt):
    """The rows to be scored, all of the split ("all": of the data) or a seeded sample of --limit, and the ids that the sample left out."""
    examples = read_examples(name, split=None if split == "all" else split)
    kept = range(len(examples))
    if 0 < opt["limit"] < len(examples):
        kept = sorted(random.Random(opt["seed"]).sample(kept, opt["limit"]))
    rows = [examples[i] for i in kept]
    return rows, {e.id for e in examples} - {e.id for e in rows}


def match_rows(path, opt):
    """The rows that the predictions file `path` answers: (split, examples, predictions). Without --split they are the test rows if
    every prediction is for one of them, else all rows; predictions for rows that --limit leaves out are left out too."""
    predictions = read_predictions(path)
    if not (split := opt["split"]):
        tested = {e.id for e in read_examples(opt["data"], split="test")}
        split = "test" if all(prediction["id"] in tested for prediction in predictions) else "all"
    examples, left_out = load_rows(opt["data"], split, opt)
    return split, examples, [prediction for prediction in predictions if prediction["id"] not in left_out]


def answer_rows(path, opt):
    """Let the run in folder `path` answer its own data or --data: (name of the data, split, examples, predictions, the run's settings)."""
    apprentice = Apprentice.load(path, device=opt["device"])
    settings = apprentice.run.get("settings", {})
    name, split = opt["data"] or settings.get("data"), opt["split"] or "test"
    if not name:
        raise DataError(f"{path} does not say which data it was trained on: name some with --data=FILE")
    examples, _ = load_rows(name, split, opt)
    print(f"{path} answers {len(examples):,} rows of {name}, split {split}")
    answers = apprentice.answer([(e.premise, e.hypothesis) for e in examples], opt["batch_size"], opt["num_beams"], progress=True)
    return name, split, examples, [{"id": e.id, **asdict(answer)} for e, answer in zip(examples, answers, strict=True)], settings


def write_results(path, result, examples, predictions, settings):
    """Write the files that the module docstring names for the run folder or predictions file `path`, and say where they are."""
    path, lines = Path(path), join(examples, predictions)
    files = {"eval.json": (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode(),
             "report.html": report_page(result, [line for line in lines if line["gold_label"]], settings).encode()}  # fmt: skip
    if path.is_dir():
        files["predictions.jsonl"] = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        files["confusion.png"] = confusion_picture(result["confusion"])
    places = {path / name if path.is_dir() else path.with_name(f"{path.stem}.{name}"): content for name, content in files.items()}
    for place, content in places.items():
        place.write_bytes(content)
    print("wrote", *places)


def main(argv=None):
    """`python evaluate.py RUN [RUN ...] [--data=FILE] [--split=test] ...`"""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or "-h" in argv or "--help" in argv:
        print(__doc__)
        return
    words, opt = options(argv, data="", split="", limit=0, seed=0, num_beams=1, batch_size=64, device="cpu")
    for path in map(Path, words):  # before the first run has answered for an hour
        if not path.is_dir() and not (path.suffix == ".jsonl" and path.is_file()):
            raise DataError(f"{path} is neither a run folder nor a predictions file (*.jsonl)")
        if path.is_file() and not opt["data"]:
            raise DataError(f"{path} holds predictions: say with --data=FILE which data they answer")
    for name, least in (("limit", 0), ("seed", 0), ("num_beams", 1), ("batch_size", 1)):
        if opt[name] < least:
            raise DataError(f"--{name}={opt[name]} is below {least}")
    if not words:
        raise DataError("name a run folder or a predictions file: python evaluate.py RUN [RUN ...]")

    baselines, done = {}, []
    for path in map(Path, words):
        if path.is_dir():
            name, split, examples, predictions, settings = answer_rows(path, opt)
        else:
            name, settings, (split, examples, predictions) = opt["data"], {}, match_rows(path, opt)
        metrics = evaluate(examples, predictions, opt["seed"])
        if (name, split) not in baselines:
            baselines[name, split] = reference_baselines(examples, opt["seed"])
        sample = f" (a sample, seed {opt['seed']})" if opt["limit"] else ""
        about = (f"{metrics['rows']:,} rows{sample} of {name}, split {split}, {metrics['premises']:,} premises"
                 + (f", {metrics['unlabelled']:,} rows without a gold label left out" if metrics["unlabelled"] else ""))  # fmt: skip
        result = {"run": str(path), "about": about, "data": name, "split": split,
                  **{key: opt[key] for key in ("limit", "seed", "num_beams")}, **metrics, "baselines": baselines[name, split]}  # fmt: skip
        done.append((path, result, examples, predictions, settings))
    for rows in baselines:
        shown = {result["run"]: result for _, result, *_ in done if (result["data"], result["split"]) == rows}
        print(f"\n{next(iter(shown.values()))['about']}")
        print_table({**shown, **baselines[rows]})
    print(f"\nIn percent. {NOTE}")
    for path, result, *rest in done:
        print(f"{path}: {about_reasons(result['reasons'])} {len(result['unparseable']):,} answers without a label")
        write_results(path, result, *rest)


if __name__ == "__main__":
    run_main(main)
