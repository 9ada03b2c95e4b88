"""Writes model_t5.json: logits and generations of transformers' T5 whose weights are a formula (`weights_of`), so that no weights need
be stored. Run beside an installed transformers: python tests/golden/model_make.py"""
import json
import pathlib

import torch

SHAPE = dict(vocab_size=40, d_model=24, d_kv=8, d_ff=20, num_layers=2, num_decoder_layers=2, num_heads=2)
SEARCHES = (dict(num_beams=1), dict(num_beams=3), dict(num_beams=3, length_penalty=2.0), dict(num_beams=3, early_stopping=True),
            dict(num_beams=4, num_return_sequences=3), dict(num_beams=3, min_new_tokens=6))  # fmt: skip


def weights_of(shapes):
    """{name: shape} -> {name: tensor}: sines of uneven pitch, as good as random, the same everywhere."""
    found = {}
    for i, (name, shape) in enumerate(sorted(shapes.items())):
        n = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        wave = torch.sin(n * (1.3 + 0.17 * i) + n * n * 0.013 + i)
        found[name] = ((1 + 0.3 * wave) if "norm" in name else wave * (0.6 if "shared" in name or "lm_head" in name else 0.35)).float().view(shape)
    return found


def inputs():
    """source (4, 7), its mask, target (4, 5)"""
    g = torch.Generator().manual_seed(0)
    source, target = torch.randint(2, 40, (4, 7), generator=g), torch.randint(2, 40, (4, 5), generator=g)
    mask = torch.arange(7)[None] < torch.tensor([7, 3, 5, 1])[:, None]
    return source * mask, mask, target


if __name__ == "__main__":
    from transformers import T5Config, T5ForConditionalGeneration

    cases = []
    for version in ({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, {"feed_forward_proj": "relu", "tie_word_embeddings": True}):
        net = T5ForConditionalGeneration(T5Config(**SHAPE, **version, decoder_start_token_id=0)).eval()
        drop = [n for n in net.state_dict() if "embed_tokens" in n or (version["tie_word_embeddings"] and n == "lm_head.weight")]
        weights = weights_of({n: t.shape for n, t in net.state_dict().items() if n not in drop})
        own = dict(net.named_parameters(remove_duplicate=False))
        if not version["tie_word_embeddings"]:  # transformers 5 ties the two when it builds a model
            net.lm_head.weight = torch.nn.Parameter(own["shared.weight"].clone())
            own = dict(net.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, t in weights.items():
                own[name].copy_(t)
        source, mask, target = inputs()
        with torch.no_grad():
            logits = net(input_ids=source, attention_mask=mask.long(), decoder_input_ids=target).logits
            written = [net.generate(input_ids=source, attention_mask=mask.long(), max_new_tokens=12, do_sample=False, **kw).tolist() for kw in SEARCHES]
            torch.manual_seed(3)
            drawn = net.generate(input_ids=source, attention_mask=mask.long(), max_new_tokens=12, do_sample=True, temperature=0.8, top_k=9, top_p=0.9)
        rows = [[(r[1:][: r[1:].index(1)] if 1 in r[1:] else r[1:]) for r in rows] for rows in (*written, drawn.tolist())]
        cases.append({"config": {**SHAPE, **version}, "logits": logits.tolist(), "written": rows})
    (pathlib.Path(__file__).parent / "model_t5.json").write_text(json.dumps(cases))
