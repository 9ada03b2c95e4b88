"""Data: from a file, or from a small made-up world, to padded batches of token ids.

    python data.py                        look at the toy world: rows, labels, lengths, samples        (seconds)
    python data.py toy-harbour            its second domain: the same grammar, no content word shared
    python data.py FILE                   the same for a CSV, TSV or JSONL file of pairs               (seconds)
    python data.py esnli                  the same for e-SNLI, fetched at first use                    (a minute, 570,000 rows)
    python data.py download esnli [--out=DIR]     only fetch the four official files                   (about 410 MB)

The way through this file is the way of one example: `Example` -> read_examples (files, names, the toy world) -> a format of
FORMATS writes it as (source text, target text) -> Tokenizer -> encode_example -> BucketSampler picks rows of like length ->
collate pads them to a Batch. Read next: model.py (what a batch goes through), apprentice.py (how answers come back as text).
"""
from __future__ import annotations

import csv
import hashlib
import http.client
import io
import json
import os
import random
import re
import sys
import urllib.error
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import sentencepiece
import torch
from tqdm import tqdm

LABELS = ("entailment", "neutral", "contradiction")     # words everywhere: three numberings of them are in the wild
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """Two sentences, how the second follows from the first, and why.

    label         one of LABELS, or None: not labelled
    explanations  the reasons people (or a teacher) gave; none, one, or three in e-SNLI's dev and test files
    highlights    beside each explanation (premise, hypothesis) with the words that matter between *stars*; () if there are none
    kind          the toy world's inference type ("kind+place"); "" elsewhere
    """
    id: str
    premise: str
    hypothesis: str
    label: str | None
    explanations: tuple[str, ...] = ()
    highlights: tuple[tuple[str, str], ...] = ()
    kind: str = ""


class DataError(ValueError):
    """Bad data. The text is one line: what was wrong, where (file, line, column, value), and what to do."""


# ---------------------------------------------------------------------------------------------------------------------
# The toy world: pairs with reasons, as many as one likes, that can be judged only with knowledge of the words
#
# Words stand in chains, narrow to wide: a spaniel is a dog, a dog is a pet, a pet is an animal; the bench is at the
# fountain, the fountain is in the garden. A line below holds narrow words and what they all are. Two chains exclude each
# other from the level on at which they differ: nothing is a dog and a cat, nobody rests and moves. All aspects have eight
# narrow words (things sixteen) in equal groups, so that every word of a level is drawn equally often.
WORLDS = {
    "park": {
        "kind": {"spaniel poodle": "dog pet animal", "tabby siamese": "cat pet animal",
                 "soprano tenor": "singer artist person", "muralist engraver": "painter artist person"},
        "place": {"bench statue": "fountain garden park", "orchid fern": "greenhouse garden park",
                  "seesaw bucket": "sandpit playground school", "ladder tunnel": "slide playground school"},
        "action": {"sleeping lounging": "resting", "running hopping": "moving", "chewing nibbling": "eating",
                   "yelling humming": "calling"},
        "colour": {"scarlet crimson": "red", "navy azure": "blue", "emerald olive": "green", "amber lemon": "yellow"},
        "thing": {"kites dolls marbles puppets apples pears plums cherries "
                  "rakes spades shears shovels flutes drums harps fiddles": ""},
    },
    "harbour": {
        "kind": {"puffin razorbill": "auk seabird creature", "eider scoter": "duck seabird creature",
                 "captain bosun": "officer sailor human", "stoker rigger": "deckhand sailor human"},
        "place": {"winch pulley": "crane quay port", "barrel pallet": "warehouse quay port",
                  "bollard railing": "pier beach island", "driftwood boulder": "cove beach island"},
        "action": {"bobbing drifting": "floating", "loitering pausing": "waiting", "stalking lurking": "hunting",
                   "rinsing mopping": "washing"},
        "colour": {"ivory pearl": "white", "ebony jet": "black", "chestnut russet": "brown", "slate ash": "grey"},
        "thing": {"canoes dinghies rafts ferries sacks tins baskets crates "
                  "mussels oysters clams cockles scarves mittens jackets jerseys": ""},
    },
}
COUNTS = {"two three four five": "fewer_than_six", "seven eight nine ten": "more_than_six"}
OPENERS = ("after the rain", "before the storm", "during the holidays", "on the weekend", "under the sun", "through the mist",
           "despite the noise", "since the visit", "for the feast", "around the corner", "until the evening", "behind the crowd")
ASPECTS = ("action", "place", "colour", "count")         # a premise tells two of these and leaves two open
NARROW, NEAR, WIDE, FAR = range(4)                       # levels of a chain; actions, colours and counts end at NEAR
PREPOSITIONS = ("by the", "at the", "in the", "within the")
TOY_SIZES = {"train": 20_000, "validation": 1_000, "test": 1_000}


def _chains(domain: str) -> dict[str, list[tuple[str, ...]]]:
    """aspect -> its chains, in the order of the table: {"kind": [("spaniel", "dog", "pet", "animal"), …], …}."""
    return {aspect: [tuple(word.replace("_", " ") for word in (narrow, *wider.split()))
                     for words, wider in table.items() for narrow in words.split()]
            for aspect, table in {**WORLDS[domain], "count": COUNTS}.items()}


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _word(aspect: str, chain: tuple[str, ...], level: int) -> str:
    return f"{PREPOSITIONS[level]} {chain[level]}" if aspect == "place" else chain[level]


def _sentence(words: dict[str, str], verb: str) -> str:
    """{"kind": "spaniel", "action": "running", "thing": "kites"}, "is" -> "a spaniel is running near kites"."""
    near = ["near", words.get("count", ""), words.get("colour", ""), words["thing"]] if "thing" in words else []
    return " ".join(" ".join([_a(words["kind"]), verb, words.get("action", ""), *near, words.get("place", "")]).split())


def _step(aspect: str, chain: tuple[str, ...], low: int, high: int, other: tuple[str, ...] | None) -> str:
    """What ties the premise's word (at level `low`) to the hypothesis' word (at level `high`, perhaps of another chain).

    "a spaniel is a dog"; turned to another chain "a spaniel is a dog, not a cat", and where the premise's word is the wider
    one "a pet is not a singer"; wider and not turned "a pet need not be a dog".
    """
    subject = {"kind": _a, "place": "the {}".format}.get(aspect, str)(chain[low])
    value = _a if aspect == "kind" else str
    true, asked = value(_word(aspect, chain, high)), value(_word(aspect, other or chain, high))
    if low > high:
        return f"{subject} is not {asked}" if other else f"{subject} need not be {asked}"
    return f"{subject} is {true}, not {asked}" if other else f"{subject} is {true}"


def _toy_split(kind: int, others: list[int]) -> str:
    """The split of a premise, by a hash of each pair (its member, another of its words) over places in the tables.

    One pair in eight is kept for test and one for validation: a test premise holds a pair that no other split shows. The hash
    is a Latin square, so each split shows every word equally often.
    """
    hashes = {(kind + 3 * other) % 8 for other in others}
    return "test" if 0 in hashes else "validation" if 1 in hashes else "train"


def _toy_row(rng: random.Random, chains: dict, label: str, split: str, name: str) -> Example:
    # The premise is drawn before the label is looked at. Its member tells where or what it is, by two aspects of four.
    style = rng.choices(("", "kind", "negation", "breadth"), (40, 40, 10, 10))[0]
    while True:
        index = {aspect: rng.randrange(len(options)) for aspect, options in chains.items()}
        level = dict.fromkeys(chains, NARROW)
        told = rng.sample(ASPECTS, 2)
        if style == "breadth":                           # a wide kind in a narrow place, or a narrow kind in a wide place
            told = ["place", rng.choice(("action", "colour", "count"))]
            level[rng.choice(("kind", "place"))] = WIDE
        spot = {aspect: index[aspect] // 4 if level[aspect] == WIDE else index[aspect] for aspect in index}
        if _toy_split(spot["kind"], [spot[aspect] for aspect in ("thing", *told)]) == split:
            break
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
    denied = style == "negation"
    other = {}
    if label == ("entailment" if denied else "contradiction"):
        turned = changed[0] if rng.random() < 0.75 else changed[-1]      # the kind more often: other rows turn the rest
        top = max(level[turned], target[turned])
        other[turned] = rng.choice([chain for chain in chains[turned] if chain[top] != mine[turned][top]])
    said = {"kind": words["kind"], "thing": words["thing"]}
    said |= {aspect: _word(aspect, other.get(aspect, mine[aspect]), target[aspect]) for aspect in changed}
    if denied:
        bare = _sentence({"kind": said["kind"], "thing": said["thing"]}, "is")
        hypothesis = f"{bare} but not {said[asked]}{' ones' if asked == 'colour' else ''}."
    else:
        hypothesis = f"{_sentence(said, 'is')}."

    # The reason: a clause for each changed aspect, then what follows. Beside an exclusion, what stays open is left unsaid.
    steps = []
    for aspect in changed:
        if aspect not in words:
            steps.append("several is no exact number" if aspect == "count" else f"no {aspect} is told")
        elif level[aspect] <= target[aspect] or aspect in other or label == "neutral":
            steps.append(_step(aspect, mine[aspect], level[aspect], target[aspect], other.get(aspect)))
    verb = {"entailment": "is not" if denied else "is", "neutral": "may or may not be",
            "contradiction": "must be" if denied else "cannot be"}[label]
    claim = _sentence({aspect: word for aspect, word in said.items() if aspect != "thing" or asked != "place"}, verb)
    because = ", and ".join(steps)
    wordings = (f"{because}, so {claim}.", f"{claim}, because {because}.", f"since {because}, {claim}.")
    kind = "breadth" if style == "breadth" else "+".join(filter(None, (style, asked)))
    return Example(name, premise, hypothesis, label, wordings[:1] if split == "train" else wordings, kind=kind)


def toy_examples(count: int, seed: int = 0, domain: str = "park", split: str = "train") -> list[Example]:
    """`count` rows of the toy world, a function of the arguments alone; 20,000 take a second.

    "during the holidays a spaniel was seen running near several kites by the bench." / "a dog is moving near kites."
    -> entailment: "a spaniel is a dog, and running is moving, so a dog is moving near kites."

    Domains "park" and "harbour" share grammar and function words and no content word. Rows of "train" have one explanation,
    the others three wordings of it. Kinds: one step (action, place, colour, count), the same with a kind ("kind+place") or a
    denial ("negation+place") before it, and breadth (kind and place, one wider and one narrower in the premise).

    No shortcut is there to learn, by construction: labels are equally many; the premise is drawn without the label; the
    hypothesis' words are, for each label, as likely as for the others; premise and hypothesis share the same number of
    words. Only the two together tell the label, and only to someone who knows the words. Raises DataError.
    """
    if domain not in WORLDS or split not in SPLITS:
        raise DataError(f"no toy world {domain!r} with a split {split!r}; there are {', '.join(WORLDS)} and {', '.join(SPLITS)}")
    rng = random.Random(f"{domain} {split} {seed}")
    chains = _chains(domain)
    labels = [LABELS[i % 3] for i in range(count)]
    rng.shuffle(labels)
    return [_toy_row(rng, chains, label, split, f"{domain}-{split}-{seed}-{i}") for i, label in enumerate(labels)]


# ---------------------------------------------------------------------------------------------------------------------
# Files and names
#
# Fields are found by name, whatever their order; each may go by the name that e-SNLI, SNLI, SICK or our own files give it.
NAMES = {
    "id": ("id", "pairID", "pair_ID"),
    "premise": ("premise", "Sentence1", "sentence1", "sentence_A"),
    "hypothesis": ("hypothesis", "Sentence2", "sentence2", "sentence_B"),
    "label": ("label", "gold_label", "entailment_label"),
    "reason": ("rationale", "explanation"),
}
ESNLI_FILES = {"train": ("esnli_train_1.csv", "esnli_train_2.csv"), "validation": ("esnli_dev.csv",), "test": ("esnli_test.csv",)}
ESNLI_URL = "https://raw.githubusercontent.com/OanaMariaCamburu/e-SNLI/master/dataset"


def _table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV or TSV file as (line on which the row begins, {column: cell}). A quoted CSV cell may hold line breaks."""
    with open(path, encoding="utf-8-sig", newline="") as file:             # -sig: a byte order mark is no part of the first name
        tabs = path.suffix.lower() == ".tsv"
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file)
        header = next(rows, [])
        _columns(header, f"{path}:1")
        while True:
            line = rows.line_num + 1
            row = next(rows, None)
            if row is None:
                return
            if len(row) > len(header):
                raise DataError(f"{path}:{line}: {len(row)} cells under {len(header)} columns; quote a cell that holds the separator")
            if row:
                yield line, dict(zip(header, row, strict=False))             # cells missing at the end are looked for by their names


def _json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """Rows of a JSONL file as (line, object)."""
    with open(path, encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{line}: not JSON ({error.msg}, character {error.colno}); one object a line is expected") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}:{line}: {text.strip()[:40]!r} is not an object with premise, hypothesis and label")
            yield line, row


def _columns(present: Iterable[str], where: str) -> dict[str, str]:
    """Our name -> the name used here, for the fields that are there; premise, hypothesis and label must be."""
    present = list(present)
    found = {ours: name for ours, theirs in NAMES.items() for name in theirs if name in present}
    for ours in ("premise", "hypothesis", "label"):
        if ours not in found:
            raise DataError(f"{where}: no column for the {ours} (one of {', '.join(NAMES[ours])}); present: {', '.join(present) or 'none'}")
    return found


def _example(row: dict, path: Path, line: int) -> Example | None:
    """One row of any file as an Example; None for the label "-", on which SNLI's annotators did not agree."""
    columns = _columns(row, f"{path}:{line}")
    for column in (columns["premise"], columns["hypothesis"]):
        if not isinstance(row[column], str):
            raise DataError(f"{path}:{line}: {column} is {row[column]!r}, not a text")
    raw = row[columns["label"]]
    label = raw.strip().lower() if isinstance(raw, str) else raw
    if label == "-":
        return None
    if label not in (*LABELS, "", None):
        raise DataError(f"{path}:{line}: {columns['label']} is {raw!r}; it may be {', '.join(LABELS)}, - (left out) or empty (unlabelled)")
    if "explanations" in row:
        reasons = row["explanations"]
    elif "reason" in columns:
        reasons = [row[columns["reason"]] or ""]
    else:
        reasons = [row.get(f"Explanation_{k}", "") for k in (1, 2, 3)]
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        raise DataError(f"{path}:{line}: the explanations are {reasons!r}; expected: rationale, a text, or explanations, a list")
    marked = [(row.get(f"Sentence1_marked_{k}", "").strip(), row.get(f"Sentence2_marked_{k}", "").strip()) for k in (1, 2, 3)]
    kept = [k for k, reason in enumerate(reasons) if reason.strip()]
    return Example(str(row[columns["id"]]) if "id" in columns else f"{path.stem}-{line}", row[columns["premise"]].strip(),
                   row[columns["hypothesis"]].strip(), label or None, tuple(reasons[k].strip() for k in kept),
                   tuple(marked[k] for k in kept) if "Sentence1_marked_1" in row else (), str(row.get("kind", "")))


def _read_file(path: Path) -> Iterator[Example]:
    readers = {".csv": _table, ".tsv": _table, ".jsonl": _json_lines}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: cannot tell the format from the name; it should end in {', '.join(readers)}")
    try:
        for line, row in readers[path.suffix.lower()](path):
            example = _example(row, path, line)
            if example is not None:
                yield example
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def split_of(premise: str) -> str:
    """The split of a row of a single file: 80/10/10 by a hash of its premise, so that no premise stands in two splits."""
    tenth = int.from_bytes(hashlib.sha256(premise.strip().lower().encode()).digest()[:8], "big") % 10
    return {8: "validation", 9: "test"}.get(tenth, "train")


def read_examples(path_or_name: str | Path, split: str | None = None, limit: int = 0) -> list[Example]:
    """The examples of a file (.csv, .tsv, .jsonl) or of a name, in the file's order, at most `limit` if it is not 0.

    Names: "toy" and "toy-harbour" (20,000 train, 1,000 validation, 1,000 test rows; "toy:5000" has 5,000 train rows) and
    "esnli" (fetched once into $APPRENTICE_CACHE or ~/.cache/apprentice); also a folder that holds the four e-SNLI files.
    These have splits of their own; a single file is cut by `split_of`. split=None: every row.
    Rows with the label "-" are left out; an empty label is None. Raises DataError.
    """
    if split not in (None, *SPLITS):
        raise DataError(f"split is {split!r}; legal are {', '.join(SPLITS)}")
    name, wanted = str(path_or_name), SPLITS if split is None else (split,)
    if toy := re.fullmatch(r"toy(?:-(park|harbour))?(?::(\d+))?", name):
        sizes = {**TOY_SIZES, "train": int(toy[2] or TOY_SIZES["train"])}
        rows = (row for part in wanted for row in toy_examples(sizes[part], 0, toy[1] or "park", part))
        return list(islice(rows, limit or None))
    path = Path(name).expanduser()
    if name == "esnli" or path.is_dir():
        folder, fetch = (_cache() / "esnli", True) if name == "esnli" else (path, False)
        files = (file for part in wanted for file in ESNLI_FILES[part])
        rows = (row for file in files for row in _read_file(_esnli_file(folder, file, fetch)))
    elif path.is_file():
        rows = (row for row in _read_file(path) if split is None or split_of(row.premise) == split)
    else:
        raise DataError(f"{name}: no such file, and no known name (toy, toy-harbour, esnli)")
    return list(islice(rows, limit or None))


def _cache() -> Path:
    return Path(os.environ.get("APPRENTICE_CACHE") or Path.home() / ".cache" / "apprentice")


def _esnli_file(folder: Path, name: str, fetch: bool = True) -> Path:
    """The path of one official file, fetched first if it is not there."""
    path, url = folder / name, f"{os.environ.get('ESNLI_URL', ESNLI_URL).rstrip('/')}/{name}"
    if not path.exists():
        if not fetch:
            raise DataError(f"{folder}: holds no {name}; to fetch e-SNLI's files there: python data.py download esnli --out={folder}")
        download(url, path)
    with open(path, "rb") as file:
        if b"gold_label" not in file.readline():
            raise DataError(f"{path}: does not begin with e-SNLI's column names; delete it and download {url} again")
    return path


def download(url: str, path: Path) -> None:
    """Fetch `url` to `path`, whole or not at all: what has come so far waits in path.part, and the next call goes on from there."""
    part = path.with_name(path.name + ".part")
    by_hand = f"download {url} by hand and put it at {path}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=60) as reply:
            if reply.status != 206:                                          # the server sends the whole file, asked or not
                have = 0
            length = reply.headers["Content-Length"]
            size = have + int(length) if length else None
            bar = tqdm(desc=path.name, total=size, initial=have, unit="B", unit_scale=True)
            with open(part, "ab" if have else "wb") as file, bar:
                while block := reply.read(1 << 16):
                    file.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise DataError(f"{url}: the server answers {error.code} {error.reason}; {by_hand}") from None
        part.unlink()                                                        # nothing lies beyond .part: it is no beginning of this file
        return download(url, path)
    except (OSError, http.client.HTTPException) as error:                    # no network, a broken line, a full disk
        raise DataError(f"{url}: not fetched ({getattr(error, 'reason', None) or error}); run this again to go on, or {by_hand}") from None
    if size is not None and part.stat().st_size != size:
        raise DataError(f"{url}: {part.stat().st_size:,} of {size:,} bytes came; run this again to go on, or {by_hand}")
    os.replace(part, path)


# ---------------------------------------------------------------------------------------------------------------------
# Tokens
SENTINELS = 100                                          # <extra_id_0> … <extra_id_99>: T5's blanks; ids count down from the end
PAD, EOS, UNK = 0, 1, 2
SPECIAL = re.compile(r"(<extra_id_\d\d?>|</s>|<pad>|<unk>)")


class Tokenizer:
    """Text to T5's token ids and back, over a SentencePiece file (Kudo and Richardson 2018); the same ids as transformers' T5Tokenizer.

    A special token spelled out in the text ("</s>", "<pad>", "<unk>", "<extra_id_0>") becomes that token's one id, as there;
    what stands on either side of it is encoded as a text of its own.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(self.path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: no vocabulary there ({error.strerror}); put T5's spiece.model there, or train one") from None
        except RuntimeError:
            raise DataError(f"{path}: not a SentencePiece model, or a damaged one; fetch or train it again") from None
        pieces = [self._model.IdToPiece(i) for i in range(min(3, self._model.GetPieceSize()))]
        if pieces != ["<pad>", "</s>", "<unk>"]:
            raise DataError(f"{path}: begins with the pieces {' '.join(pieces)}, T5's with <pad> </s> <unk>; train one of that layout")
        self.vocab_size = self._model.GetPieceSize() + SENTINELS             # T5: 32,000 pieces + 100 sentinels = 32,100
        self._special = {"<pad>": PAD, "</s>": EOS, "<unk>": UNK} | {f"<extra_id_{k}>": self.vocab_size - 1 - k for k in range(SENTINELS)}

    def encode(self, text: str) -> list[int]:
        """"a dog" -> [3, 9, 1782, 1]: the ids of its pieces and </s> = 1."""
        if "<" not in text:
            return self._model.EncodeAsIds(text) + [EOS]
        ids = []
        for i, piece in enumerate(SPECIAL.split(text)):                      # texts at even places, special tokens between them
            ids += [self._special[piece]] if i % 2 and piece in self._special else self._model.EncodeAsIds(piece)
        return ids + [EOS]

    def decode(self, ids: Iterable[int]) -> str:
        """[3, 9, 1782, 1, 0, 0] -> "a dog". Padding, </s>, sentinels and rows beyond the vocabulary are dropped; an unknown is "⁇"."""
        return self._model.DecodeIds([int(i) for i in ids if UNK <= i < self._model.GetPieceSize()])


def train_vocabulary(texts: Iterable[str], path: str | Path, size: int) -> None:
    """Train a unigram vocabulary (Kudo 2018) in T5's layout (pad 0, </s> 1, <unk> 2, no begin token) and write it to `path`.

    size: number of pieces without the 100 sentinels; fewer where the texts hold no more. The words of LABELS become whole
    pieces. Only how often each word occurs counts, so the trainer is given words, about 200,000 of them, however long the texts.
    """
    words = Counter(word for text in texts for word in text.split())
    if not words:
        raise DataError(f"{path}: there is no text to make a vocabulary from")
    words.update(dict.fromkeys(LABELS, 1 + words.total() // 100))
    lines = [word for word, count in words.items() for _ in range(1 + 200_000 * count // words.total())]
    # The trainer takes for candidates what two different words begin with: "dog" alone is none, "dog" and "dog." make one.
    stems = sorted({stem for word in words for stem in re.findall(r"[^\W\d_]+", word)})
    lines += stems + [stem + "." for stem in stems]
    buffer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=buffer, vocab_size=size, model_type="unigram", pad_id=PAD, eos_id=EOS,
            unk_id=UNK, bos_id=-1, hard_vocab_limit=False, character_coverage=0.9999, num_threads=1, minloglevel=2)
    except RuntimeError as error:
        why = str(error).strip().splitlines()[-1].strip()
        raise DataError(f"no vocabulary of {size} pieces from {len(words)} words: {why}; change the size or give more text") from None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(buffer.getvalue())
    tokenizer = Tokenizer(part)
    if any(len(tokenizer.encode(label)) != 2 for label in LABELS):
        part.unlink()
        raise DataError(f"a vocabulary of {size} pieces breaks a label's word up; raise the size")
    os.replace(part, path)


# ---------------------------------------------------------------------------------------------------------------------
# Formats: how an example is put to the model and its answer read back
#
# A writer gives the source and the target's pieces, each ("label" or "rationale", text); the target is the pieces joined by
# spaces. What an example lacks (an unlabelled pair, a pair without a reason) is left out of its target. A parser reads
# generated text: (label or None, rationale). Case, spaces and a full stop at the end may vary; what does not fit is (None, text).
Pieces = list[tuple[str, str]]
LABEL = r"(entailment|neutral|contradiction)\s*\.?"


def _pair(task: str, example: Example) -> str:
    return f"{task}: premise: {example.premise} hypothesis: {example.hypothesis}"


def _match(pattern: str, text: str) -> re.Match | None:
    return re.fullmatch(pattern, text.strip(), re.IGNORECASE | re.DOTALL)


def write_predict(example: Example, reason: str) -> tuple[str, Pieces]:
    """"predict: premise: a spaniel naps. hypothesis: a dog rests." -> "entailment" (Hsieh et al. 2023, "Distilling step-by-step")."""
    return _pair("predict", example), [("label", example.label or "")]


def parse_predict(text: str) -> tuple[str | None, str]:
    """"Entailment." -> ("entailment", "")"""
    found = _match(LABEL, text)
    return (found[1].lower(), "") if found else (None, text)


def write_explain(example: Example, reason: str) -> tuple[str, Pieces]:
    """"explain: premise: a spaniel naps. hypothesis: a dog rests." -> "a spaniel is a dog, and napping is resting.": the other
    task of the same paper. The model learns both from the same pairs and needs to write no reason when asked to predict."""
    return _pair("explain", example), [("rationale", reason)]


def parse_explain(text: str) -> tuple[str | None, str]:
    """"a spaniel is a dog." -> (None, "a spaniel is a dog."): the whole text is the reason."""
    return None, text.strip()


def write_label_then_rationale(example: Example, reason: str) -> tuple[str, Pieces]:
    """"judge: premise: … hypothesis: …" -> "entailment explanation: a spaniel is a dog." The label comes first, as in
    WT5 (Narang et al. 2020): the reason cannot help it."""
    return _pair("judge", example), [("label", example.label or ""), ("rationale", f"explanation: {reason}" if reason else "")]


def parse_label_then_rationale(text: str) -> tuple[str | None, str]:
    """"neutral explanation: the dog may be asleep." -> ("neutral", "the dog may be asleep.")"""
    found = _match(LABEL + r"(?:\s*explanation:\s*(.*))?", text)
    return (found[1].lower(), (found[2] or "").strip()) if found else (None, text)


def write_rationale_then_label(example: Example, reason: str) -> tuple[str, Pieces]:
    """"reason: premise: … hypothesis: …" -> "a spaniel is a dog. answer: entailment" The reason comes first, as in a chain of
    thought (Wei et al. 2022): the label can lean on it, and costs its tokens."""
    answer = [("rationale", "answer:"), ("label", example.label)] if example.label else []
    return _pair("reason", example), [("rationale", reason), *answer]


def parse_rationale_then_label(text: str) -> tuple[str | None, str]:
    """"a spaniel is a dog. answer: entailment" -> ("entailment", "a spaniel is a dog.")"""
    found = _match(r"(?:(.*)\s)?answer:\s*" + LABEL, text)
    return (found[2].lower(), (found[1] or "").strip()) if found else (None, text)


OPTIONS = {"entailment": "yes", "neutral": "it is not possible to tell", "contradiction": "no"}
INSTRUCTIONS = (
    "{premise} Given only this, is it true that: {hypothesis} {options}",
    "Read the text and judge the claim. Text: {premise} Claim: {hypothesis} Does the claim follow from the text? {options}",
    "Suppose we know this: {premise} Can we be sure of this: {hypothesis} {options}",
    "Here is a sentence: \"{premise}\" And here is another: \"{hypothesis}\" If the first is true, is the second true as well? {options}",
)


def write_instruction(example: Example, reason: str) -> tuple[str, Pieces]:
    """"a spaniel naps. Given only this, is it true that: a dog rests. OPTIONS: - yes - it is not possible to tell - no" -> "yes":
    a request in the manner of FLAN (Wei et al. 2021), in one of several wordings, picked by the example's id."""
    wording = INSTRUCTIONS[zlib.crc32(example.id.encode()) % len(INSTRUCTIONS)]
    options = "OPTIONS: " + " ".join(f"- {option}" for option in OPTIONS.values())
    source = wording.format(premise=example.premise, hypothesis=example.hypothesis, options=options)
    return source, [("label", OPTIONS[example.label] if example.label else "")]


def parse_instruction(text: str) -> tuple[str | None, str]:
    """"It is not possible to tell" -> ("neutral", "")"""
    answer = re.sub(r"\s+", " ", text.strip().removeprefix("-").removesuffix(".").strip().lower())
    return next(((label, "") for label, option in OPTIONS.items() if answer == option), (None, text))


@dataclass(frozen=True)
class Format:
    """A way to put an example to the model. parts: what its target holds, in order ("label", "rationale")."""
    name: str
    parts: tuple[str, ...]
    write: Callable[[Example, str], tuple[str, Pieces]]
    parse: Callable[[str], tuple[str | None, str]]

    def pieces(self, example: Example, explanation: int = 0) -> tuple[str, Pieces]:
        """(source, the target's pieces that are there), with the explanation of that number, if the example has it."""
        reason = example.explanations[explanation] if explanation < len(example.explanations) else ""
        source, pieces = self.write(example, reason)
        return source, [(part, text) for part, text in pieces if text]

    def render(self, example: Example, explanation: int = 0) -> tuple[str, str]:
        """(source text, target text)."""
        source, pieces = self.pieces(example, explanation)
        return source, " ".join(text for _, text in pieces)


FORMATS = {format.name: format for format in (
    Format("predict", ("label",), write_predict, parse_predict),
    Format("explain", ("rationale",), write_explain, parse_explain),
    Format("label_then_rationale", ("label", "rationale"), write_label_then_rationale, parse_label_then_rationale),
    Format("rationale_then_label", ("rationale", "label"), write_rationale_then_label, parse_rationale_then_label),
    Format("instruction", ("label",), write_instruction, parse_instruction),
)}


# ---------------------------------------------------------------------------------------------------------------------
# Batches
def encode_example(tokenizer: Tokenizer, format: Format, example: Example, explanation: int = 0,
                   max_source: int = 512, max_target: int = 256) -> tuple[list[int], list[int], list[bool]]:
    """(source ids, target ids, label tokens): the last tells of each target token whether it belongs to the label.

    Pieces are encoded one by one, which gives the ids of the whole text, as no SentencePiece token reaches across a space;
    </s> belongs to the last piece. Longer texts are cut at the limits, </s> kept: who wants to know how many, encodes with
    larger limits. An example without what the format asks for has a target of </s> alone: good for asking, not for training.
    """
    source, pieces = format.pieces(example, explanation)
    target, label_tokens = [], []
    for part, text in pieces:
        ids = tokenizer.encode(text)[:-1]
        target += ids
        label_tokens += [part == "label"] * len(ids)
    last = label_tokens[-1] if label_tokens else format.parts[-1] == "label"
    return (tokenizer.encode(source)[:-1][:max_source - 1] + [EOS], target[:max_target - 1] + [EOS], label_tokens[:max_target - 1] + [last])


@dataclass
class Batch:
    """source (B, S) long, padded with 0 · source_mask (B, S) bool, True = token · labels (B, T) long, padded with -100 ·
    label_tokens (B, T) bool, or None: every token belongs to the label · ids: the rows' numbers or names, if anyone needs them."""
    source: torch.Tensor
    source_mask: torch.Tensor
    labels: torch.Tensor
    label_tokens: torch.Tensor | None = None
    ids: tuple = ()

    def to(self, device: str | torch.device) -> Batch:
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)})


def _pad(rows: list[list], value: int | bool, dtype: torch.dtype) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([list(row) + [value] * (width - len(row)) for row in rows], dtype=dtype)


def collate(rows: list[tuple[list[int], list[int], list[bool]]], ids: tuple = ()) -> Batch:
    """Rows of encode_example, padded on the right to the longest: a Batch."""
    source, target, label_tokens = zip(*rows, strict=True)
    return Batch(_pad(source, PAD, torch.long), _pad([[True] * len(row) for row in source], False, torch.bool),
                 _pad(target, -100, torch.long), _pad(label_tokens, False, torch.bool), ids)


class BucketSampler:
    """Batches of row numbers for ever, rows of like length together, every row once an epoch.

    lengths: for each row its length, or (source length, target length). An epoch's order depends on (seed, epoch) alone:
    shuffle; cut into pools of 256 batches; sort a pool by source length and cut it into 16; sort each of these by target
    length and cut it into 16 batches; shuffle all batches. Sorting pools and not everything keeps the company of a row changing.
    The last batch of an epoch may be smaller.
    """

    def __init__(self, lengths: list, batch_size: int, seed: int):
        if not lengths or batch_size < 1:
            raise DataError(f"{len(lengths)} rows in batches of {batch_size}: there must be at least one of each")
        self.lengths = [length if isinstance(length, tuple) else (length, length) for length in lengths]
        self.batch_size, self.seed = batch_size, seed
        self.epoch, self.position = 0, 0                 # position: batches of this epoch that have been handed out

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of one epoch."""
        def cut(rows: list[int], size: int) -> list[list[int]]:
            return [rows[start:start + size] for start in range(0, len(rows), size)]

        rng = random.Random(f"{self.seed} {epoch}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        batches = []
        for pool in cut(order, 256 * self.batch_size):
            for group in cut(sorted(pool, key=lambda i: self.lengths[i][0]), 16 * self.batch_size):
                batches += cut(sorted(group, key=lambda i: self.lengths[i][1]), self.batch_size)
        rng.shuffle(batches)
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            batches = self.batches(self.epoch)
            while self.position < len(batches):
                self.position += 1                       # before it is handed out: a state saved after that step goes on with the next
                yield batches[self.position - 1]
            self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


# ---------------------------------------------------------------------------------------------------------------------
# A look at the data
def describe(examples: list[Example]) -> str:
    """What a data set holds, as text: rows, labels, lengths in words, repeated pairs, the toy world's kinds, three samples."""
    def lengths(texts: list[str]) -> str:
        words = sorted(len(text.split()) for text in texts) or [0]
        return f"{words[len(words) // 2]:4d} words in the middle, {words[-1]} at most"

    labels = Counter(example.label or "(none)" for example in examples)
    kinds = Counter(example.kind for example in examples if example.kind)
    repeated = len(examples) - len({(example.premise, example.hypothesis) for example in examples})
    lines = [f"rows         {len(examples):,}, on {len({example.premise for example in examples}):,} premises; "
             f"{repeated:,} ({repeated / max(1, len(examples)):.2%}) repeat an earlier pair",
             "labels       " + ", ".join(f"{label} {count:,} ({count / len(examples):.1%})" for label, count in labels.most_common()),
             "premise      " + lengths([example.premise for example in examples]),
             "hypothesis   " + lengths([example.hypothesis for example in examples]),
             "explanation  " + lengths([text for example in examples for text in example.explanations])
             + f"; {sum(len(example.explanations) for example in examples):,} in all"]
    if kinds:
        lines.append("kinds        " + ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common()))
    for example in random.Random(0).sample(examples, min(3, len(examples))):
        lines += ["", f"  premise      {example.premise}", f"  hypothesis   {example.hypothesis}", f"  label        {example.label}"]
        lines += [f"  explanation  {text}" for text in example.explanations]
    return "\n".join(lines)


def main() -> int:
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(__doc__.strip())
        return 0
    try:
        if arguments[:1] == ["download"]:
            out = [argument.removeprefix("--out=") for argument in arguments[2:] if argument.startswith("--out=")]
            if arguments[1:2] not in ([], ["esnli"]) or len(arguments) - 2 > len(out):
                raise DataError(f"{' '.join(arguments)}: not understood; python data.py download esnli [--out=DIR]")
            folder = Path(out[-1]).expanduser() if out else _cache() / "esnli"
            print(f"fetching e-SNLI (Camburu et al. 2018) to {folder}")
            for name in (name for names in ESNLI_FILES.values() for name in names):
                print(_esnli_file(folder, name))
            return 0
        if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
            raise DataError(f"{' '.join(arguments)}: not understood; python data.py [NAME or FILE], --help tells more")
        name = arguments[0] if arguments else "toy"
        print(f"reading {name}")
        print(describe(read_examples(name)))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
