"""Makes tokenizer_t5.json: what transformers' T5Tokenizer makes of varied texts, for tests/test_data.py to compare with.

    python tests/golden/tokenizer_make.py FOLDER_WITH_SPIECE_MODEL         (seconds; needs transformers and protobuf)
"""
import json
import sys
from pathlib import Path

from transformers import T5Tokenizer

TEXTS = """
a dog
A man in a blue shirt is standing on a ladder cleaning a window.
predict: premise: Two women are embracing. hypothesis: The sisters are hugging goodbye.
entailment
neutral
contradiction
entailment explanation: holding to-go packages is holding packages.
A dog is an animal. answer: entailment
translate English to German: The house is wonderful.
summarize: state authorities dispatched emergency crews tuesday to survey the damage.
It's the children's; they've said "don't", haven't they?
“Curly quotes”, ‘single ones’ – en dash — em dash… ellipsis
100% of $3.50 is £2,60 or €4; 1/2 + 3^2 = 9.5 (approx.)
ALL CAPS AND mIxEd CaSe
naïve café, Zürich, façade, señor, Ångström
Straße and Œuvre
Der schnelle braune Fuchs springt über den faulen Hund.
Le garçon élève un œuf.
Ştefan şi ţara românească
日本語のテキスト
你好，世界
Привет, мир
مرحبا بالعالم
🙂 a smile 🎉
full-width ＡＢＣ１２３ and ligature ﬁne
superscript x² and ½ cup and ™
zero​width space
soft­hyphen
non breaking space
tab	inside
  leading and trailing
many     spaces     inside
...
!?!?
-
.
<
<>
a < b and b > c
<unknown> tag
<b>bold</b> &amp; <br/>
http://www.example.com/a_b?c=d&e=f#g
user.name@example.com
snake_case camelCase kebab-case
{json: [1, 2, 3]}
OPTIONS: - yes - it is not possible to tell - no
supercalifragilisticexpialidocious antidisestablishmentarianism
qqqzzzxxy
a<extra_id_0>b
The <extra_id_0> walks in <extra_id_1> park
 <extra_id_0>. Hey
<extra_id_99> is the last
<extra_id_0><extra_id_1>
<extra_id_100> is none
<extra_id_7
a </s> b
a</s>b
a <pad> b
a <unk> b
</s>
▁already marked ▁words
1234567890 0123 3.14159 1,000,000
The man's hat isn't John's, it's Mary's.
n/a
""".strip("\n").split("\n") + ["", " ", "two\nlines", "a\r\nb", "word " * 50]


def main() -> None:
    tokenizer = T5Tokenizer.from_pretrained(sys.argv[1])
    rows = [{"text": text, "ids": tokenizer(text).input_ids} for text in TEXTS]
    for row in rows:
        row["decoded"] = tokenizer.decode(row["ids"], skip_special_tokens=True)
    path = Path(__file__).with_name("tokenizer_t5.json")
    path.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n", encoding="utf-8")
    print(f"wrote {len(rows)} rows to {path}")


if __name__ == "__main__":
    main()
