"""Writes bert_score.json: scores of the package bert_score over transformers' T5 encoder, with the weights of model_make.py, so that none
need be stored. Run beside both: pip install bert-score==0.3.13 transformers && python tests/golden/bert_score_make.py

The one change to the package: </s> is read by the encoder, then left out of the mask, so that it is never matched (as it is, </s> would
count as a word). It goes pair by pair: in a batch the package takes padding for a word of likeness 0, which beats a negative one. And it
takes a text of two tokens for an empty one, so all texts here are longer."""
import json
import pathlib
import random
from collections import defaultdict

try:
    from model_make import SHAPE, weights_of
except ImportError:  # read from a test
    from golden.model_make import SHAPE, weights_of


class Words:
    """A tokenizer of numbered words: "w7 w12" -> [7, 12, 1]."""

    pad_token_id, model_max_length = 0, 512

    def encode(self, text, **ignored):
        return [int(word[1:]) for word in text.split()] + [1]


def texts():
    """60 predictions, each with one to three references, partly the same words."""
    rng = random.Random(0)

    def text(words=()):
        return " ".join([*rng.sample(words, len(words) // 2), *(f"w{rng.randint(2, 39)}" for _ in range(rng.randint(3, 9)))])

    references = [[text() for _ in range(rng.randint(1, 3))] for _ in range(60)]
    return [text(rng.choice(group).split()) for group in references], references


if __name__ == "__main__":
    import torch
    from bert_score import utils
    from transformers import T5Config, T5ForConditionalGeneration

    package = utils.get_bert_embedding

    def without_end(*args, **kw):
        states, mask, idf = package(*args, **kw)
        return states, mask * (torch.arange(mask.shape[1]) < mask.sum(1, keepdim=True) - 1), idf

    utils.get_bert_embedding = without_end
    predictions, references = texts()
    pairs = [(i, prediction, other) for i, (prediction, group) in enumerate(zip(predictions, references, strict=True)) for other in group]
    cases = []
    for layer in (1, 2):
        net = T5ForConditionalGeneration(T5Config(**SHAPE, feed_forward_proj="gated-gelu", tie_word_embeddings=False)).eval()
        own = dict(net.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, t in weights_of({n: t.shape for n, t in net.state_dict().items() if "embed_tokens" not in n}).items():
                if name != "lm_head.weight":  # transformers 5 ties it to the embedding; an encoder has no use for it
                    own[name].copy_(t)
        encoder = net.encoder
        encoder.block = encoder.block[:layer]
        for idf in (False, True):
            flat = [other for _, _, other in pairs]
            weights = utils.get_idf_dict(flat, Words(), nthreads=0) if idf else defaultdict(lambda: 1.0)
            scores = utils.bert_cos_score_idf(encoder, flat, [p for _, p, _ in pairs], Words(), weights, device="cpu", batch_size=1)
            best = [[-1.0] * 3 for _ in predictions]
            for (i, _, _), found in zip(pairs, scores.tolist(), strict=True):
                best[i] = [max(a, b) for a, b in zip(best[i], found, strict=True)]  # as bert_score.score does with several references
            cases.append({"layer": layer, "idf": idf, "expected": best})
    (pathlib.Path(__file__).parent / "bert_score.json").write_text(json.dumps(cases))
