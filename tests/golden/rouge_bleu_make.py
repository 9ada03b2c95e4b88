"""Make rouge_cases.json, rouge_stems.json and bleu_cases.json with the programs that evaluate.py must agree with.

    pip install rouge-score==0.1.2 nltk sacrebleu && python tests/golden/rouge_bleu_make.py

All text is drawn from the lists below with a fixed seed; takes seconds. The tests read the files and need none of these packages.
"""
import json
import random
from pathlib import Path

import sacrebleu
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer

KINDS = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
STARTS = """relat condit ration valenc hesit digit conform radic differ vile analog vietnam predic oper feudal decis hope callous form
sensit triplic electr good reviv allow infer airlin gyroscop adjust defens irrit replac depend adopt homolog commun activ angular effect
bowdler prob rat ceas controll roll happ sk enjo fl tr sp d l t wom child play runn hopp tann fall hiss fizz fail fil motor plaster bl agr
f geo theo archaeo phil syzyg y yy ay oy e a i ph str squ qu box wax show snow 2 20 mp3 x""".split()
ENDINGS = """ s es ies sses ss ied eed ed ing ated bling ized izing y ational tional enci anci izer bli ably alli ally entli ently eli ely
ousli ously ization ation ator alism iveness fulness ousness aliti ality iviti ivity biliti bility fulli fully logi logy icate ative alize
iciti icity ical ful ness al ance ence er ic able ible ant ement ment ent sion tion ion ou ism ate iti ous ive ize e ll lle""".split(" ")
IRREGULAR = """sky skies dying lying tying news innings inning outings outing cannings canning howe proceed exceed succeed dies died ties
flies flying spied was has his this agreed feed ion onion at ate eying being""".split()
WORDS = """a the man woman women boys children kids dog dogs is are was sleeping sleeps running runs ran jumped happily outside park guitar
playing plays because just does not mean implies can't doesn't it's café naïve 1,000 3.5 two 2 snow_boarders t-shirt DOG The A same-same
skies dying lying flies generally organization hopeful replacement x z e.g. U.S. $5 50% "quoted"
(so) 日本 Ärger […] … - -- , . ! ?""".split()


def text(rng, longest, ends):
    return "".join(rng.choice(WORDS) + rng.choice(ends) for _ in range(rng.randint(0, longest)))


def altered(rng, of):
    """The words of `of` with some dropped, moved or put in: enough alike for ties and long common subsequences."""
    words = of.split(" ")
    for _ in range(rng.randint(0, 4)):
        place = rng.randrange(len(words))
        words[place:place + rng.randint(0, 2)] = rng.choices(WORDS, k=rng.randint(0, 2))
        words = words or ["dog"]
    if rng.random() < 0.3:
        rng.shuffle(words)
    return " ".join(words)


def write(name, cases):
    lines = ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases)
    Path(__file__).with_name(name).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{name}: {len(cases)}")


def main():
    rng = random.Random(0)
    stemmer = PorterStemmer()
    words = sorted({start + end for start in STARTS for end in ENDINGS})
    words = sorted({*rng.sample(words, 1960), *IRREGULAR})
    write("rouge_stems.json", [[word, stemmer.stem(word)] for word in words])

    cases = []
    for i in range(400):
        ends, longest = ([" "], 14) if i < 200 else ([" ", " ", "\n", "  ", "\t", "\n\n", ".\n"], 25 if i < 390 else 150)
        references = [text(rng, longest, ends) for _ in range(rng.randint(1, 3))]
        prediction = rng.choice([text(rng, longest, ends), altered(rng, references[0]), altered(rng, references[-1])])
        if i % 40 == 0:
            prediction = rng.choice(["", "\n", "... !", "日本", "dog"])
        stem = i % 3 > 0
        found = RougeScorer(KINDS, use_stemmer=stem).score_multi(references, prediction)
        cases.append({"stem": stem, "refs": references, "pred": prediction, "expected": {kind: list(found[kind]) for kind in KINDS}})
    write("rouge_cases.json", cases)

    odd = ["&amp;", "&quot;", "&lt;b&gt;", "<skipped>", "3-4", "1.5.", "..", ",,", "a.b", "-\n", "$_{x}", "'s", "#1", "5,", ".5", "\u00a0"]
    cases = []
    for i in range(200):
        references, predictions = [], []
        for _ in range(1 if i % 4 == 0 else rng.randint(1, 6)):
            ends = [" ", " ", " ", "", "\n", *([f" {rng.choice(odd)} ", rng.choice(odd)] if i % 2 else [])]
            references.append([text(rng, 16, ends) for _ in range(rng.randint(1, 3))])
            predictions.append(rng.choice([text(rng, 16, ends), altered(rng, references[-1][0]), altered(rng, references[-1][-1])]))
        most = max(map(len, references))
        streams = [[texts[k] if k < len(texts) else None for texts in references] for k in range(most)]
        cases.append({"preds": predictions, "refs": references, "expected": sacrebleu.corpus_bleu(predictions, streams).score})
    write("bleu_cases.json", cases)


if __name__ == "__main__":
    main()
