"""Data: from a file, or from a small made-up world, to padded batches of token ids.

    python data.py [toy | toy-harbour | esnli | FILE] [--vocabulary=FILE]  look at a data set: rows, labels, lengths (in tokens too, where a
                                                          spiece.model is named or in the cache), what gives labels away    (a minute)
    python data.py download [esnli] [--out=DIR]           fetch the four official files once                          (about 410 MB)
    python data.py collect --in=FILE --url=URL --model=NAME --out=FILE     have a large model label and explain; --help tells more

An example's way: read_examples (files, names, the toy world) -> a format of FORMATS writes it as (source, target) -> Tokenizer and
encode_examples make ids of it, encoded_rows of a whole data set -> BucketSampler picks rows of like length -> collate pads them to a Batch.
Read next: apprentice.py (how answers come back as text)."""
import csv
import hashlib
import json
import os
import random
import re
import shutil
import sys
import time
import urllib.request
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import mktime_tz, parsedate_tz
from functools import lru_cache
from http.client import HTTPException
from itertools import combinations, islice, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qsl

import numpy as np
import sentencepiece
import torch
from tqdm import tqdm

LABELS = ("entailment", "neutral", "contradiction")  # words everywhere: three numberings of them are in the wild
SPLITS = ("train", "validation", "test")

class DataError(ValueError):
    """Bad data. The text is one line: what was wrong, where (file, line, column, value), and what to do."""

@dataclass(frozen=True)
class Example:
    """Two sentences, how the second follows from the first, and why."""
    id: str
    premise: str
    hypothesis: str
    label: str | None  # one of LABELS; None: not labelled
    explanations: tuple = ()  # the reasons that people or a teacher gave: none, one, or three in e-SNLI's dev and test files
    highlights: tuple = ()  # for each of them (premise, hypothesis), with the words that matter between *stars*
    kind: str = ""  # the toy world's inference type, such as "kind+place"

    @property
    def pair(self):
        """What two rows of one pair have in common."""
        return self.premise.lower(), self.hypothesis.lower()

# --- the toy world: pairs that can be judged only with knowledge of the words -----------------------------------------
# Words stand in chains, narrow to wide: a spaniel is a dog, a dog is a pet, a pet is an animal. Two chains exclude each other from the level
# on at which they differ: nothing is a dog and a cat. Entries of an aspect are equally large: each word of a level is drawn equally often.
WORLDS = Path(__file__).parent / "configs" / "worlds.json"  # {domain: {aspect: {"narrow words": [what they all are, …]}}}
OPENERS = ("after the rain, before the storm, during the holidays, on the weekend, under the sun, through the mist, despite the noise, since the visit, "
           "for the feast, around the corner, until the evening, behind the crowd").split(", ")
ASPECTS = ("action", "place", "colour", "count")  # a premise tells two of these and leaves two open
NARROW, NEAR, WIDE, FAR = range(4)  # levels of a chain; actions, colours and counts end at NEAR
TOY_SIZES = {"train": 20_000, "validation": 1_000, "test": 1_000}
TOY = r"toy(?:-(park|harbour))?(?::(\d+))?"  # its names

def toy_examples(count, seed=0, domain="park", split="train"):
    """`count` rows of the toy world, a function of the arguments alone; 20,000 take a second.
    "during the holidays a spaniel was seen running near several kites by the bench." / "a dog is moving near kites."
    -> entailment: "a spaniel is a dog, and running is moving, so a dog is moving near kites."
    Domains share grammar, openers and numbers, and no other content word. Rows of "train" have one explanation, others three wordings of it.
    Kinds: one step (action, place, colour, count), the same with a kind ("kind+place") or a denial ("negation+place") before it, and breadth
    (kind and place, one of them wider in the premise). Labels are equally many, the premise is drawn without the label, and the hypothesis'
    words and the number of shared words are the same for each. One weak shortcut is there: as splits keep pairs of words apart, which two stand
    together in a hypothesis tells a reader of it alone 38% of the training labels, and misleads it on test (29%; chance is 33%)."""
    chains = {aspect: [(word, *wider) for words, wider in table.items() for word in words.split()]
              for aspect, table in json.loads(WORLDS.read_text())[domain].items()}  # {"kind": [("spaniel", "dog", "pet", "animal"), …], …}
    rng, labels = random.Random(f"{domain} {split} {seed}"), [LABELS[i % 3] for i in range(count)]
    rng.shuffle(labels)
    return [toy_row(rng, chains, label, split, f"{domain}-{split}-{seed}-{i}") for i, label in enumerate(labels)]

def toy_row(rng, chains, label, split, name):
    """One example. The premise is drawn before the label is looked at; it tells two aspects of four. Its split is a hash of each pair (its
    member, another of its words), a Latin square: one pair in eight is kept for test, one for validation, and each shows every word."""
    style, where = rng.choices(("", "kind", "negation", "breadth"), (40, 40, 10, 10))[0], ""
    while where != split:
        index = {aspect: rng.randrange(len(options)) for aspect, options in chains.items()}
        level, told = dict.fromkeys(chains, NARROW), rng.sample(ASPECTS, 2)
        if style == "breadth":  # a wide kind in a narrow place, or a narrow kind in a wide place
            told = ["place", rng.choice(("action", "colour", "count"))]
            level[rng.choice(("kind", "place"))] = WIDE
        spot = {aspect: i // 4 if level[aspect] == WIDE else i for aspect, i in index.items()}
        hashes = {(spot["kind"] + 3 * spot[aspect]) % 8 for aspect in ("thing", *told)}
        where = "test" if 0 in hashes else "validation" if 1 in hashes else "train"
    mine = {aspect: chains[aspect][i] for aspect, i in index.items()}
    words = {aspect: _word(aspect, mine[aspect], level[aspect]) for aspect in ("kind", "thing", *told)}
    premise = f"{rng.choice(OPENERS)} {_sentence({'count': 'several', **words}, 'was seen')}."
    # The hypothesis: the aspects that it words anew and their levels there. Neutral asks for what the premise leaves open
    # (an aspect not told; a narrower word); a contradiction turns one aspect to an excluding chain. A denial swaps the two.
    if style == "breadth":
        straight = label == "entailment" or (label == "contradiction" and rng.random() < 0.5)
        asked, changed = "place", ["kind", "place"]
        target = {aspect: NEAR if (level[aspect] == NARROW) == straight else FAR for aspect in changed}
    else:
        asked = rng.choice([aspect for aspect in ASPECTS if (aspect in told) == (label != "neutral")])
        changed = ["kind", asked] if style == "kind" else [asked]
        target = dict.fromkeys(changed, NEAR)
    denied, other = style == "negation", {}
    if label == ("entailment" if denied else "contradiction"):
        turned = changed[0] if rng.random() < 0.75 else changed[-1]  # the kind more often: other rows turn the rest
        top = max(level[turned], target[turned])
        other[turned] = rng.choice([chain for chain in chains[turned] if chain[top] != mine[turned][top]])
    bare = {aspect: words[aspect] for aspect in ("kind", "thing")}
    said = bare | {aspect: _word(aspect, other.get(aspect, mine[aspect]), target[aspect]) for aspect in changed}
    but = f" but not {said[asked]}{' ones' if asked == 'colour' else ''}" if denied else ""
    hypothesis = f"{_sentence(bare if denied else said, 'is')}{but}."
    # The reason: a clause for each changed aspect, then what follows. Beside an exclusion, what stays open is left unsaid.
    steps = []
    for aspect in changed:
        low, high, turn = level[aspect], target[aspect], other.get(aspect)
        if aspect not in words:
            steps.append("several is no exact number" if aspect == "count" else f"no {aspect} is told")
        elif low <= high or turn or label == "neutral":
            a, the = ("a " if aspect == "kind" else ""), ("the " if aspect == "place" else "")
            true, seen = (a + _word(aspect, chain, high) for chain in (mine[aspect], turn or mine[aspect]))
            fact = f"is {true}" + (f", not {seen}" if turn else "") if low <= high else f"{'is not' if turn else 'need not be'} {seen}"
            steps.append(f"{a}{the}{mine[aspect][low]} {fact}")
    verb = {"entailment": "is not" if denied else "is", "neutral": "may or may not be", "contradiction": "must be" if denied else "cannot be"}[label]
    claim = _sentence({aspect: word for aspect, word in said.items() if aspect != "thing" or asked != "place"}, verb)
    because = ", and ".join(steps)
    texts = premise, hypothesis, f"{because}, so {claim}.", f"{claim}, because {because}.", f"since {because}, {claim}."
    premise, hypothesis, *reasons = (re.sub(r"\ba (?=[aeiou])", "an ", text) for text in texts)
    kind = "breadth" if style == "breadth" else f"{style}+{asked}".strip("+")
    return Example(name, premise, hypothesis, label, tuple(reasons[: 1 if split == "train" else 3]), kind=kind)

def _word(aspect, chain, level):  # "dog", "at the fountain"
    return f"{('by', 'at', 'in', 'within')[level]} the {chain[level]}" if aspect == "place" else chain[level]

def _sentence(words, verb):  # {"kind": "spaniel", "action": "running", "thing": "kites"}, "is" -> "a spaniel is running near kites"
    near = ["near", words.get("count"), words.get("colour"), words["thing"]] if "thing" in words else []
    return " ".join(filter(None, ("a", words["kind"], verb, words.get("action"), *near, words.get("place"))))

# --- files ------------------------------------------------------------------------------------------------------------
NAMES = {  # a field goes by the name that our files, e-SNLI, SNLI or SICK give it, of several there by the first; FILE?premise=NAME gives another
    "id": ("id", "pairID", "pair_ID"), "label": ("label", "gold_label", "entailment_label", "entailment_judgment"), "rationale": ("rationale", "explanation"),
    "premise": ("premise", "Sentence1", "sentence1", "sentence_A"), "hypothesis": ("hypothesis", "Sentence2", "sentence2", "sentence_B"),
    "split": ("split", "SemEval_set")}
FOLDERS = (  # e-SNLI and SNLI come as several files: {split: {file: rows}}
    {"train": {"esnli_train_1.csv": 259_999, "esnli_train_2.csv": 289_368}, "validation": {"esnli_dev.csv": 9_842}, "test": {"esnli_test.csv": 9_824}},
    {"train": {"snli_1.0_train.jsonl": 550_152}, "validation": {"snli_1.0_dev.jsonl": 10_000}, "test": {"snli_1.0_test.jsonl": 10_000}})
ESNLI_URL = "https://raw.githubusercontent.com/OanaMariaCamburu/e-SNLI/master/dataset"
NO_LABEL = "the label is -: its annotators did not agree"

def cache_folder():
    """Where files are kept: $APPRENTICE_CACHE, or ~/.cache/apprentice."""
    return Path(os.environ.get("APPRENTICE_CACHE") or Path.home() / ".cache" / "apprentice")

def read_examples(name, split=None, limit=0, max_bad=0.01):
    """The examples of a source, at most `limit` if it is not 0; split: train, validation, test, or None for all rows. Raises DataError.
    A source is a .csv, .tsv or .jsonl file, "toy" or "toy-harbour" ("toy:5000": so many training rows), "esnli" (fetched once), or a folder
    of e-SNLI's or SNLI's files. A file is split by its column `split` (SICK: SemEval_set), else by `split_of`. "FILE?premise=NAME&labels=NEC"
    names columns, and what labels 0, 1, 2 are: neutral, entailment, contradiction. "a+b" mixes sources, a row of each in turn; "a@0.5" trains
    on half of its rows, drawn at random, "a@2" on each twice. "FILE?pairs=SOURCE" reads reasons without sentences, {"id", "entailment",
    "neutral", "contradiction"}: the pairs and labels are those of the source, by id. Unusable rows are set aside in a file with line and
    reason, what was mended is counted, and stderr told; where more than `max_bad` of all (or "FILE?max_bad=0.1") are at fault, DataError
    names the first. The label "-" is no fault."""
    return list(islice(stream_examples(name, split, max_bad), limit or None))

def stream_examples(name, split=None, max_bad=0.01):
    """As read_examples, one by one, in memory that does not grow with the file."""
    return (e for _, e in stream_splits(name, split, max_bad))

def stream_splits(name, split=None, max_bad=0.01):
    """As stream_examples, each example after the name of its split."""
    if split not in (None, *SPLITS):
        raise DataError(f"split is {split!r}; legal are {', '.join(SPLITS)}")
    asked = (split,) if split else SPLITS
    def stream(part, options, weight):
        rng = random.Random(part)
        if toy := re.fullmatch(TOY, part):
            sizes = TOY_SIZES | {"train": int(toy[2] or TOY_SIZES["train"])}
            rows = ((own, e) for own in asked for e in toy_examples(sizes[own], 0, toy[1] or "park", own))
        else:
            rows = ((own or told or split_of(e.premise), e) for path, own in files_of(part, split) for told, e in read_file(path, options, max_bad))
        for own, example in rows:
            times = int((weight if own == "train" else 1) + rng.random())
            yield from [(own, example)] * times if own in asked else ()
    yield from (found for turn in zip_longest(*(stream(*part) for part in parts_of(name))) for found in turn if found)

def parts_of(name):
    """"toy:50@2+a.csv?labels=ENC" -> [("toy:50", "", 2.0), ("a.csv", "labels=ENC", 1.0)]; a file that is there may have any name."""
    if Path(name).expanduser().exists():
        return [(str(name), "", 1.0)]
    found = (re.fullmatch(r"([^?]+?)(?:\?(.*?))?(?:@(\d*\.?\d+))?", part) for part in str(name).split("+"))
    return [(part[1], part[2] or "", float(part[3] or 1)) for part in found if part]

def files_of(name, split=None):
    """[(path, the split that it holds, or "" for all)] of the files of a source; esnli is fetched first."""
    path = cache_folder() / "esnli" if name == "esnli" else Path(name).expanduser()
    if path.is_file():
        return [(path, "")]
    if name == "esnli":
        fetch_esnli(path, split)
    elif not path.is_dir():
        raise DataError(f"{name}: no such file, and no known name (toy, toy-harbour, esnli)")
    layout = next((layout for layout in FOLDERS if any((path / file).is_file() for files in layout.values() for file in files)), FOLDERS[0])
    files = [(path / file, own) for own in SPLITS if split in (None, own) for file in layout[own]]
    if missing := [file.name for file, _ in files if not file.is_file()]:
        raise DataError(f"{path}: holds no {missing[0]}; to fetch e-SNLI's files there: python data.py download esnli --out={path}")
    return files

def borrowed(source):
    """Whether the labels of a rationale file are the data's own: it is read by pairs= or label=gold, or was collected with --given."""
    (file, asked, _), *_ = parts_of(source)
    return bool(re.search("pairs=|label=gold", asked) or re.search(rb'"given"\s*:\s*true', files_of(file)[0][0].read_bytes()))

def split_of(premise):
    """The split of a row of a single file: 80/10/10 by a hash of its premise, so that no premise stands in two splits."""
    tenth = int.from_bytes(hashlib.sha256(premise.strip().lower().encode()).digest()[:8], "big") % 10
    return {8: "validation", 9: "test"}.get(tenth, "train")

def read_file(path, options="", max_bad=0.01):
    """Yields (split, or "" where the file does not tell it, Example) for every usable row of a file."""
    names = dict(parse_qsl(options, keep_blank_values=True))
    numbers, share, pairs = names.pop("labels", "").upper(), names.pop("max_bad", str(max_bad)), names.pop("pairs", "")
    if sorted(numbers) not in ([], list("CEN")) or names.keys() - NAMES or not re.fullmatch(r"\d*\.?\d+(e-\d+)?", share):
        raise DataError(f"{path}: after ? stand labels=ENC (the letters in any order), max_bad=SHARE, pairs=SOURCE and {', '.join(NAMES)} = a column's name")
    pairs = {e.id: (own, e) for own, e in stream_splits(pairs)} if pairs else None
    names, max_bad, faults, dashes, mended, rows, whole = tuple(names.items()), float(share), [], [], Counter(), 0, False
    log = cache_folder() / "set_aside" / f"{path.name}.txt"
    try:
        with open(path, "rb") as file:
            mended["byte order mark"] += file.read(3) == b"\xef\xbb\xbf"
        for rows, (line, row) in enumerate(rows_of(path, names if pairs is None else None), 1):  # noqa: B007
            try:
                found = example_of(row, names, numbers, f"{path.stem}-{line}", mended, pairs)
            except DataError as e:
                (dashes if str(e) == NO_LABEL else faults).append(f"{path}:{line}: {e}")
                if len(faults) > max(1000, max_bad * rows):
                    break
            else:
                yield found
        whole = True
    except (OSError, csv.Error, DataError) as e:
        raise DataError(f"{path}:{rows + 1}: {e}") from None
    finally:  # also where the caller wants no more rows
        if faults or dashes:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("\n".join(faults + dashes), encoding="utf-8")
            if not whole or len(faults) <= max_bad * rows:
                tell(f"{path.name}: {len(faults):,} faulty rows and {len(dashes):,} with the label - of {rows:,} are set aside: {log}")
    for ours, theirs in names:
        if 0 < mended[f"rows without {theirs}"] == rows - len(faults) - len(dashes):  # a name that was given is not passed over
            raise DataError(f"{path}: no row has {theirs}, which was named for the {ours}")
    if len(faults) > max_bad * rows:
        raise DataError(f"{faults[0]}; {len(faults):,} of {rows:,} are at fault, over the share {max_bad:g} (FILE?max_bad=SHARE): {log} lists them")
    if +mended:
        tell(f"{path.name}: of {rows:,} rows, mended or noted: {', '.join(f'{what} {count:,}' for what, count in sorted((+mended).items()))}")

@lru_cache(1000)
def tell(line):
    """Say something on stderr, once: a file is read for each split, and anew for each run of a grid."""
    print(line, file=sys.stderr)

def rows_of(path, names=()):
    """Yields (line on which a row begins, {column: cell}, or the text of a JSON line)."""
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".txt", ".jsonl"):
        raise DataError("cannot tell the format from the file's name; it should end in .csv, .tsv (or .txt) or .jsonl")
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:  # -sig: a byte order mark is no part of a name
        if kind == ".jsonl":
            yield from ((line, text) for line, text in enumerate(file, 1) if text.strip())
            return
        waiting, taken = deque(), []  # lines to be read again, lines of the row at hand

        def lines():
            while text := waiting.popleft() if waiting else file.readline():
                taken.append(text)
                yield text

        manner = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind in (".tsv", ".txt") else {}
        table, line = csv.reader(lines(), **manner), 1
        header = tuple(next(table, ()))
        if names is not None:  # None: a table of reasons, whose pairs stand elsewhere
            columns(header, names, all_named=True)
        while True:
            line += len(taken)
            taken.clear()
            try:
                if (row := next(table, None)) is None:
                    return
                fault = "more cells than columns; quote one that holds the separator" if len(row) > len(header) else None
                if len(taken) > 1:  # strictly read, a quote that nobody closed ends in the file's end, or in a quote amid a cell; a whole one is no error
                    list(csv.reader(taken, strict=True))
            except csv.Error as e:
                row, fault = [""], str(e)
            if fault and len(taken) > 1:
                fault = "a quote that is not closed"
                waiting.extendleft(reversed(taken[1:]))
                del taken[1:]
            if fault:
                table = csv.reader(lines(), **manner)
            if row:  # cells missing at the end are looked for by their names
                yield line, {None: fault} if fault else dict(zip(header, row, strict=False))

@lru_cache(64)
def columns(present, names=(), all_named=False):
    """{our name: the column's name here} of the fields that are there; premise, hypothesis and label must be, and perhaps all in `names`."""
    wanted, names = ("premise", "hypothesis", "label", *(dict(names) if all_named else ())), NAMES | {ours: (theirs,) for ours, theirs in names}
    found = {ours: name for ours, theirs in names.items() for name in reversed(theirs) if name in present}  # predictions have a gold_label too
    for ours in wanted:
        if ours not in found:
            raise DataError(f"no column for the {ours} (one of {', '.join(names[ours])}); present: {repr(', '.join(present)[:200])[1:-1] or 'none'}"
                            + "; reasons without sentences are read by FILE?pairs=DATA" * ({*LABELS} <= {*present}))
    return found

def example_of(row, names, numbers, name, mended, pairs=None):
    """A row as (split or "", Example), counting in `mended` what was not as it should be; DataError says why it can't be one."""
    try:
        row = json.loads(row) if isinstance(row, str) else row
    except (ValueError, RecursionError) as e:
        raise DataError(f"not JSON ({e}); one object a line is expected") from None
    if not isinstance(row, dict) or None in row:
        raise DataError(row[None] if isinstance(row, dict) else f"{row!r:.40} is not an object")
    if pairs is not None:
        known = [theirs for ours, theirs in names if ours == "id"] or NAMES["id"]
        if not (paired := pairs.get(str(next((row[name] for name in known if name in row), None)))):
            raise DataError("the source named by pairs= holds no row of this id")
        own, e = paired
        row |= {"premise": e.premise, "hypothesis": e.hypothesis, "label": e.label, "rationale": row.get(e.label, ""), "split": own}
    found = columns(tuple(row), names)

    def text(column, value):
        if not isinstance(value, str) or not value.isascii() and re.search("[\ufffd\ud800-\udfff]", value):  # what stands for other bytes, half a character
            raise DataError(f"{column} is {value!r:.60}, not {'UTF-8' if isinstance(value, str) else 'a text'}")
        clean = " ".join(value.split())  # line breaks and doubled spaces are one space to a tokenizer
        if clean != value:
            mended["cells with line breaks" if len(value.strip().splitlines()) > 1 else "cells with doubled or outer spaces"] += 1
        return clean

    written = "" if row[found["label"]] is None else str(row[found["label"]])
    label = written.strip().lower()
    mended["labels with capitals or spaces"] += label != written
    label = {str(numbers.find(word[0].upper())): word for word in LABELS if numbers}.get(label.removesuffix(".0"), label)
    if label in ("-", "-1", "-1.0"):  # -1: what - became in copies with numbers
        raise DataError(NO_LABEL)
    if label not in ("", *LABELS):
        others = [name for name in NAMES["label"] if name in row and name != found["label"]]
        raise DataError(f"{found['label']} is {row[found['label']]!r:.60}; it may be {', '.join(LABELS)}, - (left out) or empty (unlabelled); "
                        "for 0, 1, 2, of which three readings are in use, FILE?labels=ENC says which letter is which number"
                        + "".join(f"; FILE?label={name} reads that column instead" for name in others))
    premise, hypothesis = (text(found[ours], row[found[ours]]) for ours in ("premise", "hypothesis"))
    if not premise or not hypothesis:
        raise DataError(f"{found['hypothesis' if premise else 'premise']} is empty")
    three = [row.get(f"Explanation_{k}") or row.get(f"explanation_{k}") or "" for k in (1, 2, 3)]
    given = [row[found["rationale"]] or ""] if "rationale" in found else row.get("explanations") or three
    reasons = {k: reason for k, reason in enumerate((text("an explanation", r) for r in (given if isinstance(given, list) else [None])), 1) if reason}
    marked = [tuple(str(row.get(f"Sentence{side}_marked_{k}") or "") for side in (1, 2)) for k in reasons] if "Sentence1_marked_1" in row else ()
    mended["rows without a label"] += not label
    mended["rows without an explanation"] += not reasons
    mended["rows with some explanations empty"] += bool(reasons) and any(not str(row.get(f"Explanation_{k}", "x") or "").strip() for k in (1, 2, 3))
    mended["explanations without a highlighted word"] += sum("*" not in premise + hypothesis for premise, hypothesis in marked)
    split = str(row.get(found.get("split")) or "").strip().lower()
    split = {"trial": "validation", "dev": "validation", "val": "validation", "valid": "validation", "training": "train"}.get(split, split)
    if split not in ("", *SPLITS):
        raise DataError(f"{found['split']} is {split!r:.40}; it may be {', '.join(SPLITS)}, or empty: told by a hash of the premise")
    mended.update(f"rows without {theirs}" for ours, theirs in names if ours not in found)  # of rows that are used
    own = row.get(found.get("id"))
    return split, Example(
        name if own in (None, "") else str(own), premise, hypothesis, label or None, tuple(reasons.values()), tuple(marked), str(row.get("kind", "")))

def fetch_esnli(folder, split=None):
    """Bring the official files of e-SNLI (Camburu et al. 2018) that are not there yet, from $ESNLI_URL if it is set. Each grows as
    NAME.part.csv, which a later try or call goes on with, and takes its name once its length and rows are right. Raises DataError."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, rows in [item for own in SPLITS if split in (None, own) for item in FOLDERS[0][own].items() if not (folder / item[0]).exists()]:
        url, part = f"{os.environ.get('ESNLI_URL', ESNLI_URL).rstrip('/')}/{file}", folder / file.replace(".csv", ".part.csv")
        try:
            retry(download, url, part)
            if (found := sum(1 for _ in rows_of(part))) != rows:
                raise DataError(f"what came holds {found:,} rows, not {rows:,}")
        except (OSError, HTTPException, DataError) as e:
            if isinstance(e, DataError):
                part.unlink()
            raise DataError(f"{url}: not fetched ({e}); run this again to go on, or download it by hand to {folder / file}") from None
        os.replace(part, folder / file)

def download(url, part):
    """Download a file, or what its part here lacks, with a progress bar."""
    done = part.stat().st_size if part.exists() else 0
    try:
        reply = urllib.request.urlopen(urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {}), timeout=60)
    except urllib.request.HTTPError as e:
        if e.code == 416:  # what lies here is not the beginning of what lies there, or is all of it
            part.unlink()
        raise
    done = done if reply.status == 206 else 0  # else the whole file comes, whatever was asked
    total = done + int(reply.headers.get("Content-Length") or 0)
    with reply, open(part, "ab" if done else "wb") as file, tqdm.wrapattr(file, "write", total, desc=url.split("/")[-1], initial=done) as out:
        shutil.copyfileobj(reply, out)
    if part.stat().st_size < total:
        raise ConnectionError(f"cut after {part.stat().st_size:,} of {total:,} bytes")

def retry(call, *args):
    """call(*args), again after failures that may pass: after 1, 2, 4, 8 seconds, or when the server's Retry-After
    says, if that is later. Raises the fifth, and ConnectionError where ten minutes would not be enough."""
    for pause in (1, 2, 4, 8, None):
        try:
            return call(*args)
        except (OSError, HTTPException) as e:
            if not pause or (getattr(e, "code", 500) < 500 and e.code not in (408, 416, 429)):
                raise
            told = str(getattr(e, "headers", {}).get("Retry-After"))  # seconds or a date
            date = parsedate_tz(told)
            try:
                wait = float(told) if told.isdecimal() else mktime_tz(date) - time.time() if date else pause
            except (ValueError, OverflowError):  # of a year that there is not
                wait = pause
            if wait > 600:
                raise ConnectionError(f"the server asks to wait for {wait:,.0f} seconds") from None
            time.sleep(max(pause, wait))

# --- tokens -----------------------------------------------------------------------------------------------------------
PAD, EOS, UNK, SENTINELS = 0, 1, 2, 100  # sentinels are T5's blanks, <extra_id_0> … <extra_id_99>; their ids count down from the end
SPECIAL = re.compile(r"(<extra_id_(?:[1-9][0-9]|[0-9])>|</s>|<pad>|<unk>)")

class Tokenizer:
    """Text to T5's token ids and back (Kudo and Richardson 2018), as transformers' T5Tokenizer does; "</s>" in a text is one token."""
    def __init__(self, path):
        self.path, self.model = Path(path), sentencepiece.SentencePieceProcessor()
        try:
            self.model.LoadFromSerializedProto(self.path.read_bytes())
        except (OSError, RuntimeError) as e:
            raise DataError(f"{path}: no SentencePiece vocabulary there, or a damaged one ({e}); put T5's spiece.model there, or train one") from None
        pieces = [self.model.IdToPiece(i) for i in range(min(3, self.model.GetPieceSize()))]
        if pieces != ["<pad>", "</s>", "<unk>"]:
            raise DataError(f"{path}: begins with the pieces {' '.join(pieces)}, T5's with <pad> </s> <unk>; train one of that layout")
        self.vocab_size = self.model.GetPieceSize() + SENTINELS  # T5: 32,000 pieces + 100 sentinels = 32,100
        self.special = {"<pad>": PAD, "</s>": EOS, "<unk>": UNK} | {f"<extra_id_{k}>": self.vocab_size - 1 - k for k in range(SENTINELS)}

    def encode(self, text):
        """"a dog" -> [3, 9, 1782, 1]: the ids of its pieces and </s> = 1."""
        ids = []
        for i, piece in enumerate(SPECIAL.split(text)):  # texts at even places, special tokens between them
            ids += [self.special[piece]] if i % 2 else self.model.EncodeAsIds(piece)
        return ids + [EOS]

    def encode_all(self, texts):
        """[encode(text), …], on all cores."""
        rows = self.model.EncodeAsIds(texts, num_threads=os.cpu_count() if len(texts) > 999 else 1)  # threads take time to start
        return [self.encode(text) if "<" in text else row + [EOS] for text, row in zip(texts, rows, strict=True)]

    def decode(self, ids):
        """[3, 9, 1782, 1, 0, 0] -> "a dog". Padding, </s>, sentinels and rows beyond the vocabulary are dropped; an unknown is "⁇"."""
        pieces = self.vocab_size - SENTINELS
        return self.model.DecodeIds([int(i) for i in ids if UNK <= i < pieces])

def train_vocabulary(texts, path, size):
    """Train a unigram vocabulary (Kudo 2018) in T5's layout and write it to `path`: `size` pieces before the 100 sentinels, fewer where
    the texts hold no more; LABELS are whole pieces. The trainer gets each word as often as its share of 200,000, however long the texts."""
    words = Counter(word for text in texts for word in text.split())
    words.update(dict.fromkeys(LABELS, 1 + words.total() // 100))
    lines = [word for word, count in words.items() for _ in range(1 + 200_000 * count // words.total())]
    # The trainer takes for candidates what two different words begin with: "dog" alone is none, "dog" and "dog." make one.
    stems = sorted({stem for word in words for stem in re.findall(r"[^\W\d_]+", word)})
    path, part = Path(path), Path(f"{path}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        if words.keys() == set(LABELS):
            raise RuntimeError("there is no text")
        with open(part, "wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines + stems + [f"{stem}." for stem in stems]), model_writer=file, vocab_size=size, model_type="unigram",
                pad_id=PAD, eos_id=EOS, unk_id=UNK, bos_id=-1, hard_vocab_limit=False, character_coverage=0.9999, num_threads=1, minloglevel=2)
        if any(len(Tokenizer(part).encode(label)) != 2 for label in LABELS):
            raise RuntimeError("it would break a label's word up")
        os.replace(part, path)
    except (RuntimeError, ValueError) as e:
        part.unlink(missing_ok=True)
        raise DataError(f"no vocabulary of {size} pieces from {len(words)} words: {str(e).strip().splitlines()[-1]}; change the size or give more text") from e

# --- formats: how an example is put to the model, and its answer read back ---------------------------------------------
@dataclass(frozen=True)
class Format:
    """A way to put an example to the model. source: its text, or several wordings of it; target: (part, text, the word without which it is left
    out), joined by spaces; answer: the pattern that reads the target back; `words` stand for the labels."""
    name: str
    source: str | tuple
    target: tuple
    answer: str
    words: tuple = LABELS

    @property
    def parts(self):
        """What a target is made of, in order: of "label" and "rationale"."""
        return tuple(dict.fromkeys(part for part, *_ in self.target))

    @property
    def needs(self):
        """What an example must have: the parts, and a rationale where the source shows it."""
        return {*self.parts} | ({"rationale"} if "{reason}" in self.source else set())

    def pieces(self, example, explanation=0):
        """(source, [(part, text), …]): the texts joined by spaces are the target, without what the example lacks; own words are rationale."""
        said = {"label": self.words[LABELS.index(example.label)] if example.label else "", "reason": "".join(example.explanations[explanation:][:1]),
                "premise": example.premise, "hypothesis": example.hypothesis}
        source = self.source if isinstance(self.source, str) else self.source[sum((example.premise + example.hypothesis).encode()) % len(self.source)]
        return source.format(**said), [(part, text.format(**said)) for part, text, needed in self.target if said[needed]]

    def render(self, example, explanation=0):
        """(source text, target text).
        >>> example = Example("2", "a spaniel dozes.", "a dog rests.", "entailment", ("a spaniel is a dog.",))
        >>> for name, format in FORMATS.items():
        ...     print(name, *format.render(example), sep=" | ")
        predict | predict: premise: a spaniel dozes. hypothesis: a dog rests. | entailment
        explain | explain: premise: a spaniel dozes. hypothesis: a dog rests. | a spaniel is a dog.
        label_then_rationale | judge: premise: a spaniel dozes. hypothesis: a dog rests. | entailment explanation: a spaniel is a dog.
        rationale_then_label | reason: premise: a spaniel dozes. hypothesis: a dog rests. | a spaniel is a dog. answer: entailment
        instruction | Suppose we know this: a spaniel dozes. Can we be sure of this: a dog rests. OPTIONS: - yes - it is not possible to tell - no | yes
        simulate_input | guess: premise: a spaniel dozes. hypothesis: a dog rests. | entailment
        simulate_reason | guess: reason: a spaniel is a dog. | entailment
        simulate_both | guess: premise: a spaniel dozes. hypothesis: a dog rests. reason: a spaniel is a dog. | entailment
        """
        source, pieces = self.pieces(example, explanation)
        return source, " ".join(text for _, text in pieces)

    def parse(self, text):
        """What the model wrote -> (label or None, rationale). Case, spaces and a full stop may vary; what does not fit is (None, the text)."""
        label = rf"(?P<label>(?a:{'|'.join(self.words)}))\s*\.?".replace(" ", r"\s+")
        found = re.fullmatch(self.answer.replace("LABEL", label), text.strip(), re.IGNORECASE | re.DOTALL)
        said = {"label": "", "rationale": "", **{part: words or "" for part, words in (found.groupdict() if found else {}).items()}}
        word = " ".join(said["label"].lower().split())
        return (LABELS[self.words.index(word)] if word else None, said["rationale"].strip()) if found else (None, text)

PAIR, CHOICES = "premise: {premise} hypothesis: {hypothesis}", ("yes", "it is not possible to tell", "no")
LABEL, WHY, REASON = ("label", "{label}", "label"), ("rationale", "{reason}", "reason"), r"(?P<rationale>.*)"
WORDINGS = tuple(f"{wording} OPTIONS: - {' - '.join(CHOICES)}" for wording in (
    "{premise} Given only this, is it true that: {hypothesis}",
    "Read the text and judge the claim. Text: {premise} Claim: {hypothesis} Does the claim follow from the text?",
    "Suppose we know this: {premise} Can we be sure of this: {hypothesis}",
    'Here is a sentence: "{premise}" And here is another: "{hypothesis}" If the first is true, is the second true as well?'))
FORMATS = {format.name: format for format in (
    Format("predict", f"predict: {PAIR}", (LABEL,), "LABEL"),  # with explain the two tasks of Hsieh et al. 2023, arXiv 2305.02301
    Format("explain", f"explain: {PAIR}", (WHY,), REASON),  # without being told the label
    # The label first, as in WT5 (Narang et al. 2020, arXiv 2004.14546): the reason cannot help it.
    Format("label_then_rationale", f"judge: {PAIR}", (LABEL, ("rationale", "explanation:", "reason"), WHY), rf"LABEL(\s*explanation:\s*{REASON})?"),
    # The reason first, a chain of thought (Wei et al. 2022, arXiv 2201.11903): the label can lean on it.
    Format("rationale_then_label", f"reason: {PAIR}", (WHY, ("rationale", "answer:", "label"), LABEL), rf"({REASON}\s)?answer:\s*LABEL"),
    # A request in the manner of FLAN (Wei et al. 2021, arXiv 2109.01652), in one of several wordings, with the options that it has.
    Format("instruction", WORDINGS, (LABEL,), r"-?\s*LABEL", CHOICES),
    # What will another model answer? A simulator's three tasks (Hase et al. 2020, arXiv 2010.04119): from the input, its reason, or both.
    Format("simulate_input", f"guess: {PAIR}", (LABEL,), "LABEL"),
    Format("simulate_reason", "guess: reason: {reason}", (LABEL,), "LABEL"),
    Format("simulate_both", f"guess: {PAIR} reason: {{reason}}", (LABEL,), "LABEL"))}

# --- batches ----------------------------------------------------------------------------------------------------------
def encode_examples(tokenizer, format, rows, max_source=512, max_target=256):
    """[(example, number of the explanation), …] -> their rows (source ids, target ids, label tokens): the last tells of each target token whether
    it belongs to the label. Pieces are encoded one by one, which gives the ids of the whole text, as no SentencePiece token reaches across a
    space. Longer texts are cut, </s> kept. Without what the format asks for, a target is </s> alone."""
    written = [format.pieces(*row) for row in rows]
    ids = iter(tokenizer.encode_all([text for source, pieces in written for text in (source, *(text for _, text in pieces))]))
    encoded = []
    for _, pieces in written:
        source, target, flags = next(ids)[:-1], [], []
        for part, _ in pieces:
            tokens = next(ids)[:-1]
            target += tokens
            flags += [part == "label"] * len(tokens)
        last = (flags[: max_target - 1] or [format.parts[-1] == "label"])[-1:]  # </s> belongs to the last piece that is there
        encoded.append((source[: max_source - 1] + [EOS], target[: max_target - 1] + [EOS], flags[: max_target - 1] + last))
    return encoded

class Encoded:
    """Rows of encode_examples in one flat file of ids that is mapped, not read: it costs no start and no memory, and processes share it.
    Item i is (source ids, target ids, label tokens) as numpy arrays; lengths (N, 2) are those of source and target."""
    def __init__(self, path):
        # asarray: of a plain view of the same memory a row costs a third of the time
        self.ids = np.asarray(np.memmap(f"{path}.ids", np.int32, "r"))  # sources and targets in turn; a token of the label as -1 - id
        self.lengths = np.asarray(np.memmap(f"{path}.lengths", np.int64, "r")).reshape(-1, 2)
        self.ends = self.lengths.cumsum().reshape(-1, 2)
        if self.ends[-1, -1] != len(self.ids):
            raise ValueError(f"{path}: its lengths do not add up to its ids")

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, i):
        middle, end = self.ends[i]
        target = self.ids[middle:end]
        return self.ids[middle - self.lengths[i, 0] : middle], np.where(target < 0, -1 - target, target), target < 0

def encoded_rows(source, split, tokenizer, tasks, max_source=512, max_target=256, limit=0, explanations=1):
    """{task: Encoded} of a source or a list of examples, at most `limit` of them, in the formats named by `tasks`; an example is as many rows
    as it has explanations, up to `explanations` (0: all). Those that lack what a task asks for are left out of all, and told. Kept in the
    cache folder under a hash of all that the rows depend on: 549,367 of them take under a minute the first time, then two seconds."""
    given = isinstance(source, list)
    key = hashlib.sha256(repr((given or str(source), split, tasks, max_source, max_target, limit, explanations)).encode())
    parts = [] if given else parts_of(source)
    whole = [(name, None) for _, options, _ in parts for name, *_ in parts_of(dict(parse_qsl(options)).get("pairs", "toy"))]
    names = [(name, part) for name, part in [(name, split) for name, *_ in parts] + whole if not re.fullmatch(TOY, name)]
    for path in (tokenizer.path, __file__, WORLDS, *(path for name, part in names for path, _ in files_of(name, part))):
        with open(path, "rb") as file:  # in blocks: mapped it would count as this program's memory
            while block := file.read(1 << 20):
                key.update(block)
    for example in source if given else ():
        key.update(repr(example).encode())
    folder = cache_folder() / "encoded" / key.hexdigest()[:32]
    if folder.is_dir():
        with suppress(OSError, ValueError):  # it is damaged, and made anew
            return {task: Encoded(folder / task) for task in tasks}
        shutil.rmtree(folder)
    examples = islice(source if given else stream_examples(source, split), limit or None)
    wanted, read, kept = set().union(*(FORMATS[task].needs for task in tasks)), 0, 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as work, tqdm(desc="encoding", unit="row", disable=None) as bar:
        (part := Path(work, "rows")).mkdir()
        while chunk := list(islice(examples, 5000)):
            usable = [e for e in chunk if (e.label or "label" not in wanted) and (e.explanations or "rationale" not in wanted)]
            rows = [(e, k) for e in usable for k in range(min(len(e.explanations), explanations or 99) if "rationale" in wanted else 1)]
            read, kept = read + len(chunk), kept + len(usable)
            for task in tasks:
                encoded = encode_examples(tokenizer, FORMATS[task], rows, max_source, max_target)
                flat = [side for ids, target, flags in encoded for side in (ids, [-1 - i if own else i for i, own in zip(target, flags, strict=True)])]
                ids, lengths = np.array([i for side in flat for i in side], np.int32), np.array([*map(len, flat)], np.int64)
                for ending, array in (("ids", ids), ("lengths", lengths)):
                    with open(part / f"{task}.{ending}", "ab") as file:
                        file.write(array.tobytes())
            bar.update(len(chunk))
        if kept and not folder.is_dir():  # else another process was first
            part.rename(folder)
    if kept < read:
        print(f"{read - kept:,} of {read:,} rows lack a {' or a '.join(sorted(wanted))} and are left out", file=sys.stderr)
    if not kept:
        raise DataError(f"none of {read:,} rows has a {' and a '.join(sorted(wanted))}, which {' and '.join(tasks)} need")
    return {task: Encoded(folder / task) for task in tasks}

@dataclass
class Batch:
    """Rows side by side, padded on the right to the longest."""
    source: torch.Tensor  # (B, S) long, padded with 0
    source_mask: torch.Tensor  # (B, S) bool, True = token
    labels: torch.Tensor  # (B, T) long, padded with -100
    label_tokens: torch.Tensor | None = None  # (B, T) bool; None: every token belongs to the label
    ids: tuple = ()  # what a CachedTeacher knows the rows by
    weights: torch.Tensor | None = None  # (B,) how much each row counts; None: all alike

    def to(self, device):
        """The batch on another device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)})

    def split(self, rows):
        """The batch in batches of so many rows; the last may have fewer."""
        return [replace(self, **{name: value[start : start + rows] for name, value in vars(self).items() if value is not None})
                for start in range(0, len(self.source), rows)]

def collate(rows, ids=()):
    """Rows of encode_examples -> Batch."""
    def pad(side, value, dtype=np.int64):
        table = np.full((len(side), max(map(len, side))), value, dtype)
        for cells, row in zip(table, side, strict=True):
            cells[: len(row)] = row
        return torch.from_numpy(table)
    source, target, label_tokens = zip(*rows, strict=True)
    return Batch(pad(source, PAD), pad([[True] * len(row) for row in source], False, bool), pad(target, -100), pad(label_tokens, False, bool), ids)

class BucketSampler:
    """Batches of row numbers for ever, rows of like length together, every row once an epoch; the last of a pool may be smaller.
    lengths (N,) or (N, 2): of rows, or of their sources and targets. An epoch depends on (seed, epoch) alone: pools of 512 random batches are
    sorted by the side that would waste more padding and halved, and the halves again, until each is a batch; the batches are shuffled.
    Lengths are blurred by 1% at each epoch, or rows would keep the same company."""
    def __init__(self, lengths, batch_size, seed):
        self.lengths, self.batch_size, self.seed = np.asarray(lengths).reshape(len(lengths), -1), batch_size, seed
        self.place = 0, 0  # the epoch, and how many of its batches have been handed out; set it to go on from there

    def batches(self, epoch):
        """All batches of one epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        blurred = self.lengths * (1 + 0.01 * rng.standard_normal(self.lengths.shape))
        parts, batches = np.split(rng.permutation(len(blurred)), range(512 * self.batch_size, len(blurred), 512 * self.batch_size)), []
        while parts:
            rows = parts.pop()
            if len(rows) <= self.batch_size:
                batches.append(rows.tolist())
                continue
            side = (blurred[rows].max(0) - blurred[rows].mean(0)).argmax()
            rows = rows[blurred[rows, side].argsort()]
            parts += np.split(rows, [-(-len(rows) // self.batch_size) // 2 * self.batch_size])  # whole batches on the left
        return [batches[i] for i in rng.permutation(len(batches))]

    def __iter__(self):
        while True:
            epoch, done = self.place
            for k, batch in enumerate(self.batches(epoch)[done:], done + 1):
                self.place = epoch, k  # before it is handed out: a place saved after that step goes on with the next
                yield batch
            self.place = epoch + 1, 0

# --- python data.py NAME: what a data set holds, and what gives its labels away -----------------------------------------
FRAMES = {  # of e-SNLI's uninformative explanations (Camburu et al. 2018, appendix A), without the sentences put in them
    "just because": "just because", "does not mean": "do(es)?( not|n't) (mean|imply)", "implies": "impl(y|ies)", "if … then": "^if .* then ",
    "rephrases": "rephras", "the same as": "the same (thing|as)", "sentence 1, 2": "sentence (1|2|one|two)", "there is": "^there (is|are) ",
    "can (not) infer, also, either": "can('t| ?not)? (infer|assume|also|either)", "either … or": "^either .* or ", "it cannot be": "^it cannot be .* if",
    "contradicts": "contradict", "is different": "is (not the same|different)"}
NEGATION = r"\b(no|not|nobody|nothing|never|none)\b|n't\b"
SAMPLE = 30_000  # all rows are counted; so many, drawn at random where there are more, are looked at closely

def words_of(text):
    """The words of a text, in lower case."""
    return re.findall(r"\w+", text.lower())

def share(found):
    """In percent, how many are true; of none: 0."""
    found = list(map(bool, found))
    return 100 * sum(found) / max(1, len(found))

def measures_of(e, tokenizer=None):
    """What `explore` tells of an example: {name: its values}; those of a share of rows (not of words) are True or False."""
    known, texts = [set(words_of(text)) for text in (e.premise, f"{e.premise} {e.hypothesis}")], e.explanations
    starred = [[share("*" in word for word in text.split()) for text in texts] for texts in zip(*e.highlights, strict=True)] or ([], [])
    sides = {"premise": [e.premise], "hypothesis": [e.hypothesis], "explanation": texts}
    return {**{f"words of its {name}": [len(words_of(text)) for text in side] for name, side in sides.items()},
            **{f"tokens of its {name}": [len(ids) - 1 for ids in tokenizer.encode_all(list(side))] for name, side in {
                "source": [FORMATS["explain"].render(e)[0]], **sides}.items() if tokenizer},
            "% of the hypothesis' words not in the premise": [share(word not in known[0] for word in words_of(e.hypothesis))],
            "% of an explanation's words in neither": [share(word not in known[1] for word in words_of(text)) for text in texts],
            "% of words that two explanations share": [200 * (Counter(words_of(a)) & Counter(words_of(b))).total() / max(1, len(words_of(f"{a} {b}")))
                                                       for a, b in combinations(texts, 2)],
            "% of the premise's words highlighted": starred[0], "% of the hypothesis' words highlighted": starred[1],
            "% of hypotheses with a negation": [bool(re.search(NEGATION, e.hypothesis.lower()))],
            **{f"% of explanations: {name}": [bool(re.search(frame, text.lower())) for text in texts] for name, frame in FRAMES.items()}}

def telling_phrases(groups, texts):
    """{label: phrases, the share of their rows that have the label}: up to three words, by pointwise mutual information with the label, 100
    added to each count, or rare ones would come first (Gururangan et al. 2018); none that holds or is held by a better one."""
    def phrases(e):
        return {" ".join(words[i : i + n]) for words in map(words_of, texts(e)) for n in (1, 2, 3) for i in range(len(words) - n + 1)}
    counts = {label: Counter(phrase for e, _ in group for phrase in phrases(e)) for label, group in groups.items()}
    total, found = sum(counts.values(), Counter()), {}
    for label, own in counts.items():
        best = found[label] = {}
        for phrase in sorted(own, key=lambda phrase: (-(own[phrase] + 100) / (total[phrase] + 100 * len(counts)), len(phrase), phrase))[:100]:
            if len(best) < 8 and not any(f" {phrase} " in f" {better} " or f" {better} " in f" {phrase} " for better in best):
                best[phrase] = own[phrase] / total[phrase]
    return found

def explore(source, picture, tokenizer=None):
    """Print a page on a data set, and draw it to a file: rows, labels, pairs that come twice, properties label by label, what gives the labels
    away, rows to look at. Returns the examples that were looked at closely."""
    from matplotlib.figure import Figure  # here, as it takes a second
    def line(name, cells):
        print(f"{name:46}" + "".join(f"{cell:>15{'.1f' if isinstance(cell, float) else ',' if isinstance(cell, int) else ''}}" for cell in cells))
    rng, sample, counts, met, homes, odd = random.Random(0), [], Counter(), {}, {}, {}
    for row, (split, e) in enumerate(tqdm(stream_splits(source), desc="reading", unit="row", disable=None)):
        counts[split, e.label or "none"] += 1
        if row < SAMPLE:
            sample.append(e)
        elif (k := rng.randrange(row + 1)) < SAMPLE:
            sample[k] = e
        homes.setdefault(hash(e.premise.lower()), set()).add(split)
        twins = met.setdefault(hash(e.pair), [])
        twins.append((split, e.label))
        if len(twins) > 1:
            odd[f"comes twice, with {'one label' if len({label for _, label in twins} - {None}) < 2 else 'several labels'}"] = e
    if not sample:
        raise DataError(f"{source}: there are no rows")
    groups = {label or "none": group for label in (*LABELS, None) if (group := [(e, measures_of(e, tokenizer)) for e in sample if e.label == label])}
    line(f"{counts.total():,} rows on {len(homes):,} premises", groups)
    splits = dict.fromkeys((*SPLITS, *(split for split, _ in counts)))
    for name, part in {"all": splits, **{split: [split] for split in splits}}.items():
        line(f"  {name}", [sum(counts[split, label] for split in part) for label in groups])
    pairs = [(len(twins), *(len({*side} - {None}) for side in zip(*twins, strict=True))) for twins in met.values()]  # (rows, splits, labels) of each
    print(f"{sum(n > splits for n, splits, _ in pairs):,} pairs come twice or more in a split, {sum(splits > 1 for _, splits, _ in pairs):,} in several "
          f"splits, {sum(labels > 1 for *_, labels in pairs):,} with several labels; "
          f"{sum(len(splits) > 1 for splits in homes.values()):,} premises stand in several splits\n")
    table = {name: [[value for _, own in group for value in own[name]] for group in groups.values()] for name in measures_of(sample[0], tokenizer)}
    table = {name: columns for name, columns in table.items() if any(map(any, columns))}
    yes_or_no = {name: list(map(share, columns)) for name, columns in table.items() if isinstance(max(columns, key=len)[0], bool)}
    for name, columns in table.items():
        line(name, yes_or_no.get(name) or [float(np.mean(column or [0])) for column in columns])
        for size in (16, 32, 64, 128) if name in ("tokens of its source", "tokens of its explanation") else ():
            line(f"% cut at {size}: {name}", [share(n + 1 > size for n in column) for column in columns])  # </s> needs room too
    if not tokenizer:
        print("Lengths in tokens are not told: --vocabulary=FILE names T5's spiece.model; the cache holds none.")
    for what, texts in (("hypothesis", lambda e: [e.hypothesis]), ("explanation", lambda e: e.explanations)):
        for label, best in telling_phrases(groups, texts).items():
            if best:
                print(f"{what} phrases of {label}: {', '.join(f'{phrase} {of_all:.0%}' for phrase, of_all in best.items())}")
    for way, name in ((max, "words of its premise"), (min, "words of its explanation"), (max, "words of its explanation"),
                      (min, "% of words that two explanations share"), (min, "% of the hypothesis' words highlighted")):
        told = [(value, e) for group in groups.values() for e, own in group for value in own[name]]
        odd |= {f"{way.__name__} {name}": way(told, key=lambda one: one[0])[1]} if told else {}
    for why, e in {**odd, "any": sample[0]}.items():
        print(f"\n{why}: {e.id} {e.label}", e.premise, e.hypothesis, *e.explanations, sep="\n  ")
    left, right = (figure := Figure(figsize=(18, 13), layout="constrained")).subfigures(1, 2, width_ratios=(5, 2))
    numbers = {name: columns for name, columns in table.items() if name not in yes_or_no}
    for i, (name, columns) in enumerate(numbers.items(), 1):
        axes = left.add_subplot(-(-len(numbers) // 3), 3, i, title=name, ylabel="% of a label's rows")
        axes.hist([column or [0] for column in columns], 15, weights=[np.full(max(1, len(column)), 100 / max(1, len(column))) for column in columns])
    bars = right.subplots()
    for i, label in enumerate(groups):
        bars.barh(np.arange(len(yes_or_no)) + i / 4, [columns[i] for columns in yes_or_no.values()], 0.25, label=label)
    bars.set_yticks(range(len(yes_or_no)), yes_or_no)
    bars.set_ylim(max(14, len(yes_or_no)), -1)  # from the top down
    bars.legend(loc="lower right")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)
    print(f"\nwrote {picture}")
    return sample

def out_of_memory(e):
    """Does an error say that memory does not suffice?"""
    return isinstance(e, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(e)

def run_main(main, *errors):
    """Run a script's main as its users expect it: bad input (DataError and the errors that are named) is one line on stderr and exit
    status 2, Ctrl-C is 130, a reader that closed the pipe, as head does, is no error."""
    sys.stdout, sys.stderr = sys.stdout or open(os.devnull, "w"), sys.stderr or open(os.devnull, "w")  # closed: progress bars and input() want one
    sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows another
    try:
        main(sys.argv[1:])
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (DataError, OSError, *errors) as e:  # OSError: a full disk, a folder that may not be written to
        tqdm.write(f"error: {' '.join(str(e).split())}", sys.stderr)  # on a line of its own, whatever bar is drawn
        sys.exit(2)
    except (RuntimeError, MemoryError) as e:
        if not out_of_memory(e):
            raise
        tqdm.write("error: memory does not suffice; try a smaller batch_size, max_source, max_target, num_beams or model", sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        tqdm.write("interrupted", sys.stderr)
        sys.stdout.flush()
        os._exit(130)  # sys.exit would wait for requests under way

def main(argv):
    """`python data.py …`"""
    if argv[:1] == ["collect"]:  # it needs models that answer, which stand a floor higher
        os.execv(sys.executable, [sys.executable, str(Path(__file__).with_name("apprentice.py")), *argv])
    if "--help" in argv or "-h" in argv:
        return print(__doc__)
    if download := re.fullmatch(r"download( esnli)?( --out=(.+))?", " ".join(argv)):
        fetch_esnli(folder := Path(download[3] or cache_folder() / "esnli").expanduser())
        return print(f"e-SNLI (Camburu et al. 2018) is in {folder}: {', '.join(file for files in FOLDERS[0].values() for file in files)}")
    vocabulary = [arg.partition("=")[2] for arg in argv if arg.startswith("--vocabulary=")] or sorted(cache_folder().glob("*/spiece.model"))
    words = [arg for arg in argv if not arg.startswith("--vocabulary=")] or ["toy"]
    if len(words) > 1 or words[0].startswith("-"):
        raise DataError(f"{' '.join(argv)}: not understood; python data.py --help tells what is")
    picture = Path("out") / re.sub(r"[^\w.]+", "-", f"data-{words[0] if '?' in words[0] else Path(words[0]).stem}.png")
    sample = explore(words[0], picture, Tokenizer(vocabulary[0]) if vocabulary else None)
    sample = sorted(sample, key=lambda e: -len(e.explanations))[:10_000]  # first those whose annotators can be compared
    picture.with_suffix(".jsonl").write_text("".join(json.dumps(vars(e)) + "\n" for e in sample), encoding="utf-8")
    print(f"\nof {len(sample):,} rows, those with most reasons first where there are more:", flush=True)  # readers that learn stand two floors higher
    os.execv(sys.executable, [sys.executable, str(Path(__file__).with_name("evaluate.py")), f"--data={picture.with_suffix('.jsonl')}"])

if __name__ == "__main__":
    run_main(main)
