"""Is the answer right, and does the reason read like a human's? All metrics of one run, or of several side by side.

    python evaluate.py RUN [RUN ...]                     answer the test rows of the run's own data and score the answers
    python evaluate.py RUN --data=FILE --split=all       other rows: a file or a name that data.py knows; a split of it, or all
    python evaluate.py answers.jsonl --data=FILE         score a predictions file (a line a row: id, label, rationale) of any origin
        --limit=N        a seeded sample of N rows               --seed=0         of the sample, the bootstrap and the examples shown
        --num_beams=1    beams of the decoder                    --batch_size=64  rows answered at once         --device=cpu or cuda

A run folder gets eval.json (every figure), predictions.jsonl (a line a row, the reference beside the answer), confusion.png and
report.html, one page that works offline. A predictions file NAME.jsonl gets NAME.eval.json and NAME.report.html beside it.
Answering takes nearly all of the time; to score the 9,842 rows of the e-SNLI development split takes 4 seconds, the baselines 6 more.

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

# --- ROUGE -----------------------------------------------------------------------------------------------------------
# Equal to Google's rouge-score 0.1.2 (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"). Its stemmer is Porter's
# (1980, "An algorithm for suffix stripping") with the extensions that NLTK switches on by default.

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
IRREGULAR = dict(skies="sky", sky="sky", dying="die", lying="lie", tying="tie", news="news", innings="inning", inning="inning",
                 outings="outing", outing="outing", cannings="canning", canning="canning", howe="howe",
                 proceed="proceed", exceed="exceed", succeed="succeed")
STEP_2 = dict(ational="ate", tional="tion", enci="ence", anci="ance", izer="ize", bli="ble", entli="ent", eli="e", ousli="ous",
              ization="ize", ation="ate", ator="ate", alism="al", iveness="ive", fulness="ful", ousness="ous", aliti="al",
              iviti="ive", biliti="ble", fulli="ful")
STEP_3 = dict(icate="ic", ative="", alize="al", iciti="ic", ical="ic", ful="", ness="")
STEP_4 = dict.fromkeys("al ance ence er ic able ible ant ement ment ent ou ism ate iti ous ive ize".split(), "")


def _shape(word):
    """'c' for each consonant, 'v' for each vowel; y is a vowel after a consonant: "syzygy" -> "cvcvcv", "toy" -> "cvc"."""
    shape = ""
    for letter in word:
        vowel = letter in "aeiou" or (letter == "y" and shape.endswith("c"))
        shape += "v" if vowel else "c"
    return shape


def _measure(word):
    """Porter's m: how often a vowel is followed by a consonant, about the number of syllables before the last."""
    return _shape(word).count("vc")


def _ends_short(word):
    """Porter's *o: consonant, vowel, consonant other than w, x, y ("hop"); NLTK adds two-letter words such as "at"."""
    shape = _shape(word)
    return shape == "vc" or (shape.endswith("cvc") and word[-1] not in "wxy")


def _swap_suffix(word, suffixes, above):
    """Swap the first suffix that fits, if the measure of what stands before it exceeds `above`; no later suffix is tried."""
    for suffix, replacement in suffixes.items():
        if word.endswith(suffix):
            start = word[:-len(suffix)]
            return start + replacement if _measure(start) > above else word
    return word


def _strip_past(word):                                         # step 1b
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]      # died -> die, but spied -> spi
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for suffix in ("ed", "ing"):
        start = word[:-len(suffix)]
        if word.endswith(suffix) and "v" in _shape(start):
            break
    else:
        return word
    if start.endswith(("at", "bl", "iz")):                     # conflated -> conflate
        return start + "e"
    if start[-1] == start[-2:-1] and _shape(start)[-1] == "c":  # hopping -> hop, but falling -> fall
        return start if start[-1] in "lsz" else start[:-1]
    return start + "e" if _measure(start) == 1 and _ends_short(start) else start


def _strip_derivation(word):                                   # step 2
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        return _strip_derivation(word[:-2])
    if word.endswith("logi"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    return _swap_suffix(word, STEP_2, above=0)


@functools.lru_cache(maxsize=1 << 17)
def porter_stem(word):
    """The stem of a lower-case word: "skating" -> "skate", "happily" -> "happili", "dying" -> "die"."""
    if word in IRREGULAR or len(word) <= 2:
        return IRREGULAR.get(word, word)
    if word.endswith("ies"):                                   # step 1a: dies -> die, ponies -> poni, cats -> cat
        word = word[:-1] if len(word) == 4 else word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-2] if word.endswith("sses") else word[:-1]
    word = _strip_past(word)
    if word.endswith("y") and len(word) > 2 and _shape(word)[-2] == "c":   # step 1c: happy -> happi, but enjoy stays
        word = word[:-1] + "i"
    word = _swap_suffix(_strip_derivation(word), STEP_3, above=0)
    if word.endswith("ion"):                                   # step 4: adoption -> adopt, but onion stays
        word = word[:-3] if _measure(word[:-3]) > 1 and word[-4] in "st" else word
    else:
        word = _swap_suffix(word, STEP_4, above=1)
    if word.endswith("e"):                                     # step 5a: probate -> probat, cease -> ceas, but rate stays
        measure = _measure(word[:-1])
        word = word[:-1] if measure > 1 or (measure == 1 and not _ends_short(word[:-1])) else word
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word   # step 5b: controll -> control


def rouge_tokens(text, stem=True):
    """Runs of a-z and 0-9 of the lower-cased text; words of four letters and more are stemmed. "A café!" -> ["a", "caf"]."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return [porter_stem(word) if len(word) > 3 else word for word in words] if stem else words


@functools.lru_cache(maxsize=1 << 17)       # the references of a row are met again by every baseline and every run
def _rouge_parts(text, stem):
    """A text as ROUGE sees it: tokens, unigram counts, bigram counts, and the tokens of each of its lines."""
    tokens = rouge_tokens(text, stem)
    lines = [rouge_tokens(line, stem) for line in text.split("\n")] if "\n" in text else [tokens]
    return tokens, Counter(tokens), Counter(zip(tokens, tokens[1:], strict=False)), lines


def _scores(hits, predicted, wanted):
    """(precision, recall, F) of `hits` shared items among `predicted` and `wanted` ones; 0 where a side is empty."""
    precision, recall = hits / max(predicted, 1), hits / max(wanted, 1)
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def _shared(counts, other):
    """The size of the intersection of two multisets: each item counts as often as it stands in both."""
    return sum(min(count, other[item]) for item, count in counts.items() if item in other)


def _lcs_length(a, b):
    """Length of the longest common subsequence by bit-parallel dynamic programming (Hyyrö 2004, "Bit-parallel LCS-length
    computation revisited"): bit i of `row` is 0 where the LCS grows at token i of `a`; one step a token of `b` does a whole row."""
    places = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    everywhere = row = (1 << len(a)) - 1
    for token in b:
        matches = row & places.get(token, 0)
        row = ((row + matches) | (row - matches)) & everywhere
    return len(a) - row.bit_count()


def _lcs_places(reference, prediction):
    """Indices into `reference` of one longest common subsequence: the one that rouge-score walks back to. Where both ways back
    are equally long it drops a token of the reference first, and that choice shows in the union over sentences."""
    table = [[0] * (len(prediction) + 1)]                      # table[i][j]: LCS length of the first i and the first j tokens
    for token in reference:
        above, row = table[-1], [0]
        for j, other in enumerate(prediction):
            row.append(above[j] + 1 if token == other else max(above[j + 1], row[j]))
        table.append(row)
    i, j, places = len(reference), len(prediction), set()
    while i and j:
        if reference[i - 1] == prediction[j - 1]:
            i, j = i - 1, j - 1
            places.add(i)
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return places


def _union_lcs_hits(reference_lines, prediction_lines):
    """Summary-level LCS: of each reference line the tokens in its LCS with any predicted line, none more often than it was predicted."""
    left, hits = Counter(token for line in prediction_lines for token in line), 0
    for line in reference_lines:
        for i in set().union(*(_lcs_places(line, other) for other in prediction_lines)):
            hits += left[line[i]] > 0
            left[line[i]] -= 1
    return hits


def rouge(prediction, references, stem=True):
    """ROUGE of one text: {"rouge1": (P, R, F), "rouge2": ..., "rougeL": ..., "rougeLsum": ...}, fractions.

    references: a list of strings, or one string. Each metric takes P and R from the reference with its own best F (the first of
    equals), as rouge-score's score_multi does. rougeLsum reads lines as sentences. ValueError if there is no reference.
    """
    references = [references] if isinstance(references, str) else references
    if not references:
        raise ValueError("rouge needs at least one reference")
    tokens, unigrams, bigrams, lines = _rouge_parts(prediction, stem)
    best = {}
    for reference in references:
        wanted, wanted_unigrams, wanted_bigrams, wanted_lines = _rouge_parts(reference, stem)
        longest = _lcs_length(wanted, tokens)
        union = longest if len(lines) == len(wanted_lines) == 1 else _union_lcs_hits(wanted_lines, lines)
        found = (_scores(_shared(unigrams, wanted_unigrams), len(tokens), len(wanted)),
                 _scores(_shared(bigrams, wanted_bigrams), len(tokens) - 1, len(wanted) - 1),
                 _scores(longest, len(tokens), len(wanted)),
                 _scores(union, len(tokens), len(wanted)))
        for kind, scores in zip(ROUGE_KINDS, found, strict=True):
            if kind not in best or scores[2] > best[kind][2]:
                best[kind] = scores
    return best


# --- BLEU ------------------------------------------------------------------------------------------------------------
# Equal to sacrebleu's corpus score with its defaults (Papineni et al. 2002; Post 2018, "A Call for Clarity in Reporting BLEU
# Scores"): tokens of the mteval-v13a script, n-grams to 4, the closest reference length, exponential smoothing of empty matches.

BLEU_RULES = (                                                 # applied in this order, each to the text that the last one left
    (re.compile("([" + re.escape("".join(set(string.punctuation) - set("',-."))) + "])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),                # full stop and comma stay inside a number only: 1,000.5
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


@functools.lru_cache(maxsize=1 << 17)
def _bleu_tokens(text):
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, replacement in BLEU_RULES:
        text = pattern.sub(replacement, text)
    return text.split()


def _ngrams(tokens, n):
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def bleu(predictions, references):
    """Corpus BLEU from 0 to 100. predictions: strings; references: a list of strings (or one string) for each of them.

    ValueError if the two differ in length, are empty, or a prediction has no reference.
    """
    references = [[texts] if isinstance(texts, str) else texts for texts in references]
    if not predictions or len(predictions) != len(references) or not all(references):
        raise ValueError(f"bleu needs a non-empty list of references for each prediction: {len(predictions)} predictions, "
                         f"{len(references)} lists of references, {sum(not r for r in references)} of them empty")
    length = wanted_length = 0
    hits, totals = [0] * 4, [0] * 4
    for prediction, texts in zip(predictions, references, strict=True):
        tokens, sides = _bleu_tokens(prediction), [_bleu_tokens(text) for text in texts]
        length += len(tokens)
        wanted_length += min((len(side) for side in sides), key=lambda size: (abs(size - len(tokens)), size))
        for n in range(1, 5):
            counts = _ngrams(tokens, n)
            totals[n - 1] += max(len(tokens) - n + 1, 0)
            if counts:
                wanted = functools.reduce(Counter.__or__, (_ngrams(side, n) for side in sides))   # the largest count of any reference
                hits[n - 1] += _shared(counts, wanted)
    if not all(totals) or not any(hits):
        return 0.0
    log_precision, smoothing = 0.0, 1
    for hit, total in zip(hits, totals, strict=True):
        if not hit:
            smoothing *= 2                                     # the k-th order without a match counts as 1 / 2^k matches
        log_precision += math.log((hit or 1 / smoothing) / total) / 4
    return 100 * math.exp(log_precision + min(0.0, 1 - wanted_length / length))


# --- metrics of labels and reasons ------------------------------------------------------------------------------------

def bootstrap_interval(values, clusters, draws=2000, seed=0):
    """The 95% percentile interval (low, high) of the mean of `values` (N numbers), resampling whole clusters (N names).

    The rows of one premise succeed and fail together (9,824 test rows share 3,323 premises): drawing rows one by one would
    make the interval too narrow. Efron & Tibshirani 1993, chapter 8; Field & Welsh 2007 for clusters.
    """
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    sums, sizes = np.bincount(cluster, weights=np.asarray(values, dtype=float)), np.bincount(cluster)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for i in range(draws):
        drawn = rng.integers(len(sizes), size=len(sizes))      # as many clusters as there are, with replacement
        means[i] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def label_metrics(gold, predicted):
    """Accuracy, valid-answer rate, precision, recall and F1 of each label, macro F1, confusion[gold][predicted or "none"].

    gold: strings of LABELS; predicted: the same or anything else, which counts as "none" and so as wrong.
    macro_f1 is the mean over the labels that occur in `gold`. A ratio 0/0 is 0, as scikit-learn has it.
    """
    confusion = {label: dict.fromkeys((*LABELS, "none"), 0) for label in LABELS}
    for want, got in zip(gold, predicted, strict=True):
        confusion[want][got if got in LABELS else "none"] += 1
    labels = {}
    for label in LABELS:
        precision, recall, f1 = _scores(confusion[label][label], sum(row[label] for row in confusion.values()),
                                        sum(confusion[label].values()))
        labels[label] = {"precision": precision, "recall": recall, "f1": f1, "rows": sum(confusion[label].values())}
    seen = [scores["f1"] for scores in labels.values() if scores["rows"]]
    return {"accuracy": sum(confusion[label][label] for label in LABELS) / len(gold),
            "valid": (len(gold) - sum(row["none"] for row in confusion.values())) / len(gold),
            "macro_f1": sum(seen) / len(seen), "labels": labels, "confusion": confusion}


def reason_metrics(reasons, references, clusters, seed=0):
    """Plain means of ROUGE (with stemming) over the rows, the interval of ROUGE-L's F, and BLEU. A row without reference is left out.

    reasons: N strings; references: N lists of strings; clusters: N premises. None if there is nothing to score: no reference at
    all, or not one reason (a run that gives labels only).
    """
    rows = [(reason, list(texts), cluster) for reason, texts, cluster in zip(reasons, references, clusters, strict=True) if texts]
    if not any(reason.strip() for reason, _, _ in rows):
        return None
    reasons, references, clusters = zip(*rows, strict=True)
    pairs = tqdm(rows, desc="ROUGE", unit="text", leave=False, disable=len(rows) < 2000)
    scores = [rouge(reason, texts) for reason, texts, _ in pairs]
    sizes = sorted({len(texts) for texts in references})
    metrics = {"rows": len(rows), "references": str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}", "stemming": True}
    for kind in ROUGE_KINDS:
        means = np.mean([row[kind] for row in scores], axis=0).tolist()
        metrics[kind] = dict(zip(("precision", "recall", "f"), means, strict=True))
    metrics["rougeL"]["interval"] = bootstrap_interval([row["rougeL"][2] for row in scores], clusters, seed=seed)
    metrics["bleu"] = bleu(reasons, references)
    return metrics


def evaluate(examples, predictions, seed=0):
    """All metrics of `predictions`, dicts with id, label (of LABELS, or None) and rationale, on `examples` (data.Example).

    Every example with a gold label is scored and needs exactly one prediction, found by its id; an answer that could not be
    parsed (label None) is wrong and stands in "unparseable". Examples without a gold label are counted in "unlabelled".
    Returns a dict that json can write. DataError if the two do not match or nothing can be scored.
    """
    answers, rows = {p["id"]: p for p in predictions}, {e.id for e in examples}
    for what, wrong in (("rows of the data share their id with another row", len(examples) - len(rows)),
                        ("predictions share their id with another one", len(predictions) - len(answers)),
                        ("predictions are for no row of the data", [i for i in answers if i not in rows]),
                        ("rows of the data have no prediction", [e.id for e in examples if e.id not in answers])):
        if wrong:
            first = "" if isinstance(wrong, int) else f", the first has the id {wrong[0]!r}"
            raise DataError(f"{wrong if isinstance(wrong, int) else len(wrong)} {what}{first}; was another split or sample answered?")
    scored = [example for example in examples if example.label is not None]
    if not scored:
        raise DataError("no row of the data has a gold label, so nothing can be scored")
    answers = [answers[example.id] for example in scored]
    gold, predicted = [example.label for example in scored], [answer["label"] for answer in answers]
    right = [want == got for want, got in zip(gold, predicted, strict=True)]
    premises = [example.premise for example in scored]
    kinds = {kind: [r for r, e in zip(right, scored, strict=True) if e.kind == kind] for kind in sorted({e.kind for e in scored})}
    return {"rows": len(scored), "unlabelled": len(examples) - len(scored), "premises": len(set(premises)),
            **label_metrics(gold, predicted), "accuracy_interval": bootstrap_interval(right, premises, seed=seed),
            "unparseable": [answer["id"] for answer in answers if answer["label"] not in LABELS],
            "kinds": {kind: {"rows": len(r), "accuracy": sum(r) / len(r)} for kind, r in kinds.items() if any(kinds)},
            "reasons": reason_metrics([a["rationale"] for a in answers], [e.explanations for e in scored], premises, seed)}


def template_reason(example):
    """A reason made of the gold label and the two sentences: no thought, and yet as good as a human's in n-grams."""
    premise, hypothesis = (text[:1].lower() + text[1:].strip().rstrip(".") for text in (example.premise, example.hypothesis))
    return {"entailment": f"{hypothesis} because {premise}.",
            "neutral": f"Just because {premise} does not mean that {hypothesis}.",
            "contradiction": f"It cannot be that {hypothesis} if {premise}."}[example.label]


def reference_baselines(examples, seed=0):
    """What a reader needs beside a model's figures on the same rows: {name: metrics}, each with parts of what evaluate() returns.

    "human" scores the first explanation against the others, one reference fewer than the rest, which lowers it.
    """
    scored = [example for example in examples if example.label is not None]
    gold, premises, references = ([e.label for e in scored], [e.premise for e in scored], [e.explanations for e in scored])
    majority = Counter(gold).most_common(1)[0][0]
    return {
        f"majority class ({majority})": label_metrics(gold, [majority] * len(gold)),
        "copy the hypothesis": {"reasons": reason_metrics([e.hypothesis for e in scored], references, premises, seed)},
        "template of the gold label": {"reasons": reason_metrics([template_reason(e) for e in scored], references, premises, seed)},
        "human, against the others": {"reasons": reason_metrics([(*e.explanations, "")[0] for e in scored],
                                                                [texts[1:] for texts in references], premises, seed)}}


# --- the table, the picture and the page ------------------------------------------------------------------------------

COLUMNS = ("accuracy", "95% interval", "valid", "macro F1", "ROUGE-1", "ROUGE-2", "ROUGE-L", "Lsum", "BLEU")


def table_cells(metrics):
    """The cells under COLUMNS for what evaluate() or a baseline holds: percent with one decimal, a dash where there is nothing."""
    low, high = metrics.get("accuracy_interval", (None, None))
    shares = [metrics.get(name) for name in ("accuracy", "valid", "macro_f1")]
    reasons = metrics.get("reasons")
    shares += [reasons[kind]["f"] if reasons else None for kind in ROUGE_KINDS] + [reasons["bleu"] / 100 if reasons else None]
    cells = ["–" if share is None else f"{100 * share:.1f}" for share in shares]
    return [cells[0], "–" if low is None else f"{100 * low:.1f} to {100 * high:.1f}", *cells[1:]]


BASELINES_NOTE = ("Intervals are bootstrapped over premises. N-gram scores prove little: compare the copy and the template. "
                  "The human line has one reference fewer than the others, which lowers it.")


def about_reasons(reasons):
    """The line that says how ROUGE and BLEU were taken; reasons: a result of reason_metrics."""
    if not reasons:
        return "There are no reasons to score."
    return (f"ROUGE: F of the best of {reasons['references']} references, Porter stemming, plain mean of {reasons['rows']:,} rows. "
            "BLEU: of the whole corpus.")


def print_table(named_metrics):
    """Print {name: metrics} as one aligned table, a line a name."""
    lines = [("", *COLUMNS)] + [(name, *table_cells(metrics)) for name, metrics in named_metrics.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in lines:
        print("  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]))


def confusion_picture(confusion):
    """PNG bytes of the confusion matrix: a row a gold label, a column a predicted one; colour and percent are shares of the row."""
    columns = (*LABELS, "none")
    counts = np.array([[confusion[label][column] for column in columns] for label in LABELS])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(5.6, 3.9), dpi=160, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(LABELS)), LABELS, rotation=90, va="center")
    axes.set(xlabel="predicted", ylabel="gold")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (i, j), count in np.ndenumerate(counts):
        axes.text(j, i, f"{count:,}\n{100 * shares[i, j]:.1f}%", ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


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
th:first-child, td:first-child { text-align: left; padding-left: 0 } .model tr:nth-child(2) td { font-weight: 600 }
img { display: block; width: 100%; max-width: 34rem; height: auto; border-radius: .4rem } article { margin: .75rem 0 }
dl { display: grid; grid-template-columns: 6.5rem 1fr; gap: .2rem .75rem; margin: 0 } dd { margin: 0; white-space: pre-wrap }
.good { color: var(--good); font-weight: 600 } .bad { color: var(--bad); font-weight: 600 }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr } dd { margin-bottom: .4rem } }
"""


def _html_table(header, lines):
    """A table that scrolls sideways on its own; every cell is escaped. Under "model" the first line is the model's own, in bold."""
    rows = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) for cells in lines]
    return (f'<div class=wide><table class={header[0]}><tr>' + "".join(f"<th>{name}</th>" for name in header)
            + "".join(f"<tr>{row}</tr>" for row in rows) + "</table></div>")


def _html_answer(line):
    """One card for a line of predictions.jsonl, nothing edited, everything escaped."""
    fields = [("premise", line["premise"]), ("hypothesis", line["hypothesis"]), ("gold", line["gold_label"]),
              ("answer", line["label"]), ("reason", line["rationale"]), ("raw text", line["text"] if line["label"] not in LABELS else "")]
    fields += [(f"human {i}", text) for i, text in enumerate(line["references"], start=1)]
    mark = {"answer": " class=good" if line["label"] == line["gold_label"] else " class=bad"}
    return "<article><dl>" + "".join(f"<dt>{name}</dt><dd{mark.get(name, '')}>{html.escape(text or 'none')}</dd>"
                                     for name, text in fields if text or name == "answer") + "</dl></article>"


def report_page(result, lines, settings, picture):
    """The report as one HTML page that needs nothing outside it.

    result: what eval.json holds; lines: the rows of predictions.jsonl; settings: {name: value} of the run; picture: PNG bytes.
    """
    name, reasons = html.escape(result["run"]), result["reasons"]
    cards = [("accuracy", result["accuracy"], result["accuracy_interval"]), ("macro F1", result["macro_f1"], ()),
             ("valid answers", result["valid"], ())]
    cards += [("ROUGE-L of the reasons", reasons["rougeL"]["f"], reasons["rougeL"]["interval"])] if reasons else []
    parts = [f"<h1>{name}</h1><p class=soft>{html.escape(result['about'])}<div class=cards>"]
    for title, value, interval in cards:
        between = " to ".join(f"{100 * end:.1f}" for end in interval)
        parts.append(f"<div>{title}<b>{100 * value:.1f}%</b><span class=soft>{between and '95%: ' + between}</span></div>")
    table = {result["run"]: result, **result["baselines"]}
    parts += ["</div><h2>Beside the baselines</h2>",
              _html_table(("model", *COLUMNS), [(who, *table_cells(metrics)) for who, metrics in table.items()]),
              f"<p class=soft>In percent. {about_reasons(reasons)} {BASELINES_NOTE}",
              '<h2>Which labels are confused</h2><img alt="confusion matrix, gold by predicted" '
              f'src="data:image/png;base64,{base64.b64encode(picture).decode()}"><h2>Label by label</h2>',
              _html_table(("label", "precision", "recall", "F1", "rows"), [
                  (label, *(f"{100 * of[x]:.1f}" for x in ("precision", "recall", "f1")), of["rows"])
                  for label, of in result["labels"].items()])]
    if result["kinds"]:
        parts += ["<h2>Kind by kind</h2>", _html_table(("kind", "accuracy", "rows"), [
            (kind, f"{100 * of['accuracy']:.1f}", of["rows"]) for kind, of in result["kinds"].items()])]
    lines = random.Random(result["seed"]).sample(lines, len(lines))
    groups = {"Right": [line for line in lines if line["label"] == line["gold_label"]],
              "Wrong": [line for line in lines if line["label"] in LABELS and line["label"] != line["gold_label"]],
              "No label to be found in the answer": [line for line in lines if line["label"] not in LABELS]}
    for title, group in groups.items():
        shown = "none" if not group else "all of them" if len(group) <= 10 else f"10 of {len(group):,}, drawn by chance"
        parts += [f"<h2>{title}: {shown}</h2>", *map(_html_answer, group[:10])]
    if settings:
        parts += ["<h2>Settings</h2><details><summary>every setting of the run</summary>",
                  _html_table(("setting", "value"), settings.items()), "</details>"]
    return ('<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">'
            f"<title>{name}: evaluation</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>\n")


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
                                f"{', '.join(LABELS)}, or null for an answer without one")
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
    predictions = [{"id": e.id, **asdict(answer)} for e, answer in zip(examples, answers, strict=True)]
    return name, split, examples, predictions, settings


def write_results(path, result, examples, predictions, settings):
    """Write the files that the module docstring names for the run folder or predictions file `path`, and say where they are."""
    picture, answers = confusion_picture(result["confusion"]), {prediction["id"]: prediction for prediction in predictions}
    lines = [{**answers[e.id], "gold_label": e.label, "references": e.explanations, "premise": e.premise, "hypothesis": e.hypothesis,
              "kind": e.kind} for e in examples]
    files = {"eval.json": (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode(),
             "report.html": report_page(result, [line for line in lines if line["gold_label"]], settings, picture).encode()}
    if path.is_dir():
        files["predictions.jsonl"] = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        files["confusion.png"] = picture
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
    for path in map(Path, words):                              # before the first run has answered for an hour
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
                 + (f", {metrics['unlabelled']:,} rows without a gold label left out" if metrics["unlabelled"] else ""))
        result = {"run": str(path), "about": about, "data": name, "split": split,
                  **{key: opt[key] for key in ("limit", "seed", "num_beams")}, **metrics, "baselines": baselines[name, split]}
        done.append((path, result, examples, predictions, settings))
    for rows in baselines:
        shown = {result["run"]: result for _, result, *_ in done if (result["data"], result["split"]) == rows}
        print(f"\n{next(iter(shown.values()))['about']}")
        print_table({**shown, **baselines[rows]})
    print(f"\nIn percent. {BASELINES_NOTE}")
    for parts in done:
        print(f"{parts[1]['run']}: {about_reasons(parts[1]['reasons'])} {len(parts[1]['unparseable']):,} answers without a label")
        write_results(*parts)


if __name__ == "__main__":
    run_main(main)
