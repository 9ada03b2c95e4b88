"""Is the answer right, does the reason read like a human's, and is it the reason? One run, or several side by side.

    python evaluate.py RUN [RUN ...]                     answer the test rows of the run's own data and score the answers
    python evaluate.py RUN --data=FILE --split=all       other rows: a file or a name that data.py knows; a split of it, or all
    python evaluate.py answers.jsonl --data=FILE         score a predictions file (a line a row: id, label, rationale) of any origin
    python evaluate.py --data=FILE                       no run: what the rows give away, and how well people agree with each other
        --limit=N        a seeded sample of N rows, without a run the first N         --seed=0   of all that is drawn
        --probes=100     rows on which the model is asked again, for its faithfulness and calibration
        --num_beams=1    of the decoder                  --device=cpu    --landscape=25   the loss around the weights, points a side
        --simulator=RUN  that configs/simulator.py made of the answers, for LAS; several with commas, each for its own run
        --bert_score=MODEL   BERTScore by the encoder of a run, checkpoint or hub name; --layer=N of it (0: all), --idf, --rescale by a baseline

A run folder gets eval.json (every figure), predictions.jsonl (a line a row with a gold label, the reference beside the answer),
confusion.png and report.html, one page that works offline; a predictions file NAME.jsonl gets NAME.eval.json and NAME.report.html.
Answers are kept in RUN/answers.jsonl and used again, after an interruption too, for as long as weights, vocabulary, settings and
num_beams are the same. A row whose answer names no label is wrong. Shares are fractions in eval.json, percent in print. A minute for
a tiny model. Read next: bench.py (what it costs).
"""

import base64
import contextlib
import functools
import html
import io
import itertools
import json
import math
import random
import re
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from tqdm import tqdm

from apprentice import EOS, Apprentice, cells, options, print_table
from data import FRAMES, LABELS, DataError, Example, borrowed, collate, encode_examples, read_examples, run_main, split_of, stream_examples
from model import T5, CheckpointError, fetch, replace_file, weights_digest

# --- n-gram scores: ROUGE and BLEU ------------------------------------------------------------------------------------
# ROUGE equals Google's rouge-score 0.1.2 (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"); its stemmer is Porter's
# (1980, "An algorithm for suffix stripping") with the extensions that NLTK switches on by default.

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
IRREGULAR = dict(zip("skies dying lying tying innings outings cannings".split(), "sky die lie tie inning outing canning".split(), strict=True))
IRREGULAR |= {word: word for word in "sky news inning outing canning howe proceed exceed succeed".split()}
STEPS = (  # Porter's steps 2, 3, 4: the measure that the stem must exceed; "suffix:replacement", where a letter before + stays and must be there
    (0, "alli:al"), (0, "ational:ate tional:tion enci:ence anci:ance izer:ize bli:ble entli:ent eli:e ousli:ous ization:ize ation:ate ator:ate alism:al "
        "iveness:ive fulness:ful ousness:ous aliti:al iviti:ive biliti:ble fulli:ful l+ogi:og"),
    (0, "icate:ic ative: alize:al iciti:ic ical:ic ful: ness:"),
    (1, "al: ance: ence: er: ic: able: ible: ant: ement: ment: ent: s+ion: t+ion: ou: ism: ate: iti: ous: ive: ize:"))

def _shape(word):
    """'c' for each consonant, 'v' for each vowel; y is a vowel after a consonant: "syzygy" is "cvcvcv", "toy" is "cvc". Porter's measure of
    a word is its count of "vc", about its syllables but the last; short words end in cvc, not on w, x, y ("hop"), or are a mere vc ("at")."""
    shape = ""
    for letter in word:
        shape += "v" if letter in "aeiou" or (letter == "y" and shape.endswith("c")) else "c"
    return shape, shape.count("vc"), shape == "vc" or (shape.endswith("cvc") and word[-1] not in "wxy")

def _rewrite(word, above, rules):
    """Apply the first rule whose suffix fits, if the measure of what stands before it exceeds `above`; no later rule is tried."""
    for suffix, replacement in (rule.split(":") for rule in rules.split()):
        if word.endswith(suffix.replace("+", "")):
            stem = word.removesuffix(suffix.split("+")[-1])
            return stem + replacement if _shape(stem)[1] > above else word
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
    elif past and "v" in _shape(past[1])[0]:
        word = past[1]
        shape, measure, short = _shape(word)
        if word.endswith(("at", "bl", "iz")) or (measure == 1 and short):
            word += "e"
        elif word[-1] == word[-2:-1] and shape.endswith("c") and word[-1] not in "lsz":
            word = word[:-1]
    if word.endswith("y") and len(word) > 2 and _shape(word)[0][-2] == "c":  # step 1c: happy -> happi, but enjoy stays
        word = word[:-1] + "i"
    for above, rules in STEPS:
        word = _rewrite(word, above, rules)
    _, measure, short = _shape(word[:-1])
    if word.endswith("e") and measure > short:  # step 5: probate -> probat, controlled -> control, but rate stays
        word = word[:-1]
    return word[:-1] if word.endswith("ll") and _shape(word[:-1])[1] > 1 else word

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

def _lcs(reference, prediction):
    """Indices into `reference` of a longest common subsequence: of two equally long ways back, the one that drops a token of the reference first, as
    rouge-score does. Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): bit i of row j is 0 where token i makes it longer."""
    places, full = {}, (1 << len(reference)) - 1
    for i, token in enumerate(reference):
        places[token] = places.get(token, 0) | 1 << i
    rows = [full]
    for token in prediction:
        matches = rows[-1] & places.get(token, 0)
        rows.append(((rows[-1] + matches) | (rows[-1] - matches)) & full)
    i, j, found = len(reference), len(prediction), set()
    while i and j:
        match = reference[i - 1] == prediction[j - 1]
        if match:
            found.add(i - 1)
        i, j = i - (match or rows[j] >> (i - 1) & 1), j - (match or not rows[j] >> (i - 1) & 1)
    return found

def rouge(prediction, references, stem=True):
    """ROUGE of one text: {"rouge1": (P, R, F), "rouge2": ..., "rougeL": ..., "rougeLsum": ...}, fractions.
    references: strings, or one string; ValueError if there is none. Each metric takes P and R from the reference with its own best F (the
    first of equals). rougeLsum reads lines as sentences: a reference's line gives the tokens in its LCS with any line of the prediction."""
    if not references:
        raise ValueError("rouge needs at least one reference")
    tokens, grams, lines = _rouge_parts(prediction, stem)
    best = {}
    for reference in [references] if isinstance(references, str) else references:
        wanted, wanted_grams, wanted_lines = _rouge_parts(reference, stem)
        union = Counter((line[i],) for line in wanted_lines for i in set().union(*(_lcs(line, other) for other in lines)))
        hits = [*((a & b).total() for a, b in zip(grams, wanted_grams, strict=True)), len(_lcs(wanted, tokens)), (union & grams[0]).total()]
        for kind, hit in zip(ROUGE_KINDS, hits, strict=True):
            scores = _scores(hit, len(tokens) - (kind == "rouge2"), len(wanted) - (kind == "rouge2"))
            if kind not in best or scores[2] > best[kind][2]:
                best[kind] = scores
    return best

BLEU_RULES = (  # the tokens of the mteval-v13a script, each rule applied to the text that the last one left
    (r"\s+\Z", ""), ("<skipped>", ""), ("-\n", ""), ("\n", " "), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"), (r"\A|\Z", " "),
    (r"([!-&(-+/:-@\[-`{-~])", r" \1 "),  # what is ASCII and no letter, digit or one of ' , - .
    (r"([^0-9])([.,])", r"\1 \2 "), (r"([.,])([^0-9])", r" \1 \2"),  # full stop and comma stay inside a number only: 1,000.5
    (r"([0-9])(-)", r"\1 \2 "))

@functools.lru_cache(maxsize=1 << 17)
def _bleu_tokens(text):
    for pattern, replacement in BLEU_RULES:
        text = re.sub(pattern, replacement, text)
    return text.split()

def bleu(predictions, references):
    """Corpus BLEU from 0 to 100. predictions: strings; references: a list of strings (or one string) for each; ValueError if one is missing.
    As sacrebleu's defaults have it (Papineni et al. 2002; Post 2018, "A Call for Clarity in Reporting BLEU Scores"): n-grams to 4, the
    closest reference length, the k-th order without a match counts as 1 / 2^k matches."""
    references = [[texts] if isinstance(texts, str) else texts for texts in references]
    if not predictions or isinstance(predictions, str) or len(predictions) != len(references) or not all(references):
        raise ValueError(f"bleu: {len(predictions)} predictions and {len(references)} lists of references, {sum(map(bool, references))} of them not empty")
    length, wanted_length, hits, totals = 0, 0, [0] * 4, [0] * 4
    for prediction, texts in zip(predictions, references, strict=True):
        tokens, sides = _bleu_tokens(prediction), [_bleu_tokens(text) for text in texts]
        length += len(tokens)
        wanted_length += min((len(side) for side in sides), key=lambda size: (abs(size - len(tokens)), size))
        for n in range(min(4, len(tokens))):
            wanted = functools.reduce(Counter.__or__, (_ngrams(side, n + 1) for side in sides))  # the largest count of any reference
            hits[n] += (_ngrams(tokens, n + 1) & wanted).total()
            totals[n] += len(tokens) - n
    if not all(totals) or not any(hits):
        return 0.0
    hits = [hit or 0.5 ** (hits[: n + 1].count(0)) for n, hit in enumerate(hits)]
    return 100 * math.exp(sum(math.log(hit / total) for hit, total in zip(hits, totals, strict=True)) / 4 + min(0.0, 1 - wanted_length / length))

# --- labels and reasons -----------------------------------------------------------------------------------------------

def bootstrap_interval(values, clusters, draws=2000, seed=0, statistic=lambda means: means[:, 0]):
    """The 95% percentile interval (low, high) of the mean of `values` (N numbers), resampling whole clusters (N names): the rows of a premise
    succeed and fail together (9,824 test rows share 3,323), so drawing rows would make it too narrow (Efron & Tibshirani 1993, chapter 8;
    Field & Welsh 2007). Of values (N, K): the interval of a statistic of the K means, (draws, K) -> (draws,), NaN where it is not defined."""
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    values = np.asarray(values, dtype=float).reshape(len(cluster), -1)
    sizes, sums, rng = np.bincount(cluster), np.stack([np.bincount(cluster, column) for column in values.T], axis=1), np.random.default_rng(seed)
    drawn = (rng.integers(len(sizes), size=len(sizes)) for _ in range(draws))  # as many clusters as there are, with replacement
    means = np.array([sums[rows].sum(axis=0) / sizes[rows].sum() for rows in drawn])
    return tuple(np.nanpercentile(statistic(means), [2.5, 97.5]).tolist())

def label_metrics(gold, predicted):
    """Accuracy, share of valid answers, precision, recall and F1 of each label, macro F1 (the mean over the labels that occur in `gold`),
    confusion[gold][predicted or "none"]. A prediction that is none of LABELS is wrong. A ratio 0/0 is 0, as scikit-learn has it."""
    pairs, labels = Counter((want, got if got in LABELS else "none") for want, got in zip(gold, predicted, strict=True)), {}
    confusion = {want: {got: pairs[want, got] for got in (*LABELS, "none")} for want in LABELS}
    for label, row in confusion.items():
        scores = _scores(row[label], sum(other[label] for other in confusion.values()), sum(row.values()))
        labels[label] = {**dict(zip(("precision", "recall", "f1"), scores, strict=True)), "rows": sum(row.values())}
    right, unread = sum(confusion[label][label] for label in LABELS), sum(row["none"] for row in confusion.values())
    return {"accuracy": right / len(gold), "valid": (len(gold) - unread) / len(gold), "labels": labels, "confusion": confusion,
            "macro_f1": float(np.mean([scores["f1"] for scores in labels.values() if scores["rows"]]))}

def reason_metrics(reasons, references, clusters, seed=0, embed=None):
    """Plain means over the rows of ROUGE (with stemming) and, with `embed`, of BERTScore, an interval of each F, and BLEU. A row without reference is left out.
    reasons: N strings; references: N lists of strings; clusters: N premises; embed: (reasons, references) -> P, R, F, as `bert_score`. None without a
    reference, or without a reason (labels only)."""
    rows = [row for row in zip(reasons, references, clusters, strict=True) if row[1]]
    if not any(reason.strip() for reason, _, _ in rows):
        return None
    reasons, references, clusters = zip(*rows, strict=True)
    scores = [rouge(reason, texts) for reason, texts, _ in tqdm(rows, desc="ROUGE", unit="text", leave=False, disable=len(rows) < 2000)]
    values = {kind: np.array([row[kind] for row in scores]) for kind in ROUGE_KINDS}  # (rows, 3)
    values |= {"bert_score": torch.stack(embed(reasons, references), 1)} if embed else {}
    found = {kind: {**dict(zip(("precision", "recall", "f"), value.mean(0).tolist(), strict=True)),
                    "interval": bootstrap_interval(value[:, 2], clusters, seed=seed)} for kind, value in values.items()}
    sizes = sorted({len(texts) for texts in references})
    return {"rows": len(rows), "references": " to ".join(map(str, sorted({sizes[0], sizes[-1]}))), "stemming": True, **found, "bleu": bleu(reasons, references)}

def join(examples, predictions):
    """The lines of predictions.jsonl: each prediction (a dict with id, label of LABELS or None, rationale), and what its example holds beside it, if that has
    a gold label. DataError unless every example has exactly one prediction, found by its id, and one a gold label."""
    answers, rows, told = {p["id"]: p for p in predictions}, Counter(e.id for e in examples), Counter(p["id"] for p in predictions)
    for what, wrong in (("rows of the data share their id with another row", [i for i, count in rows.items() if count > 1]),
                        ("predictions share their id with another one", [i for i, count in told.items() if count > 1]),
                        ("predictions are for no row of the data", [i for i in told if i not in rows]),
                        ("rows of the data have no prediction", [i for i in rows if i not in told])):
        if wrong:
            raise DataError(f"{len(wrong)} {what}, the first has the id {wrong[0]!r}; was another split or sample answered?")
    if not any(e.label for e in examples):
        raise DataError("no row of the data has a gold label, so nothing can be scored")
    return [{**answers[e.id], "gold_label": e.label, "right": float(answers[e.id]["label"] == e.label), "references": e.explanations,
             "marked": sorted({word for pair in e.highlights for text in pair for part in text.split("*")[1::2] for word in rouge_tokens(part)}),
             **{key: getattr(e, key) for key in ("premise", "hypothesis", "kind")}} for e in examples if e.label]

def evaluate(lines, seed=0, embed=None):
    """All metrics of the lines, as `join` gives them, as a dict that json can write. An answer without a label is wrong and stands in "unparseable".
    embed: as in reason_metrics."""
    gold, labels, reasons, references, premises = ([line[key] for line in lines] for key in ("gold_label", "label", "rationale", "references", "premise"))
    return {"rows": len(lines), "premises": len(set(premises)), **label_metrics(gold, labels),
            "accuracy_interval": bootstrap_interval([line["right"] for line in lines], premises, seed=seed),
            "unparseable": [line["id"] for line in lines if line["label"] not in LABELS],
            "reasons": reason_metrics(reasons, references, premises, seed, embed)}

def reference_baselines(examples, seed=0, embed=None):
    """What a reader needs beside a model's figures on the same rows: {name: parts of what evaluate() returns}."""
    scored = [e for e in examples if e.label]
    gold, premises, references = [e.label for e in scored], [e.premise for e in scored], [e.explanations for e in scored]
    frames = {"entailment": "{h} because {p}.", "neutral": "Just because {p} does not mean that {h}.", "contradiction": "It cannot be that {h} if {p}."}
    filled = [frames[e.label].format(p=e.premise.lower().rstrip(" ."), h=e.hypothesis.lower().rstrip(" .")) for e in scored]
    majority = Counter(gold).most_common(1)[0][0]
    reasons = {"copy the hypothesis": ([e.hypothesis for e in scored], references), "template of the gold label": (filled, references),
               "human, against the others": ([(*texts, "")[0] for texts in references], [texts[1:] for texts in references])}
    return {f"majority class ({majority})": label_metrics(gold, [majority] * len(gold)),
            **{name: {"reasons": reason_metrics(*texts, premises, seed, embed)} for name, texts in reasons.items()}}

def yardsticks(examples, seed=0):
    """reference_baselines, and the labels that a reader of n-grams (see cross_fitted) guesses from the premise, the hypothesis or an explanation
    alone: where it beats the majority on a sentence, the data hold a shortcut (Gururangan et al. 2018, arXiv 1803.02324)."""
    lines, found = [{"premise": e.premise, "label": e.label, "texts": (e.premise, e.hypothesis, *e.explanations[:1])} for e in examples if e.label], {}
    for k, name in enumerate(("premise", "hypothesis", "explanation")):
        rows = [line for line in lines if len(line["texts"]) > k]
        if len({zlib.crc32(line["premise"].encode()) % 2 for line in rows}) == 2:
            texts, gold = [line["texts"][k] for line in rows], [line["label"] for line in rows]
            guesses = cross_fitted(rows, list(zip(range(len(rows)), texts, gold, strict=True)), {name: texts})
            found[f"n-grams of the {name} alone"] = label_metrics(gold, guesses[name])
    return found | reference_baselines(examples, seed) if lines else {}

@torch.inference_mode()
def bert_score(predictions, references, model, tokenizer, layer=None, idf=False, baseline=(0.0, 0.0, 0.0)):
    """BERTScore (Zhang et al. 2020, arXiv 1904.09675, section 3) of N texts, each against a list of references: tensors P, R, F (N,). A token, as the first
    `layer` blocks of a T5's encoder (None: all) and its final norm embed it, is matched with the token of the other text most like it (cosine): P is the mean
    over the prediction, R over the reference; of several references the best counts, for P, R, F by itself. idf: a token that m of M references hold weighs
    log((M + 1) / (m + 1)). baseline: P, R, F of texts that have nothing in common; x becomes (x - baseline) / (1 - baseline). As the package bert_score has it,
    but </s> is read and never matched, padding is no word of likeness 0, and only a text without tokens scores 0 (there one of a single token too)."""
    references = [[texts] if isinstance(texts, str) else texts for texts in references]
    if isinstance(predictions, str) or len(predictions) != len(references) or not all(references):
        raise ValueError(f"bert_score: a list of {len(predictions)} predictions needs as many lists of references, none empty; there are {len(references)}")
    ids = functools.cache(lambda text: tokenizer.encode(text.strip().encode(errors="replace").decode())[:-1])  # half a character is no text
    seen, M = Counter(i for texts in references for text in texts for i in set(ids(text))), sum(map(len, references))
    def embed(texts):
        """n texts -> their tokens' states of length 1 (n, S, d), weights (n, S), and which are tokens (n, S)"""
        batch = collate([([*ids(text), EOS], [EOS], [True]) for text in texts]).to(model.shared.weight.device)
        x = model.shared(batch.source)
        bias = model.encoder.position_bias(x.shape[1]).masked_fill(~batch.source_mask[:, None, None], -math.inf)
        for block in model.encoder.blocks[:layer]:
            x = block(x, bias)
        tokens = F.pad(batch.source_mask[:, 1:], (0, 1))  # all but the last, </s>
        weights = [[math.log((M + 1) / (seen[i] + 1)) if idf else 1.0 for i in row] for row in batch.source.tolist()]
        return F.normalize(model.encoder.norm(x).float(), dim=-1), torch.tensor(weights, device=x.device) * tokens, tokens
    scores = torch.full((len(predictions), 3), -math.inf)
    pairs = [(i, text, other) for i, (text, texts) in enumerate(zip(predictions, references, strict=True)) for other in texts]
    pairs.sort(key=lambda pair: len(pair[1]) + len(pair[2]))
    for start in tqdm(range(0, len(pairs), 64), desc="BERTScore", unit="batch", leave=False, disable=len(pairs) < 2000):
        rows, texts, others = zip(*pairs[start : start + 64], strict=True)
        (a, a_weights, a_tokens), (b, b_weights, b_tokens) = embed(texts), embed(others)
        alike = (a @ b.mT).masked_fill(~(a_tokens[:, :, None] & b_tokens[:, None]), -math.inf)  # (n, S, S')
        P, R = ((alike.amax(axis).clamp(min=-1) * w).sum(1) / w.sum(1) for axis, w in ((2, a_weights), (1, b_weights)))
        both = (a_tokens.any(1) & b_tokens.any(1))[:, None]
        values = torch.stack([P, R, 2 * P * R / (P + R)], dim=1).nan_to_num(0.0) * both
        for row, found in zip(rows, values.cpu(), strict=True):
            scores[row] = scores[row].maximum(found)
    baseline = torch.tensor(baseline)
    return tuple(((scores - baseline) / (1 - baseline)).unbind(1))

def bert_scorer(name, examples, layer=0, idf=False, rescale=False, device="cpu"):
    """(predictions, references) -> P, R, F: bert_score with the encoder of a run, checkpoint folder or hub name; layer 0: all of it. rescale: by a baseline,
    the means over up to 2,000 reasons of the examples, each beside another one by chance; kept beside the weights, and found there again."""
    encoder, texts = Apprentice.load(name, device=device), sorted({e.explanations[0] for e in examples if e.explanations})
    score = functools.partial(bert_score, model=encoder.model, tokenizer=encoder.tokenizer, layer=layer or None, idf=idf)
    if layer > (blocks := encoder.model.config.num_layers):
        raise DataError(f"--layer={layer}: the encoder of {name} has {blocks}")
    if not rescale or len(texts) < 2:
        return score
    texts, folder = random.Random(0).sample(texts, min(len(texts), 2000)), fetch(name)
    made = f"weights {weights_digest(folder, 'spiece.model', 'config.json')}, texts {zlib.crc32(repr(texts).encode()):08x}"
    store, key = folder / "bert_score.json", f"layer {layer}, idf {idf}, {made}"
    known = json.loads(store.read_text()) if store.is_file() else {}
    if key not in known:
        known[key] = [float(values.mean()) for values in score(texts, texts[1:] + texts[:1])]
        replace_file(store, json.dumps(known, indent=1).encode())
    return functools.partial(score, baseline=known[key])

# --- findings: one question, a table that answers it, perhaps a picture ----------------------------------------------------
# What eval.json and the report hold of a question: its table, the docstring of the function that answers it, and pictures: what `picture` takes.

def finding(function, table, *pictures):
    """{"about", "table", "pictures"}."""
    return {"about": " ".join(function.__doc__.split()), "table": table, "pictures": pictures}

def calibration(scores, gold, held_out_scores, held_out_gold, bins=10):
    """Does the model know how sure it is (of a label after its own reason, where it reasons first)? ECE: the gap between the likeliest label's probability
    and how often it is right, in ten bins of equal width, weighted by their rows; the temperature that divides the scores is fitted on those of the first
    1,000 validation rows that have other premises, if there are any (Guo et al. 2017, arXiv 1706.04599, equation 3). As sure of every answer as right on
    average: that has an ECE of 0 too, and can't tell its weak spots."""
    table, lines, temperatures = {}, {"as sure as right": ((1 / 3, 1), (1 / 3, 1))}, {"as it is": 1.0}
    if len(held_out_gold):
        temperatures["temperature fitted"] = min(np.geomspace(0.05, 20, 601).tolist(), key=lambda T: float(F.cross_entropy(held_out_scores / T, held_out_gold)))
    for name, T in temperatures.items():  # scores (N, 3): log-probabilities; gold (N,): places in LABELS
        confidence, choice = (scores / T).softmax(-1).max(-1)
        right, place = (choice == gold).float(), (confidence * bins).long().clamp(max=bins - 1)
        mine = [place == k for k in place.unique()]  # which rows each bin has
        lines[name] = tuple([float(values[rows].mean()) for rows in mine] for values in (confidence, right))
        error = sum(float(rows.float().mean()) * abs(sure - share) for rows, sure, share in zip(mine, *lines[name], strict=True))
        table[name] = {"temperature": f"{T:.2f}", "ECE": error, "mean confidence": float(confidence.mean()), "accuracy": float(right.mean()),
                       "log loss": f"{F.cross_entropy(scores / T, gold):.3f}"}
    return finding(calibration, table, {"x": "probability of the likeliest label", "y": "share right", "lines": lines})

def comparison(lines, others, seed=0):
    """This run minus another on the same rows, with paired bootstrap intervals by premise; and p: how likely so uneven a split of the rows where just one is
    right would be if both were equally good (McNemar's exact test: a binomial of 1/2; it takes rows for independent, which those of one premise are not: where
    the two disagree, trust the interval). Clauses in common: of all that the two reasons name, what both name."""
    table = {}
    for name, their in others.items():
        pairs = list(zip(lines, their, strict=True))
        parted = Counter((a["right"], b["right"]) for a, b in pairs if a["label"] != b["label"])
        one, two, none = (parted[places] for places in ((1, 0), (0, 1), (0, 0)))
        p = min(1.0, 2 * sum(math.comb(one + two, k) for k in range(min(one, two) + 1)) / 2 ** (one + two))
        named = [(a, b) for a, b in ((clauses(a["rationale"]), clauses(b["rationale"])) for a, b in pairs) if a or b]
        row = table[f"minus {name}"] = {
            "p": f"{p:.2g}", "only this right": one, "only the other": two, "differ, both wrong": none, "same answer": 1 - parted.total() / len(lines),
            "clauses in common": float(np.mean([len(a & b) / len(a | b) for a, b in named])) if named else None}
        for key in ("right", "ROUGE-L"):
            if both := [(a[key] - b[key], a["premise"]) for a, b in pairs if key in a and key in b]:
                gain, premises = zip(*both, strict=True)
                row |= {key: float(np.mean(gain)), f"{key}, 95%": bootstrap_interval(gain, premises, seed=seed)}
    return finding(comparison, table)

TEMPLATES = re.compile("|".join(FRAMES.values()), re.I)  # around the sentences' own words, they say nothing
JOINTS = re.compile(r"[,.;]|\b(?:and|so|because|since|therefore|but|then|if|while|although)\b", re.I)

def clauses(text):
    """What stands between stops and connectives, each clause as the set of its stems."""
    return {frozenset(rouge_tokens(part)) for part in JOINTS.split(text) if part.strip()}

def unheard(lines, name, path, settings):
    """The runs of three words in the reasons and references of the lines that the run heard in no reason of its training: of people's rows in
    its data, of what its teacher wrote, of rationale files; None where its data is another one, or a file is there no more."""
    if settings.get("data") != name:
        return None
    new = {run for line in lines for text in (line["rationale"], *line["references"]) for run in _ngrams(rouge_tokens(text, False), 3)}
    new.difference_update([("nothing", "is", "known")] * bool(settings.get("hypothesis_only")))
    limit = settings.get("labelled_rows") or None
    files = [path / "teacher.jsonl"] * (settings.get("teacher_writes", "none") != "none") + re.findall(r"[^+]+\.jsonl[^+@]*", settings.get("teacher", ""))
    held_out = [(name, "validation"), *((source, "test") for source in (name, *settings.get("tests", "").split()))]  # it learns nothing of these premises

    def heard():
        if settings.get("teacher_writes") != "all":
            yield from itertools.islice(stream_examples(name, "train"), limit)
        for file in files:
            known = limit and borrowed(str(file))
            yield from (e for e in stream_examples(file) if e.label and e.premise.lower() not in secret and (e.pair in gold or not known)
                        and (settings.get("other_labels", 1) or gold.get(e.pair, e.label) == e.label))

    try:
        secret = {e.premise.lower() for source, split in held_out for e in (stream_examples(source, split) if files else ())}
        gold = {e.pair: e.label for e in itertools.islice(stream_examples(name, "train") if files else (), limit) if e.label}
        for example in tqdm(heard(), desc="novelty", unit="row", leave=False):
            for text in example.explanations[: settings.get("explanations") or None]:
                new.difference_update(_ngrams(rouge_tokens(text, False), 3))
    except DataError:  # a run that was moved may have left its training rows behind
        return None
    return new

MANNER = ("ROUGE-L", "clauses named", "marked words named", "template", "copy", "new triples", "words", "joints")

def read_reason(line, new=None):
    """What can be seen of one line's reason, as `manner` explains: by itself, beside its references and, with `new` of unheard(), beside training."""
    reason, texts, marked, runs = line["rationale"], line["references"], set(line["marked"]), _ngrams(rouge_tokens(line["rationale"], False), 3)
    sides = [rouge(reason, line[side], stem=False) for side in ("premise", "hypothesis")]
    mine, *theirs = map(clauses, (reason, *texts))
    return {**({"ROUGE-L": rouge(reason, texts)["rougeL"][2], "clauses named": max(len(mine & t) / max(len(t), 1) for t in theirs)} if texts else {}),
            **({"marked words named": len(marked & set(rouge_tokens(reason))) / len(marked)} if marked else {}),
            "template": float(bool(TEMPLATES.search(reason)) and max(scores["rouge1"][1] for scores in sides) >= 0.8),
            "copy": float(max(scores["rougeL"][0] for scores in sides) >= 0.9),
            **({"new triples": len(runs.keys() & new) / len(runs)} if new is not None and runs else {}),
            "words": len(reason.split()), "joints": len(JOINTS.findall(reason))}

def means(lines, keys):
    """The mean of what the lines hold under each key, over those that hold it."""
    return {key: float(np.mean(values)) for key in keys if (values := [line[key] for line in lines if key in line])}

def manner(named_lines):
    """How the reasons are made. Clauses named: of the nearest human reason's clauses those that are there, word for word but for order; marked words: of those
    that people marked in the pair. Template: a known empty frame of e-SNLI (Camburu et al. 2018) around 80% of a sentence's words. Copy: 90% of its words
    stand in one sentence, in that order. New triples: of its runs of three words those that no training reason holds. Joints: connectives and stops. The
    human row is the first reason against the others. None of it knows meaning."""
    table = {}
    for name, lines in named_lines.items():
        mean, counts = means(lines, MANNER), Counter(line["rationale"].lower() for line in lines if line["rationale"])
        joints = Counter(joint for reason in counts.elements() for joint in JOINTS.findall(reason))
        if counts:
            table[name] = mean | {"words": f"{mean['words']:.1f}", "joints": f"{mean['joints']:.1f}", "different reasons": len(counts) / len(lines),
                                  "different words": len(set(re.findall(r"[\w'’-]+", " ".join(counts)))),
                                  "most used joints": " ".join(dict(joints.most_common(4)))}
    return finding(manner, table)

def breakdown(lines):
    """Where is it right, and where are its reasons like people's? By gold label, by kind of inference where the data tells it, by thirds of the lengths and
    of the overlap: how many of the hypothesis' words the premise holds. Long pairs may be the neutral ones: a difference has more than one possible cause."""
    groups = {f"{what}: {value}": [line for line in lines if line[key] == value] for what, key in (("gold", "gold_label"), ("kind", "kind"))
              for value in sorted({line[key] for line in lines} - {""})}
    measures = {"words of the pair": [len(f"{line['premise']} {line['hypothesis']}".split()) for line in lines],
                "words of the reason": [len(line["rationale"].split()) for line in lines],
                "overlap, %": [100 * rouge(line["premise"], line["hypothesis"])["rouge1"][1] for line in lines]}
    for what, sizes in measures.items():
        sizes = np.array(sizes)
        third = np.searchsorted(np.quantile(sizes, (1 / 3, 2 / 3)), sizes)
        groups |= {f"{what}: {sizes[third == k].min():.0f} to {sizes[third == k].max():.0f}": [lines[i] for i in np.flatnonzero(third == k)] for k in {*third}}
    return finding(breakdown, {name: {"rows": len(rows), **means(rows, ("right", *MANNER[:-2]))} for name, rows in groups.items()})

# --- is it the reason? Tests of faithfulness --------------------------------------------------------------------------------

def cross_fitted(lines, training, views, steps=60):
    """What a cheap reader takes the texts of views {name: N texts} for: {name: N labels}. It is a logistic regression over the words and word pairs of a text
    (right on 93% of e-SNLI from a human's reason alone), blind to how sentences hang together. training: [(row, text, label)]. The rows are cut in two by
    premise, and each half is read by the reader that learned from the other."""
    def bags(texts):  # -> the hashed words and pairs of all texts in one row, and where each text's begin
        words = [re.findall(r"\w+", text.lower()) for text in texts]
        grams = [sorted({zlib.crc32(gram.encode()) % 2**16 for gram in (*w, *map(" ".join, zip(w, w[1:], strict=False)))}) for w in words]
        return torch.tensor([i for row in grams for i in row], dtype=torch.long), torch.tensor([0, *map(len, grams)]).cumsum(0)[:-1]
    half, readers = [zlib.crc32(line["premise"].encode()) % 2 for line in lines], []
    for k in (0, 1):
        texts, labels = zip(*[(text, LABELS.index(label)) for i, text, label in training if half[i] != k], strict=True)
        inputs, labels, weights = bags(texts), torch.tensor(labels), torch.zeros(2**16, len(LABELS))
        readers.append(torch.nn.EmbeddingBag.from_pretrained(weights, freeze=False, mode="sum"))
        optimizer = torch.optim.Adam([readers[k].weight], lr=0.05, weight_decay=3e-4)  # without, what is rare is learnt by heart
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(readers[k](*inputs), labels).backward()
            optimizer.step()
    guesses = {name: [reader(*bags(column)).argmax(-1).tolist() for reader in readers] for name, column in views.items()}
    return {name: [LABELS[both[k][i]] for i, k in enumerate(half)] for name, both in guesses.items()}

def leakage_adjusted(from_input, from_reason, from_both, premises, seed=0):
    """LAS, the leakage-adjusted simulatability (Hase et al. 2020, arXiv 2010.04119, section 4): how much more often a simulator guesses
    the model's answer with the reason than without, as the mean over two bins of rows: those whose reason alone gives the answer away,
    and the others. Of N rows each, was the guess right from the input, from the reason, from both? -> a table's row."""
    gain, leaks = np.subtract(from_both, from_input, dtype=float), np.asarray(from_reason, dtype=float)
    columns = np.stack([gain * leaks, leaks, gain * (1 - leaks), 1 - leaks], axis=1)
    las = lambda means: (means[:, 0] / means[:, 1] + means[:, 2] / means[:, 3]) / 2  # noqa: E731
    with np.errstate(invalid="ignore"):  # where a bin is empty, in a draw or in all: 0 / 0
        defined = 0 < leaks.sum() < len(leaks)
        found = (float(las(columns.mean(0, keepdims=True))[0]), bootstrap_interval(columns, premises, seed=seed, statistic=las)) if defined else (None, None)
    return {"LAS": found[0], "95% interval": found[1], "simulatability": float(gain.mean()), "rows that leak": int(leaks.sum()),
            "that do not": int((1 - leaks).sum()), "right from input": float(np.mean(from_input)), "from both": float(np.mean(from_both))}

def simulatability(lines, seed=0, simulator=None, heard=()):
    """Does the reason help to foresee the answer, beyond giving it away? LAS (Hase et al. 2020), its two bins, and plain simulatability. N-grams, as a
    simulator, are cheap and blind to how sentences hang together: a lower bound. The T5 of configs/simulator.py, minutes of training, has learnt this run's
    answers from input, reason or both and is asked of premises new to it (not heard, in lower case). A bin of few rows tells nothing; a reason made up after
    the answer can help as much as the true one."""
    marked = [re.sub(r"\w+", r"p_\g<0>", line["premise"]) + re.sub(r"\w+", r" h_\g<0>", line["hypothesis"]) for line in lines]
    reasons, answers = [line["rationale"] for line in lines], [line["label"] for line in lines]
    views = {"input": marked, "reason": reasons, "both": [f"{a} {b}" for a, b in zip(marked, reasons, strict=True)]}
    guesses = cross_fitted(lines, [(i, text, answers[i]) for texts in views.values() for i, text in enumerate(texts)], views)
    right = (np.array(guesses[view]) == answers for view in views)
    table = {"n-grams": leakage_adjusted(*right, [line["premise"] for line in lines], seed)}
    if simulator and (unseen := [line for line in lines if line["premise"].lower() not in heard]):
        guesses = simulator.answer([(line["premise"], line["hypothesis"]) for line in unseen], rationales=[line["rationale"] for line in unseen])
        right = np.array([[guess == line["label"] for guess in a.text.split("\n")] for a, line in zip(guesses, unseen, strict=True)])
        table["T5"] = leakage_adjusted(*right.T, [line["premise"] for line in unseen], seed)  # of each row three guesses: from input, reason, both
    return finding(simulatability, table)

def swapped(lines, same, seed=0):
    """For each line another one, drawn among those with the same answer (same=False: with a different one); an empty one if there is none."""
    rng, empty = random.Random(seed), {"rationale": "", "premise": "", "hypothesis": ""}
    pools = {label: [line for line in lines if (line["label"] == label) == same] for label in {line["label"] for line in lines}}
    drawn = [rng.sample(pools[line["label"]], min(2, len(pools[line["label"]]))) for line in lines]  # two, as one may be the line itself
    return [next((other for other in two if other is not line), empty) for line, two in zip(lines, drawn, strict=True)]

def consistency(lines, seed=0):
    """Do answer and reason go together? How often n-grams, taught by human reasons and labels, read the model's answer out of its reason; a line where they
    read another label names it: a wrong reason, or a reader's mistake. That reader does not see the pair: any row's reason for the answer would do. So: does
    the reason share more words with its own pair than with another row's of that answer (50%: chance, as for the control, a third row's reason)? It may
    still be made up after the answer (Wiegreffe et al. 2021)."""
    lines = [line for line in lines if line["references"]]
    control, foil = swapped(lines, True, seed), swapped(lines, True, seed + 1)
    texts = {"its own reason": [line["rationale"] for line in lines], "a human's, for gold": [line["references"][0] for line in lines]}
    guesses = cross_fitted(lines, [(i, text, line["gold_label"]) for i, line in enumerate(lines) for text in line["references"]], texts)
    texts["control: another row's"] = [other["rationale"] for other in control]
    for line, guess in zip(lines, guesses["its own reason"], strict=True):
        line.update({"argues_for": guess} if guess != line["label"] else {})
    own, other = ([set(rouge_tokens(f"{line['premise']} {line['hypothesis']}")) for line in rows] for rows in (lines, foil))
    table = {}
    for name, column in texts.items():
        nearer = [np.sign(len(a & words) - len(b & words)) for a, b, words in zip(own, other, map(set, map(rouge_tokens, column)), strict=True)]
        right = [guess == line["gold_label" if "gold" in name else "label"] for guess, line in zip(guesses.get(name, ()), lines, strict=False)]
        table[name] = {"read as the answer": float(np.mean(right)) if right else None, "nearer to its own pair": float(np.mean(nearer)) / 2 + 0.5}
    return finding(consistency, table)

def insertions(lines, answer, seed=0):
    """A word put into the hypothesis (an adjective after an article, a number or "some", an adverb after "is" or "are"): how often does the answer
    flip, and does the new reason name the word (Atanasova et al. 2023, arXiv 2305.18029, section 3.1)? A flip that the reason does not own
    up to is unfaithful; to name the word proves nothing, and the word may change what is true: a flip is no mistake by itself."""
    adjectives, adverbs = "old happy strange quiet famous tired clever friendly".split(), "slowly happily suddenly quietly really often".split()
    rng, changed = random.Random(seed), []
    for line in lines:
        for spot in re.finditer(r"(?i)\b(?:(is|are)|an?|the|two|three|some) ", line["hypothesis"]):
            said = set(re.findall(r"\w+", f"{line['premise']} {line['hypothesis']} {line['rationale']}".lower()))  # to say these again names nothing
            word = rng.choice([word for word in (adverbs if spot[1] else adjectives) if word not in said] or ["quite"])
            before = re.sub(r"(?i)\b(a)n? $", rf"\1{'n' * (word[0] in 'aeiou')} ", line["hypothesis"][: spot.end()])
            changed.append((line, word, f"{before}{word} {line['hypothesis'][spot.end() :]}"))
    answers = answer([(line["premise"], hypothesis) for line, _, hypothesis in changed])
    flips = [word in re.findall(r"\w+", a.rationale.lower()) for (line, word, _), a in zip(changed, answers, strict=True) if a.label != line["label"]]
    found = {"tried": len(changed), "answer flips": len(flips) / len(changed) if changed else None}
    return finding(insertions, {"inserted words": found | {"flips whose reason names it": float(np.mean(flips)) if flips else None}})

def forced_reasons(lines, score, seed=0):
    """How often the answer moves when the reason before it is cut to its beginning, or swapped for another row's (Lanham et al. 2023,
    arXiv 2307.13702). An answer that stays does not rest on the reason. One that moves shows that the model reads its reason; whether it
    decides by it or copies its end, this can't tell."""
    pairs, words = [(line["premise"], line["hypothesis"]) for line in lines], [line["rationale"].split() for line in lines]
    forced = {f"first {share}%": [" ".join(w[: len(w) * share // 100]) for w in words] for share in (100, 75, 50, 25, 0)}
    forced |= {f"another row's, {'same' if same else 'other'} answer": [line["rationale"] for line in swapped(lines, same, seed)] for same in (True, False)}
    choices = {name: score(pairs, reasons).argmax(-1) for name, reasons in forced.items()}  # score -> (N, 3), as Apprentice.score_labels
    moves = {name: float((choice != choices["first 100%"]).float().mean()) for name, choice in choices.items()}
    return finding(forced_reasons, {name: {"answer moves": share} for name, share in moves.items()}, {
        "x": "share of the reason kept, %", "y": "share of answers that move", "lines": {"cut reasons": ((100, 75, 50, 25, 0), list(moves.values())[:5])}})

def noise_curves(lines, apprentice, seed=0, num_beams=1):
    """Do answer and reason give way together? Gaussian noise of growing size, in standard deviations of the embeddings, is added to what the encoder reads
    ("robustness equivalence", Wiegreffe et al. 2021, arXiv 2010.12762). Kept: ROUGE-L to the reason without noise, where the answer stayed and where it moved.
    Costs an answer a row and size. A reason that rests on what the answer rests on falls with it; both may also fall for different causes."""
    scale, table = float(apprentice.model.shared.weight.detach().std()), {}
    def noise(x, mask):
        """Each row's own, told by its last tokens: the same for the label's source and the reason's, in any batch."""
        found = torch.zeros(x.shape)
        for i, row in enumerate(x):
            n = int(mask[i].sum())
            own = torch.Generator().manual_seed(seed + zlib.crc32(row[:n][-9:].float().cpu().numpy().tobytes()))
            found[i, :n] = torch.randn((apprentice.max_source, x.shape[-1]), generator=own)[-n:]  # the ends stand one below the other
        return found
    score = lambda answer, texts: rouge(answer.rationale, texts)["rougeL"][2]  # noqa: E731
    sizes, pairs = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0), [(line["premise"], line["hypothesis"]) for line in lines]
    for size in sizes:
        noisy = lambda _, args, size=size: (args[0] + size * scale * noise(args[0], args[1]).to(args[0]), *args[1:])  # noqa: E731
        with apprentice.model.encoder.register_forward_pre_hook(noisy):
            answers = list(zip(apprentice.answer(pairs, num_beams), lines, strict=True))
        rows = [{"answer stays": a.label == line["label"], "right": a.label == line["gold_label"],
                 f"kept, answer {'stays' if a.label == line['label'] else 'moves'}": score(a, line["rationale"]),
                 **({"ROUGE-L": score(a, line["references"])} if line["references"] else {})} for a, line in answers]
        table[f"noise {size:g}"] = means(rows, ("answer stays", "right", "ROUGE-L", "kept, answer stays", "kept, answer moves"))
    curves = {what: (sizes, [row[what] for row in table.values()]) for what in ("answer stays", "right", "ROUGE-L") if what in table["noise 0"]}
    return finding(noise_curves, table, {"x": "noise, in standard deviations of the embeddings", "y": "share", "lines": curves})

def task_batches(apprentice, examples):
    """Yields (format, Batch): the examples, targets too, as each task of the run puts them."""
    for task in apprentice.tasks:
        rows = encode_examples(apprentice.tokenizer, task, [(e, 0) for e in examples], apprentice.max_source, apprentice.max_target)
        yield task, collate(rows).to(apprentice.model.shared.weight.device)

def attributions(apprentice, line, reason):
    """How much each token of the pair matters to the label and to the reason, {"label": (S,), "rationale": (S,)}, of a model that is made to give the line's
    label and this reason: |gradient x input|, the input an embedding, the gradient that of the log-probability."""
    found, model = {}, apprentice.model
    for format, batch in task_batches(apprentice, [Example(line["id"], line["premise"], line["hypothesis"], line["label"], (reason,))]):
        embedded = model.shared(batch.source).detach().requires_grad_()  # (1, S, d)
        logits = model.unembed.product(model.decode(T5.shift_right(batch.labels), model.encode(embedded)))
        scores = F.cross_entropy(logits[0], batch.labels[0], reduction="none")  # (T,)
        texts = f"{format.source.split()[0]} premise:", line["premise"], "hypothesis:"
        lead, premise, middle = (len(apprentice.tokenizer.encode(text)) - 1 for text in texts)
        place = np.arange(batch.source.shape[1] - 1)  # the last is </s>
        pair = (place >= lead) & ((place < lead + premise) | (place >= lead + premise + middle))  # the words between are no part of it
        for part in format.parts:
            slope = torch.autograd.grad(scores[batch.label_tokens[0] == (part == "label")].sum(), embedded, retain_graph=True)[0]
            found[part] = (slope * embedded).sum(-1).abs()[0, :-1].detach().cpu().numpy()[pair]
    return found

def attribution_overlap(lines, apprentice, seed=0):
    """Do label and reason rest on the same words? Spearman's rank correlation, over the tokens of the pair, of what matters to the label and what to the reason
    by gradient x input (after the "feature importance agreement" of Wiegreffe et al. 2021): mean and interval of the rows; as control the model is made to give
    another row's reason for that answer. Two passes a row. Gradients see very small changes only, and words may matter to each for its own cause."""
    table = {}
    for name, told in (("its own reason", lines), ("control: another row's", swapped(lines, True, seed))):
        both = {i: attributions(apprentice, lines[i], other["rationale"]) for i, other in enumerate(told) if other["rationale"]}
        values = [np.corrcoef(*(one[part].argsort().argsort() for part in ("label", "rationale")))[0, 1] for one in both.values()]
        mean, interval = (float(np.mean(values)), bootstrap_interval(values, [lines[i]["premise"] for i in both], seed=seed)) if both else (None, None)
        table[name] = {"rank correlation, %": mean, "95% interval": interval}
    return finding(attribution_overlap, table)

@torch.no_grad()
def landscape(examples, apprentice, points, seed=0):
    """How does the loss lie around the weights? Cross-entropy of gold labels and human reasons (of up to 64 rows; a task's mean over its tokens, and of tasks
    their mean), along two random directions from the weights. In a direction each row of a matrix is as long as the weights' own (filter normalisation: Li
    et al. 2018, arXiv 1712.09913, section 4), so that a step of 1 undoes as much in every run; norms stand still. Two directions of very many: a slice,
    and a flat one proves no good generalisation."""
    half, generator, batches = max(1, points // 2), torch.Generator().manual_seed(seed), [b for _, b in task_batches(apprentice, examples)]
    steps = np.arange(-half, half + 1) / half
    matrices, grid = {name: p for name, p in apprentice.model.named_parameters() if p.dim() == 2}, np.zeros((len(steps), len(steps)))
    direction = lambda p: F.normalize(torch.randn(p.shape, generator=generator)).to(p) * p.norm(dim=1, keepdim=True)  # noqa: E731
    a, b = ({name: direction(p) for name, p in matrices.items()} for _ in "ab")
    for i, j in tqdm(np.ndindex(grid.shape), total=grid.size, desc="landscape", unit="point"):
        moved = {name: p + steps[i] * a[name] + steps[j] * b[name] for name, p in matrices.items()}
        given = [(batch.source, T5.shift_right(batch.labels), batch.source_mask) for batch in batches]
        logits = [torch.func.functional_call(apprentice.model, moved, inputs) for inputs in given]
        grid[i, j] = np.mean([float(F.cross_entropy(x.flatten(0, 1), batch.labels.flatten())) for x, batch in zip(logits, batches, strict=True)])
    far = np.maximum(*np.abs(np.meshgrid(steps, steps)))
    near = {f"up to {most:g} away": grid[far <= most] for most in (0, 0.25, 0.5, 1)}
    return finding(landscape, {name: {"mean loss": f"{x.mean():.3f}", "lowest": f"{x.min():.3f}", "highest": f"{x.max():.3f}"} for name, x in near.items()},
                   {"x": "first direction", "y": "second direction", "contours": (steps.tolist(), grid.T.tolist())})

# --- tables, pictures and the page ------------------------------------------------------------------------------------

def headline(metrics):
    """Intervals are bootstrapped over premises. ROUGE: F of the best reference, Porter stemming, the plain mean of the rows; BLEU: of the whole corpus.
    N-gram scores prove little: compare the copy and the template. The human has one reference fewer, which lowers the figures."""
    reasons = metrics.get("reasons") or {}
    shares = {kind.replace("rouge", "ROUGE-"): reasons.get(kind, {}).get("f") for kind in ROUGE_KINDS}
    shares["BLEU"] = reasons["bleu"] / 100 if "bleu" in reasons else None
    shares |= {"BERTScore": reasons["bert_score"]["f"]} if "bert_score" in reasons else {}
    columns = ("parameters", "accuracy", "accuracy interval", "valid", "macro f1", "ms an answer")
    return {name: metrics.get(name.replace(" ", "_")) for name in columns} | shares

def trade_off(results):
    """What does quality cost? Microseconds and kilobytes of an answer of 32 tokens, float32 on a CPU, as bench.py measured them (RUN/bench.json). LAS: by
    n-grams; nearer, as in Consistency: how often a reason is nearer to its own pair than to another's. On the front: of the costs, those for which no other run
    is as right for less or more right for as little (Pareto; a disc in the pictures, others are crosses). Differences within the intervals are none."""
    table = {}
    for name, result in results.items():
        path = Path(name) / "bench.json"
        try:
            bench = json.loads(path.read_text()) if path.is_file() else {}
            costs = {"µs": round(1000 * bench.get("latency_ms", {}).get("float32", {}).get("median", 0)) or None,
                     "kB": round(bench.get("memory_bytes", {}).get("float32", 0) / 1000) or None}
        except (ValueError, AttributeError, TypeError) as e:
            raise DataError(f"{path} is not what bench.py writes ({e}); delete it, or measure anew") from None
        first = {key: value for found in result["findings"].values() for row in [*found["table"].values()][:1] for key, value in row.items()}
        qualities = {**headline(result), "LAS": first.get("LAS"), "nearer": first.get("nearer to its own pair")}
        table[name] = {key: qualities[key] for key in ("accuracy", "ROUGE-L", "LAS", "nearer")} | {
            "parameters": result.get("parameters"), **costs}
    runs, most = list(table.values()), max(table.values(), key=lambda row: (row["parameters"] or 0, row["accuracy"] or 0))
    costs = [cost for cost in ("parameters", "µs", "kB") if all(row[cost] for row in runs)]
    def best(row, cost, value):  # no other run is as good for less, or better for as little
        return not any(o[cost] <= row[cost] and (o[value] or 0) >= row[value] and (o[cost], o[value]) != (row[cost], row[value]) for o in runs)
    pictures = []
    for value, cost in itertools.product(("accuracy", "ROUGE-L", "nearer"), costs):
        if points := {name: ([row[cost]], [row[value]], "o" if best(row, cost, value) else "x") for name, row in table.items() if row[value]}:
            pictures.append({"x": cost, "y": value, "lines": points})
    for row in runs:
        kept = [f"{row[key] / most[key]:.0%} of the {key}" for key in ("accuracy", "parameters") if most[key] and row[key] is not None]
        kept += [f"{most[key] / row[key]:.1f}x as fast" for key in costs if key == "µs"]
        row |= {"on the front": " ".join(cost for cost in costs if best(row, cost, "accuracy")), "beside the largest": ", ".join(kept)}
    return finding(trade_off, table, *pictures)

def picture(x, y, lines=None, confusion=None, contours=None):
    """PNG bytes: curves {name: (xs, ys) or (xs, ys, matplotlib's format)}; or a confusion matrix, a row a gold label, where colour and percent are shares of
    the row; or the contours (steps, heights: a row a step of y) of a square."""
    figure, png = Figure(figsize=(5.6, 3.9), dpi=160, layout="constrained"), io.BytesIO()
    axes = figure.subplots()
    axes.locator_params(nbins=6)  # ticks that do not run into each other
    for name, (xs, ys, *style) in (lines or {}).items():
        axes.plot(xs, ys, *(style or ["o-"]), label=name)
        axes.legend()
    if contours:
        steps, heights = contours
        levels = np.geomspace(np.min(heights), np.max(heights) * 1.001, 17)
        figure.colorbar(axes.contourf(steps, steps, heights, levels, norm="log", cmap="viridis_r"), ticks=levels[::4], format="%.2g", label="loss")
    if confusion:
        counts = np.array([list(row.values()) for row in confusion.values()])
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set(xticks=range(4), yticks=range(3), xticklabels=(*LABELS, "none"), yticklabels=LABELS)
        for (i, j), n in np.ndenumerate(counts):
            axes.text(j, i, f"{n:,}\n{100 * shares[i, j]:.1f}%", ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    axes.set(xlabel=x, ylabel=y)
    figure.savefig(png, format="png")
    return png.getvalue()

def html_table(table):
    """A table that scrolls sideways on its own; every cell is escaped."""
    rows = ["".join(f"<{'td' if i else 'th'}>{html.escape(cell)}" for cell in line) for i, line in enumerate(cells(table))]
    return f"<div><table><tr>{'<tr>'.join(rows)}</table></div>"

def html_card(line):
    """A line of predictions.jsonl, nothing edited, everything escaped."""
    fields = {"premise": line["premise"], "hypothesis": line["hypothesis"], "gold": line["gold_label"], "answer": line["label"] or "none",
              "reason": line["rationale"], "which argues for": line.get("argues_for"), "raw text": not line["label"] and line.get("text"),
              **{f"human {i}": text for i, text in enumerate(line["references"], start=1)}, **line.get("others", {})}
    mark = f" class={'good' if line['label'] == line['gold_label'] else 'bad'}"
    shown = (f"<dt>{html.escape(name)}<dd{mark * (name == 'answer')}>{html.escape(text)}" for name, text in fields.items() if text)
    return "<article><dl>" + "".join(shown) + "</dl></article>"

def report_page(result, lines):
    """The report as one HTML page that needs nothing outside it. result: what eval.json holds; lines: those of predictions.jsonl."""
    lines = random.Random(result["seed"]).sample(lines, len(lines))
    right, wrong = ([line for line in lines if (line["label"] == line["gold_label"]) == value] for value in (True, False))
    groups = {"Right": right, "Wrong": wrong, "No label to be found in the answer": [line for line in wrong if line["label"] not in LABELS],
              "Sure and wrong": sorted((line for line in wrong if "confidence" in line), key=lambda line: -line["confidence"]),
              "Right, with a reason that argues for another label": [line for line in right if line.get("argues_for")],
              "Right, with the reason least like people's": sorted((line for line in right if "ROUGE-L" in line), key=lambda line: line["ROUGE-L"]),
              "Reasons from a template": [line for line in lines if line.get("template")], "Reasons that copy": [line for line in lines if line.get("copy")],
              "Where the runs part": [line for line in lines if line.get("others")]}
    parts = [f"<h1>{html.escape(result['run'])}</h1><p>{html.escape(result['about'])}<p><b>{100 * result['accuracy']:.1f}%</b> right"]
    for title, found in result["findings"].items():
        images = ((f"{shown['y']} by {shown['x']}", base64.b64encode(picture(**shown)).decode()) for shown in found["pictures"])
        parts += [f"<h2>{title}</h2>{html_table(found['table'])}<p>{html.escape(found['about'])}<figure>",
                  *(f'<img alt="{html.escape(what)}" src="data:image/png;base64,{png}">' for what, png in images), "</figure>"]
    for title, group in groups.items():
        parts += [f"<details><summary>{title}: {min(10, len(group))} of {len(group):,}</summary>", *map(html_card, group[:10]), "</details>"]
    style = (Path(__file__).parent / "configs" / "report.css").read_text()
    return ('<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(result['run'])}: evaluation</title><style>{style}</style><body>{''.join(parts)}"
            f"<details><summary>Settings</summary>{html_table({k: {'value': str(v)} for k, v in result['settings'].items()})}</details>\n")

# --- command line -----------------------------------------------------------------------------------------------------

def read_predictions(path):
    """The rows of a JSONL predictions file as dicts with id, label, rationale and text; DataError names the line that is wrong."""
    predictions = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").rstrip().split("\n"), start=1):
        try:
            row = json.loads(line)
            predictions.append({"id": str(row["id"]), "label": row["label"] and row["label"].strip().lower(),
                                "rationale": (row.get("rationale") or "").strip(), "text": str(row.get("text") or "")})
            if not isinstance(row["label"], str | None):
                raise TypeError
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise DataError(f"{path}, line {number}: {line[:80]}: id, label (of {', '.join(LABELS)}, or null) and rationale (text) are needed") from None
    return predictions

def judge(path, opt, baselines, simulators):
    """One run folder or predictions file by itself: (what eval.json will hold, the lines of predictions.jsonl, the same with a human's reason)."""
    apprentice = Apprentice.load(path, device=opt["device"]) if path.is_dir() else None
    predictions, settings = (None, apprentice.run.get("settings", {})) if apprentice else (read_predictions(path), {})
    name, split, seed = opt["data"] or settings.get("data"), opt["split"] or "test", opt["seed"]
    if settings.get("format", "").startswith("simulate"):
        raise DataError(f"{path} is a simulator, which foretells another run's answers: python evaluate.py RUN --simulator={path}")
    if not name:
        raise DataError(f"{path} does not say which data it answers: name some with --data=FILE")
    if predictions and not opt["split"] and {p["id"] for p in predictions} - {e.id for e in read_examples(name, split="test")}:
        split = "all"  # predictions for other rows than those of the test split
    everything = read_examples(name, split=None if split == "all" else split)
    size = min(opt["limit"] or len(everything), len(everything))
    examples = [everything[i] for i in sorted(random.Random(seed).sample(range(len(everything)), size))]
    embed = opt["bert_score"] and bert_scorer(opt["bert_score"], everything, opt["layer"], opt["idf"], opt["rescale"], opt["device"])
    if apprentice:
        print(f"{path} answers {size:,} rows of {name}, split {split}")
        ask = functools.partial(apprentice.answer_once, folder=path, num_beams=opt["num_beams"])
        pairs = [(e.premise, e.hypothesis) for e in examples]
        predictions = [{"id": e.id, **vars(a)} for e, a in zip(examples, ask(pairs), strict=True)]
    ids, kept = ({e.id for e in rows} for rows in (everything, examples))
    predictions = [p for p in predictions if p["id"] in kept or p["id"] not in ids]  # without what --limit leaves out
    lines, simulator, heard = join(examples, predictions), simulators.get(path), set()
    if apprentice:  # a simulator learns from 80% of any rows, of those too that a file's hash calls test
        lines = [{**line, "split": split_of(f"simulator: {line['premise']}")} for line in lines]
        heard = {line["premise"].lower() for line in lines if line["split"] == "train"}
    elif simulator:
        heard = {e.premise.lower() for e in stream_examples(simulator.run["settings"]["data"], "train")}
    result = {"run": str(path), **opt, "data": name, "split": split, **evaluate(lines, seed, embed), "unlabelled": size - len(lines), "settings": settings,
              **({**apprentice.cost(pairs[:20], opt["num_beams"]), "weights": weights_digest(path)} if apprentice else {})}
    baselines[name, split] = result["baselines"] = baselines.get((name, split)) or reference_baselines(examples, seed, embed)  # the same for every run
    result["about"] = (f"{len(lines):,} rows{f' (a sample, seed {seed})' * (size < len(everything))} of {name}, split {split}, {result['premises']:,} premises"
                       + f", {size - len(lines):,} rows without a gold label left out" * (size > len(lines)))
    reasoned = apprentice and any("rationale" in task.needs for task in apprentice.tasks)
    new = unheard(lines, name, path, settings) if reasoned else None
    human = [{**line, "rationale": texts[0], "references": texts[1:]} for line in lines if (texts := line["references"])]
    lines, human = ([{**line, **read_reason(line, new)} for line in rows] if any(line["rationale"] for line in rows) else rows for rows in (lines, human))
    said, found = [line for line in lines if line["rationale"] and line["label"] in LABELS], {"Where it is right": breakdown(lines)}
    if len({line["premise"] for line in said}) >= 50:
        found["Simulatability"] = simulatability(said, seed, simulator, heard)
    if len({line["premise"] for line in said if line["references"]}) >= 50:  # what people say teaches its reader
        found["Consistency"] = consistency(said, seed)
    if apprentice and opt["probes"]:
        scored, others = {e.premise for e in examples}, []
        with contextlib.suppress(DataError):  # a folder may hold the test rows alone
            others = [e for e in read_examples(name, "validation", 1000) if e.premise not in scored]
        sides = [[e for e in rows if e.label] for rows in (examples, others)]
        pairs = [[(e.premise, e.hypothesis) for e in side] for side in sides]
        reason_first = apprentice.format == "rationale_then_label"
        scores = [apprentice.score_labels(side, [a.rationale for a in ask(side)] if reason_first else None) for side in pairs]
        gold = [torch.tensor([LABELS.index(e.label) for e in side]) for side in sides]
        lines = [{**line, "confidence": sure} for line, sure in zip(lines, scores[0].exp().amax(1).tolist(), strict=True)]
        found["Calibration"] = calibration(scores[0], gold[0], scores[1], gold[1])
        if few := random.Random(seed).sample(said, min(len(said), opt["probes"])):
            found["Inserted words"] = insertions(few, ask, seed)
            if reason_first:
                found["Forced reasons"] = forced_reasons(few, apprentice.score_labels, seed)
            else:
                found |= {"Noise": noise_curves(few, apprentice, seed, opt["num_beams"]), "Attribution": attribution_overlap(few, apprentice, seed)}
    if apprentice and opt["landscape"] and (taught := [e for e in examples if e.label and (e.explanations or not reasoned)][:64]):
        found["Landscape"] = landscape(taught, apprentice, opt["landscape"], seed)
    return {**result, "findings": found}, lines, human

def main(argv):
    """`python evaluate.py RUN [RUN ...] [--data=FILE] [--split=test] ...`"""
    if not argv or "-h" in argv or "--help" in argv:
        return print(__doc__)
    words, opt = options(argv, data="", split="", limit=0, seed=0, probes=100, num_beams=1, device="cpu", simulator="", landscape=0,
                         bert_score="", layer=0, idf=False, rescale=False)
    low = [name for name in ("limit", "seed", "probes", "num_beams", "landscape", "layer") if opt[name] < (name == "num_beams")]
    if low or not words and not opt["data"]:
        raise DataError(f"--{low[0]}={opt[low[0]]} is too low" if low else "name a run folder or a predictions file: python evaluate.py RUN [RUN ...]")
    if not words:  # what python data.py ends with
        examples = read_examples(opt["data"], None if opt["split"] in ("", "all") else opt["split"], opt["limit"])
        return print_table({name: headline(metrics) for name, metrics in yardsticks(examples, opt["seed"]).items()})
    for path in map(Path, words):  # before the first run has answered for an hour
        if not path.is_dir() and not (path.suffix == ".jsonl" and path.is_file()):
            raise DataError(f"{path} is neither a run folder nor a predictions file (*.jsonl)")
    simulators = {}
    for name in filter(None, opt["simulator"].split(",")):  # each of the run whose answers it has learnt
        simulator = Apprentice.load(name, device=opt["device"])
        learnt = Path(simulator.run.get("settings", {}).get("data", "")).resolve()
        simulators |= {path: simulator for path in map(Path, words) if learnt in (path.resolve(), path.resolve() / "predictions.jsonl")}
        for path in (path for path, mine in simulators.items() if mine is simulator and path.is_dir()):
            if simulator.run.get("answers_of") != weights_digest(path):
                raise DataError(f"{name} has learnt what other weights of {path} answered: evaluate {path} without it, delete {name}, train it anew")
        if simulator not in simulators.values() or simulator.format != "simulate":
            raise DataError(f"{name} did not learn what {words[0]} answers: python distill.py configs/simulator.py "
                            f"--name=simulator-{Path(words[0]).name} --data={words[0]}/predictions.jsonl makes one that did")
    baselines = {}
    done = {path: judge(Path(path), opt, baselines, simulators) for path in words}
    for path, (result, lines, human) in done.items():
        others = {name: their for name, (other, their, _) in done.items() if name != path and all(other[key] == result[key] for key in ("data", "split"))}
        for i, line in enumerate(lines):
            line["others"] = {name: f"{other[i]['label']}: {other[i]['rationale']}" for name, other in others.items() if other[i]["label"] != line["label"]}
        beside = {path: result, **{name: done[name][0] for name in others}}
        table = {name: headline(metrics) for name, metrics in (beside | result["baselines"]).items()}
        labels = finding(label_metrics, result["labels"], {"x": "predicted", "y": "gold", "confusion": result["confusion"]})
        result["findings"] = {"The answers": finding(headline, table), "Labels": labels, "The reasons": manner({path: lines, **others, "human": human}),
                              **({"Against the others": comparison(lines, others, opt["seed"]), "The trade-off": trade_off(beside)} if others else {}),
                              **result["findings"]}
        place, told = Path(path), {"eval.json": json.dumps(result, indent=1, ensure_ascii=False) + "\n", "report.html": report_page(result, lines)}
        if place.is_dir():
            told["predictions.jsonl"] = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            replace_file(place / "confusion.png", picture("predicted", "gold", confusion=result["confusion"]))
        files = {place / name if place.is_dir() else place.with_name(f"{place.stem}.{name}"): text for name, text in told.items()}
        for file, text in files.items():  # before the tables, whose reader may have seen enough
            replace_file(file, text.encode(errors="replace"))  # half a character, that an answer may hold, is a question mark
        for title, found in result["findings"].items():
            print(f"\n{path}, {result['about']}: {title}")
            print_table(found["table"])
        print(*(f"wrote {file}" for file in files), sep="\n")

if __name__ == "__main__":
    run_main(main, CheckpointError)
