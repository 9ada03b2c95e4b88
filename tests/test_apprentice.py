"""apprentice.py: decoding against transformers' (golden), against itself without a cache, and the command."""
import copy
import functools
import json
import math
import pathlib
import pickle
import shutil
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden.model_make import SEARCHES, inputs, weights_of

import apprentice
from apprentice import Apprentice, Decoder, Recorded, StaticDecoder, generate, likeliest
from data import DataError, Tokenizer, train_vocabulary
from model import SIZES, T5, CheckpointError, Linear, T5Config, hugging_face_names, load_weights, write_safetensors

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = json.loads((ROOT / "tests/golden/model_t5.json").read_text())


def unfilled(row):
    """Without the zeros that fill the end of transformers' rows."""
    return row if not row or row[-1] else unfilled(row[:-1])


def golden_model(case):
    net = T5(T5Config(**case["config"]))
    shapes = {}
    for ours, theirs in hugging_face_names(net.config).items():
        for name, part in zip(theirs, net.get_parameter(ours).chunk(len(theirs)), strict=True):
            shapes[name] = part.shape
    load_weights(net, weights_of(shapes), "golden")
    return net.eval()


@pytest.mark.parametrize("case", GOLDEN, ids=["v1.1", "v1.0"])
def test_logits_and_tokens_are_those_of_transformers(case):
    net, (source, mask, target) = golden_model(case), inputs()
    torch.testing.assert_close(net(source, target, mask), torch.tensor(case["logits"]), atol=2e-5, rtol=1e-5)
    for search, want in zip(SEARCHES, case["written"], strict=False):
        got = generate(net, source, mask, max_new_tokens=12, **search)
        assert [unfilled(row) for row in got] == [unfilled(row) for row in want], search
    torch.manual_seed(3)
    drawn = generate(net, source, mask, max_new_tokens=12, do_sample=True, temperature=0.8, top_k=9, top_p=0.9)
    assert [unfilled(row) for row in drawn] == [unfilled(row) for row in case["written"][-1]]


def test_cached_greedy_is_uncached_and_a_row_alone_is_its_row_in_a_batch():
    net, (source, mask, _) = golden_model(GOLDEN[0]), inputs()
    rows = generate(net, source, mask, max_new_tokens=10)
    for i, row in enumerate(rows):
        alone = source[i : i + 1, : int(mask[i].sum())]
        assert generate(net, alone, max_new_tokens=10) == [row]
        ids = [0]
        while len(ids) < 11 and (token := int(net(alone, torch.tensor([ids]))[0, -1].argmax())) != 1:
            ids.append(token)
        assert ids[1:] == row


def test_short_sequences_that_are_wanted_are_not_waited_past():
    """With a negative length_penalty no later sequence gains by its length; transformers 5.24 writes this."""
    torch.manual_seed(117)
    net = T5(T5Config(vocab_size=7, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, tie_word_embeddings=False)).eval()
    net.lm_head.weight.data[1] *= 3
    found = generate(net, torch.randint(2, 7, (3, 4)), num_beams=2, num_return_sequences=2, max_new_tokens=25, early_stopping="never", length_penalty=-0.3)
    assert found == [[6], [0, 6], [6], [3, 4, 0], [], [0] * 24 + [6]]


def test_beams_as_wide_as_the_tree_find_the_best_sequence():
    """With 4 words and 3 steps every sequence can be listed; a beam that holds them all must return the likeliest, by brute force."""
    torch.manual_seed(0)
    net = T5(T5Config(vocab_size=4, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu",
                      tie_word_embeddings=False)).eval()
    source, best = torch.tensor([[2, 3, 1]]), (-math.inf, None)
    for i in range(4**3):
        ids = [i // 16, i // 4 % 4, i % 4]
        ids = ids[: ids.index(1) + 1] if 1 in ids else ids
        logp = net(source, torch.tensor([[0, *ids[:-1]]]))[0].log_softmax(-1)
        best = max(best, (sum(logp[t, x].item() for t, x in enumerate(ids)) / len(ids), [x for x in ids if x != 1]))
    assert generate(net, source, max_new_tokens=3, num_beams=16, early_stopping="never") == [unfilled(best[1])]


def test_sampling_follows_the_distribution_and_its_cuts():
    net, (source, mask, _) = golden_model(GOLDEN[0]), inputs()
    p = net(source[:1], torch.zeros(1, 1, dtype=torch.long), mask[:1])[0, 0].softmax(-1)
    rows = generate(net, source[:1], mask[:1], max_new_tokens=1, do_sample=True, num_return_sequences=20000, generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(40).index_add_(0, torch.tensor([(row or [1])[0] for row in rows]), torch.ones(20000)) / 20000
    assert (counts - p).abs().max() < 0.015
    top = set(p.topk(3).indices.tolist())
    rows = generate(net, source[:1], mask[:1], max_new_tokens=1, do_sample=True, top_k=3, num_return_sequences=500)
    assert {(row or [1])[0] for row in rows} == top


def test_illegal_searches_say_so():
    net, (source, mask, _) = golden_model(GOLDEN[0]), inputs()
    for kw in (dict(num_beams=0), dict(num_return_sequences=2), dict(do_sample=True, num_beams=2), dict(top_p=0.0)):
        with pytest.raises(ValueError, match="generate: "):
            generate(net, source, mask, **kw)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train_vocabulary(["a dog runs in the park. a cat sleeps at home near the tree"] * 9, folder / "spiece.model", 60)
    torch.manual_seed(0)
    config = SIZES["nano"]
    T5(T5Config(**{**vars(config), "vocab_size": Tokenizer(folder / "spiece.model").vocab_size})).save_pretrained(folder)
    (folder / "run.json").write_text(json.dumps({"settings": {"format": "multitask", "max_target": 8, "max_source": 64}}))
    return folder


def test_answers_keep_their_order_and_do_not_hang_on_the_batch(run):
    apprentice = Apprentice.load(run)
    pairs = [("a dog " * n, "a cat sleeps.") for n in (3, 9, 1, 5)]
    together = apprentice.answer(zip(*zip(*pairs, strict=True), strict=True), max_new_tokens=8)
    assert apprentice.answer(np.array(pairs)) == together
    for wrong in ([{"premise": "a", "hypothesis": "b"}], ["ab"], [(None, "x")], pairs[0], "ab", [("a", "b", "c")]):
        with pytest.raises(DataError, match="answer takes a list of .premise, hypothesis., two texts each, not"):
            apprentice.answer(wrong)
    with pytest.raises(ValueError, match="num_beams 0"):
        apprentice.answer(pairs, num_beams=0)
    assert [a.text for a in together] == [apprentice.answer([p])[0].text for p in pairs]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_smaller_budget_changes_no_answer_and_no_order(run, monkeypatch, beams):
    apprentice = Apprentice.load(run)
    pairs = [("a dog " * (1 + 7 * i % 11), "a cat sleeps.") for i in range(12)]
    want, sizes = [a.text for a in apprentice.answer(pairs, beams)], []

    def spy(model, source, *args, **kw):
        sizes.append(source.shape)
        return generate(model, source, *args, **kw)

    monkeypatch.setattr("apprentice.generate", spy)
    monkeypatch.setattr("apprentice.BUDGET", 250)
    assert [a.text for a in apprentice.answer(pairs, beams)] == want
    assert all(rows == 1 or rows * beams * (length + apprentice.max_target) <= 250 for rows, length in sizes)
    assert len(sizes) > 4 and [n for _, n in sizes[: len(sizes) // 2]] == sorted((n for _, n in sizes[: len(sizes) // 2]), reverse=True)


@pytest.mark.parametrize("words, n", [(128 * 80, 8), (128 * 80, 1), (1000, 8), (40, 1)])
def test_the_likeliest_by_blocks_are_those_of_a_full_sort(words, n):
    random = torch.Generator().manual_seed(0)
    logits, plus = torch.randn(3, 2, words, generator=random), torch.randn(3, 2, 1, generator=random)
    for given, whole in ((None, logits), (plus, logits + plus)):
        values, places = likeliest(logits, n, given)
        ranked, order = whole.flatten(1).sort(-1, descending=True)
        assert torch.equal(values, ranked[:, :n]) and torch.equal(places, order[:, :n])
    logits[0, 0, words - 7] = logits[0, 0, 5] = 99.0
    assert likeliest(logits, 1)[1][0].item() == 5  # the first of equals, as argmax


@pytest.mark.parametrize("tied, many_heads", [(False, apprentice.MANY_HEADS), (True, apprentice.MANY_HEADS), (False, 0)])
def test_a_step_gives_the_logits_of_the_whole_pass(tied, many_heads, monkeypatch):
    """Beams that change parents, sources that leave and padding included, against the decoder without a cache in one pass."""
    monkeypatch.setattr("apprentice.MANY_HEADS", many_heads)  # 0: attention by bmm
    net, (source, mask, _) = golden_model(GOLDEN[tied]), inputs()
    torch.manual_seed(0)
    K, written = 3, torch.zeros(len(source), 3, 1, dtype=torch.long)
    with torch.inference_mode():
        decoder = Decoder(net, source, mask, K, 6)
        decoder.begin()
        for t in range(6):
            logits = net.unembed.product(decoder.step(written[:, :, -1]))
            whole = net(source.repeat_interleave(K, 0), written.flatten(0, 1), mask.repeat_interleave(K, 0))[:, -1]
            torch.testing.assert_close(logits.flatten(0, 1), whole, rtol=1e-4, atol=1e-4)
            parents = torch.randint(K, (len(source), K))
            decoder.follow(parents)
            written = torch.cat([written.take_along_dim(parents[..., None], 1), torch.randint(2, 40, (len(source), K, 1))], 2)
            if t == 2:
                rows = torch.arange(1, len(source))
                decoder.keep(rows)
                source, mask, written = source[rows], mask[rows], written[rows]


@pytest.mark.parametrize("many_heads", [apprentice.MANY_HEADS, 0])
def test_a_source_all_hidden_is_no_trouble_to_the_others(many_heads, monkeypatch):
    monkeypatch.setattr("apprentice.MANY_HEADS", many_heads)
    net, (source, mask, _) = golden_model(GOLDEN[0]), inputs()
    hidden = mask.clone()
    hidden[1] = False
    with torch.inference_mode():
        decoder, start = Decoder(net, source, hidden, 2, 4), torch.zeros(len(source), 2, dtype=torch.long)
        decoder.begin()
        whole = net(source, start[:, :1], hidden)
        torch.testing.assert_close(net.unembed.product(decoder.step(start)), whole.expand(-1, 2, -1), rtol=1e-4, atol=1e-4)  # NaN is never close
    for beams in (1, 3):
        assert [row for i, row in enumerate(generate(net, source, hidden, num_beams=beams)) if i != 1] == \
            [row for i, row in enumerate(generate(net, source, mask, num_beams=beams)) if i != 1]


def test_greedy_with_a_sifted_head_writes_the_same_words(monkeypatch):
    torch.manual_seed(0)
    net = T5(T5Config(vocab_size=20000, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=2, tie_word_embeddings=False)).eval()
    net.lm_head.weight.data[1] *= 6  # a word that ends much, where it may
    source, seen = torch.randint(2, 20000, (12, 7)), []
    quick = type(net.unembed).largest
    monkeypatch.setattr(type(net.unembed), "largest", lambda *args: seen.append(0) or quick(*args))
    rows = generate(net, source, max_new_tokens=12, min_new_tokens=3)
    assert seen and min(map(len, rows)) == 3 and max(map(len, rows)) > 3, rows
    monkeypatch.setattr("apprentice.FEW", 0)
    assert generate(net, source, max_new_tokens=12, min_new_tokens=3) == rows


def refused(x, packed):
    raise RuntimeError("no number")


@pytest.mark.parametrize("first, second, then", [((9, 1, 2, 2), (3, 3, 0, 0), "a"), ((9, 4, 0, 0), (3, 5, 1, 1), "b")])
def test_the_quicker_of_two_ways_is_kept(first, second, then, monkeypatch):
    clock, done, seconds = [0.0], [], {"a": list(first), "b": list(second)}
    monkeypatch.setattr("timeit.default_timer", lambda: clock[0])

    def way(name):
        done.append(name)
        clock[0] += seconds[name].pop(0)
        if clock[0] == 9:
            raise RuntimeError(name)  # is no answer, and counts as a trial
        return name

    run = apprentice.quicker(functools.partial(way, "a"), functools.partial(way, "b"))
    with pytest.raises(RuntimeError, match="a"):
        run()
    assert [run() for _ in range(5)] == ["b", "a", "b", then, then] and done == ["a", "b", "a", "b", then, then]


@pytest.mark.parametrize("K", [1, 3])
def test_one_thread_tells_the_same_in_8_bits(K, tmp_path, monkeypatch):
    """To the bit: which of the two is quicker must not be seen in what is written."""
    torch.manual_seed(0)
    T5(replace(SIZES["micro"], vocab_size=500)).save_pretrained(tmp_path)
    net, source, threads, told = T5.from_pretrained(tmp_path, dtype="int8"), torch.randint(2, 500, (3, 50)), torch.get_num_threads(), []
    product, step = apprentice.product_in_8_bits, Decoder.step

    def write(way):
        states = []
        monkeypatch.setattr("apprentice.quicker", lambda *ways: ways[way])
        monkeypatch.setattr(Decoder, "step", lambda *args, **how: states.append(step(*args, **how)) or states[-1])
        monkeypatch.setattr("model.product_in_8_bits", lambda x, packed: told.append((way, torch.get_num_threads())) or product(x, packed))
        words = generate(net, source, num_beams=K, min_new_tokens=40, max_new_tokens=40)
        told.append((way, torch.get_num_threads()))
        return words, states

    apprentice.set_threads(2)
    if torch.get_num_threads() != 2:
        pytest.skip("OpenMP's threads can't be set here")
    try:
        (words, states), (others, other_states) = write(0), write(1)
    finally:
        apprentice.set_threads(threads)
    assert words == others and len(states) == 40 and all(map(torch.equal, states, other_states))
    assert {*told} == {(0, 2), (1, 1), (1, 2)}, "the encoder, the head and all that follows have all threads"



@pytest.mark.parametrize("guesses", ["as it is", "all wrong", "refused", "some wrong"])
@pytest.mark.parametrize("tied", [False, True])
def test_guessing_ahead_changes_no_word(guesses, tied, monkeypatch):
    """One source: the words are the likeliest by whole forward passes, however good the guesses are; good ones save steps."""
    torch.manual_seed(0)
    net = T5(T5Config(vocab_size=20000, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=2, tie_word_embeddings=tied)).eval()
    largest, rough, told = type(net.unembed).largest, apprentice.product_in_8_bits, []
    monkeypatch.setattr(type(net.unembed), "largest", lambda self, x, banned: told.append(len(x)) or largest(self, x, banned))
    steps, step = [], Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, tokens, *how: steps.append(self.slots + tokens.shape[1]) or step(self, tokens, *how))

    def half_right(x, packed):
        scores, place = rough(x, packed), steps[-1]  # the word that comes now, of `words`
        if scores.shape[1] == len(net.head) and place <= len(words):
            scores[:, words[place - 1] if place % 3 else 7 + place % 2] = 1e9
            scores[:, 1] = 2e9 if place % 7 == 0 else -1e9
        return scores

    if guesses != "as it is":
        monkeypatch.setattr("apprentice.product_in_8_bits", {"refused": refused, "some wrong": half_right}.get(guesses, lambda x, packed: -rough(x, packed)))

    @torch.no_grad()
    def likeliest_words(source, mask, least, most):
        ids = [0]
        while len(ids) <= most and ids[-1] != 1:
            logits = net(source, torch.tensor([ids]), mask)[0, -1]
            ids.append(logits.index_fill_(0, torch.tensor([1] if len(ids) <= least else [], dtype=torch.long), -math.inf).argmax().item())
        return ids[1:]

    total = 0
    for seed, (place, least, most) in enumerate([(5, 0, 40), (0, 0, 12), (8, 9, 12), (12, 0, 13), (5, 5, 40), (5, 15, 12), (5, 0, 1), (1, 0, 2), (6, 2, 6)]):
        source, mask = torch.randint(2, 20000, (1, 9)), torch.arange(9)[None] < 9 - seed
        last = likeliest_words(source, mask, 14, 14)[place]
        with torch.no_grad():  # what would be the word there ends the sequence, if no earlier one does
            net.head[[1, last]] = net.head[[last, 1]]
        words = likeliest_words(source, mask, least, most)
        steps.clear()
        assert generate(net, source, mask, min_new_tokens=least, max_new_tokens=most) == [[word for word in words if word != 1]]
        assert max(steps) <= len(words) + apprentice.AHEAD, "nothing is read behind the end"
        assert guesses != "all wrong" or len(steps) <= len(words) + apprentice.AHEAD, "who is always wrong is not asked on"
        assert len(words) == most or words[-1] == 1 and len(words) <= max(place, least) + 1
        total += len(words)
    assert len(told) < 0.28 * total if guesses == "as it is" else len(told) < total if guesses == "some wrong" else len(told) == total


def test_a_wrong_guess_that_is_no_number_reaches_no_word():
    for seed in range(8):
        torch.manual_seed(seed)
        net = T5(T5Config(vocab_size=20000, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=2, tie_word_embeddings=False)).eval()
        source = torch.randint(2, 20000, (1, 9))
        words = generate(net, source, max_new_tokens=24)[0]
        others = torch.ones(20000, dtype=torch.bool).index_fill_(0, torch.tensor([0, 1, *words, *source[0].tolist()]), False)
        with torch.no_grad():
            net.shared.weight[others] = math.nan
        assert generate(net, source, max_new_tokens=24)[0] == words


def test_a_copy_to_guess_with_is_never_stale():
    """A lone source and few ask the head's copy in 8 bits, many do not."""
    torch.manual_seed(0)
    net = T5(T5Config(vocab_size=20000, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=2, tie_word_embeddings=False)).eval()
    source, how = torch.randint(2, 20000, (1, 9)), dict(max_new_tokens=12)
    optimizer, others = torch.optim.AdamW(net.parameters(), lr=0.05, fused=True), copy.deepcopy(net.state_dict())

    def learn():
        net(source, torch.tensor([[0, 5, 6]])).logsumexp(-1).sum().backward()
        optimizer.step()  # which does not tell that weights have changed

    @torch.no_grad()
    def stretch():  # the bounds of the copy change as well
        net.head.mul_(100 + torch.rand(20000, 1))[:, 0] *= 30

    @torch.no_grad()
    def pad():  # the last word is the padding now, which is no word
        net.head[[0, words[-1]]] = net.head[[words[-1], 0]]

    for change in (learn, learn, stretch, pad, lambda: net.half().float(), lambda: net.load_state_dict(others)):
        words = generate(net, source, **how)[0]
        assert net.lm_head.draft and net.lm_head.bounds and net.decoder.blocks[0].ff.wo.draft
        change()
        written = [generate(net, source.repeat(n, 1), **how) for n in (1, 4, 20)]
        assert all(row == written[2][0] for rows in written for row in rows)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert not other.lm_head.draft and generate(other, source, **how) == written[0]
    net(source, source)
    assert not net.lm_head.draft and not net.decoder.blocks[0].ff.wo.draft, "in training they are no use"


def test_only_a_lone_source_of_a_large_vocabulary_in_float32_is_guessed_ahead(monkeypatch, tmp_path):
    monkeypatch.setattr("apprentice.speculate", lambda *args: pytest.fail("guessed"))
    torch.manual_seed(0)
    net = T5(T5Config(vocab_size=20000, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=2, tie_word_embeddings=True)).eval()
    net.save_pretrained(tmp_path)
    source, how = torch.randint(2, 20000, (1, 5)), dict(max_new_tokens=3, min_new_tokens=3)
    with pytest.raises(pytest.fail.Exception):
        generate(net, source, **how)
    cases = [(net, source, dict(do_sample=True)), (net, source, dict(num_beams=2)), (net, source.repeat(2, 1), {}), (spread()[0], source % 300, {}),
             (T5.from_pretrained(tmp_path, dtype="int8"), source, {}), (copy.deepcopy(net).bfloat16(), source, {}), (copy.deepcopy(net).double(), source, {})]
    for other, rows, more in cases:
        assert len(generate(other, rows, **how, **more)) == len(rows)


# --- on a GPU, and what is done there on a CPU ---

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
WAYS = [dict(), dict(min_new_tokens=5), dict(num_beams=2), dict(num_beams=4, early_stopping="never", length_penalty=0.6),
        dict(num_beams=4, early_stopping=True, num_return_sequences=3)]


def spread():
    """Sources of many lengths, and a network whose sequences end at different steps."""
    torch.manual_seed(0)
    net = T5(T5Config(vocab_size=300, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu",
                      tie_word_embeddings=False)).eval()
    net.lm_head.weight.data[1] *= 3
    source = torch.randint(2, 300, (5, 21))
    mask = torch.arange(21) < torch.tensor([21, 3, 9, 1, 14])[:, None]
    return net, source * mask, mask


@pytest.mark.parametrize("way", WAYS)
def test_searches_in_place_write_what_growing_ones_write(way, monkeypatch):
    """The decoder of a GPU, padded to its shapes and used again for other sources, on a CPU and without a recording."""
    net, source, mask = spread()
    monkeypatch.setattr("apprentice.Recorded", lambda function, device, generator=None: function)
    K, steps = way.get("num_beams", 1), 12
    for rows in ([0, 1, 2, 3, 4], [3, 1]):
        want = generate(net, source[rows], mask[rows], max_new_tokens=steps, **way)
        how = (way.get("length_penalty", 1.0), way.get("early_stopping", False)) if K > 1 else (None,)
        with torch.inference_mode():
            search = apprentice.static_search(net, 5, 21, apprentice.BeamSearch if K > 1 else apprentice.Greedy, K, steps, *how)
            search.decoder.load(source[rows], mask[rows])
            written = search.write(way.get("min_new_tokens", 0), way.get("num_return_sequences", 1))
        assert [ids for row in range(len(rows)) for ids in written[row]] == want
        assert min(map(len, want)) < steps
    assert len(apprentice.RECORDINGS[net]) == 1 and copy.deepcopy(net) not in apprentice.RECORDINGS


def test_recordings_are_bounded_and_die_with_their_model(monkeypatch):
    net, source, mask = spread()
    monkeypatch.setattr("apprentice.Recorded", lambda function, device, generator=None: function)
    with torch.inference_mode():
        searches = [weakref.ref(apprentice.static_search(net, 4, length, apprentice.Greedy, 1, 8, None)) for length in (30, 60, 90)]
        assert all(search() for search in searches) and apprentice.static_search(net, 3, 20, apprentice.Greedy, 1, 8, None) is searches[0]()
        monkeypatch.setattr("apprentice.RECORDED", 0)
        apprentice.static_search(net, 4, 120, apprentice.Greedy, 1, 8, None)
    assert not any(search() for search in searches) and len(apprentice.RECORDINGS[net]) == 1  # at once, without the garbage collector
    last = weakref.ref(next(iter(apprentice.RECORDINGS[net].values())))
    del net
    assert last() is None


def test_packed_weights_go_where_the_weights_go():
    net, source, mask = spread()
    generate(net, source, mask, max_new_tokens=4)
    net.double()
    assert generate(net, source, mask, max_new_tokens=4) == generate(copy.deepcopy(spread()[0]).double(), source, mask, max_new_tokens=4)
    net.float()
    generate(net, source, mask, max_new_tokens=4)
    net.lm_head.rough()
    net.half().float()  # the rounded weights may have the address of those that were packed
    assert not any(m.packed or m.draft for m in net.modules() if isinstance(m, Linear))
    assert [len(row) for row in generate(net.half(), source, mask, max_new_tokens=4, min_new_tokens=4)] == [4] * len(source)  # with padding


def test_no_source_no_sequence_and_autocast_changes_none():
    net, source, mask = spread()
    want = generate(net, source, mask, max_new_tokens=6, num_beams=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert generate(net, source, mask, max_new_tokens=6, num_beams=2) == want
    assert generate(net, source[:0], mask[:0]) == generate(net, source[:0], num_beams=3) == []


@GPU
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fused", [True, False])
def test_gpu_a_step_gives_the_logits_of_the_whole_pass(dtype, fused):
    net, source, mask = spread()
    net, source, mask, K = net.to("cuda", getattr(torch, dtype)), source.cuda(), mask.cuda(), 3
    close = dict(rtol=1e-4, atol=1e-4) if dtype == "float32" else dict(rtol=0.1, atol=0.15)
    with torch.inference_mode():
        decoder = StaticDecoder(net, 8, 32, K, 6)
        assert decoder.linear is apprentice.fused_linear or not apprentice.triton
        if not fused:
            decoder.linear, decoder.attention = apprentice.plain_linear, apprentice.plain_attention
        decoder.load(source, mask)
        decoder.begin()
        written = torch.zeros(5, K, 1, dtype=torch.long, device="cuda")
        for _ in range(6):
            logits = net.unembed.product(decoder.step(written[[0, 1, 2, 3, 4, 4, 4, 4], :, -1])[:5])
            whole = net(source.repeat_interleave(K, 0), written.flatten(0, 1), mask.repeat_interleave(K, 0))[:, -1]
            torch.testing.assert_close(logits.flatten(0, 1), whole, **close)
            parents = torch.randint(K, (5, K), device="cuda")
            decoder.follow(parents[[0, 1, 2, 3, 4, 4, 4, 4]])
            written = torch.cat([written.take_along_dim(parents[..., None], 1), torch.randint(2, 300, (5, K, 1), device="cuda")], 2)


@GPU
@pytest.mark.skipif(not apprentice.triton, reason="wants Triton")
@pytest.mark.parametrize("K", [1, 3, 17])
def test_gpu_kernels_compute_what_the_plain_functions_compute(K):
    """With keys hidden at the end, at the start, and altogether."""
    torch.manual_seed(0)
    B, H, k, S, steps = 3, 2, 16, 96, 7
    kv, places = torch.randn(B, S, 2 * H * k, device="cuda"), torch.arange(S, device="cuda")
    q, bias = torch.randn(B * K, H * k, device="cuda"), torch.randn(H, steps, device="cuda")
    ends, starts = (torch.tensor(x, device="cuda")[:, None] for x in ([96, 5, 0], [70, 0, 95]))
    for seen in (places < ends, places >= starts):
        ours, plain = (attend(q, kv, (H, k), K, seen=seen) for attend in (apprentice.fused_attention, apprentice.plain_attention))
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    caches = [torch.zeros(B, steps * K, 2 * H * k, device="cuda") for _ in range(2)]
    for t in range(steps):
        given = torch.randn(B * K, 3 * H * k, device="cuda")
        seen = torch.rand(B, K, steps * K, device="cuda") < 0.5
        seen[..., t * K : (t + 1) * K] = torch.eye(K, device="cuda")
        how = seen & (torch.arange(steps * K, device="cuda") < (t + 1) * K), bias, torch.tensor([(t + 1) * K], device="cuda")
        ours, plain = (f(given, c, (H, k), K, *how) for f, c in zip((apprentice.fused_attention, apprentice.plain_attention), caches, strict=True))
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(*caches)


@GPU
@pytest.mark.parametrize("way", WAYS)
def test_gpu_replays_write_what_is_written_without(way, monkeypatch):
    net, source, mask = spread()
    cpu = generate(net, source, mask, max_new_tokens=20, **way)
    net, source, mask = net.cuda(), source.cuda(), mask.cuda()
    replays = [generate(net, source, mask, max_new_tokens=20, **way) for _ in range(4)]
    assert replays == [cpu] * 4
    (search,) = apprentice.RECORDINGS[net].values()
    assert all(callable(graph) for graph in search.advance.graphs.values()) and "replay" in repr(search.begin.graphs[()])
    alone = [generate(net, source[i : i + 1, : int(mask[i].sum())], max_new_tokens=20, **way) for i in range(5)]
    assert [ids for rows in alone for ids in rows] == cpu
    with torch.no_grad():
        net.lm_head.weight[7] = 1.5 * net.lm_head.weight[1]  # weights that change in place are seen
    assert generate(net, source, mask, max_new_tokens=20, **way) == generate(net.cpu(), source.cpu(), mask.cpu(), max_new_tokens=20, **way) != cpu


@GPU
def test_gpu_a_hook_is_heard_after_a_recording_too():
    net, source, mask = spread()
    net, source, mask = net.cuda(), source.cuda(), mask.cuda()
    before = [generate(net, source, mask, max_new_tokens=20) for _ in range(3)]
    for module in (net.encoder.blocks[0], net.decoder.norm):
        hook = module.register_forward_pre_hook(lambda module, args: (-args[0], *args[1:]))
        assert generate(net, source, mask, max_new_tokens=20) != before[2]
        hook.remove()
        assert generate(net, source, mask, max_new_tokens=20) == before[2]


@GPU
def test_gpu_threads_take_turns_and_a_turned_weight_is_read_as_it_lies():
    net, source, mask = spread()
    for block in net.decoder.blocks:
        block.ff.wo.weight = torch.nn.Parameter(block.ff.wo.weight.t().contiguous().t())
    want = [generate(net, source[i : i + 2], mask[i : i + 2], max_new_tokens=20) for i in range(4)]
    net, source, mask = net.cuda(), source.cuda(), mask.cuda()
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda i: generate(net, source[i % 4 : i % 4 + 2], mask[i % 4 : i % 4 + 2], max_new_tokens=20), range(24))
    assert list(found) == want * 6


@GPU
def test_gpu_draws_hang_on_the_generator_alone():
    net, source, mask = spread()
    net, random = net.cuda(), torch.Generator("cuda")
    how = dict(max_new_tokens=9, do_sample=True, top_k=50, top_p=0.9)
    rows = [generate(net, source.cuda(), mask.cuda(), generator=random.manual_seed(i // 2), **how) for i in range(8)]
    (search,) = [search for search in apprentice.RECORDINGS[net].values() if search.drawn]
    assert "replay" in repr(search.advance.graphs[(False,)])
    assert rows[2] == rows[3] and rows[4] == rows[5] and rows[6] == rows[7] and rows[3] != rows[4]


@GPU
def test_gpu_what_cannot_be_recorded_is_done_as_it_is_and_spoils_nothing():
    x = torch.zeros(3, device="cuda")
    asks, adds = Recorded(lambda: x.add_(1).sum().item(), "cuda"), Recorded(lambda: x.add_(1), "cuda")
    asks()
    with pytest.warns(UserWarning, match="can't record"):
        asks()
    asks()
    assert x[0] == 3 and torch.randn(3, device="cuda").isfinite().all()
    for _ in range(4):
        adds()
    assert x[0] == 7 and "replay" in repr(adds.graphs[()])


def ask(*args, stdin=None):
    return subprocess.run([sys.executable, "apprentice.py", *map(str, args)], cwd=ROOT, input=stdin, capture_output=True, text=True)


def test_the_command_answers_and_speaks_json(run):
    done = ask(run, "a dog runs.", "a cat sleeps.", "--json")
    assert done.returncode == 0 and set(json.loads(done.stdout)) == {"premise", "hypothesis", "label", "rationale", "text"}
    done = ask(run, "--json", stdin="a dog runs.\na cat sleeps.\na dog runs.\nno dog.\n")
    assert len(done.stdout.splitlines()) == 2
    odd = ask(run, b"a dog\xff runs.".decode(errors="surrogateescape"), "a cat.", "--json")  # bytes that are no UTF-8
    assert odd.returncode == 0 and json.loads(odd.stdout)["premise"] == "a dog? runs."


def test_bad_input_is_one_line_and_status_2(run, tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {})
    for args in (["nowhere"], [run, "one"], [run, "--jsn"], [tmp_path, "a", "b"], [run, "a", "b", "--num_beams=0"], [run, "a", "b", "--device=tpu"]):
        done = ask(*args)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done


@pytest.mark.parametrize("name, value", [("format", None), ("format", "nope"), ("format", ["predict"]), ("data", 5), ("max_source", "x"), ("max_target", 0)])
def test_a_run_json_that_no_run_has_is_told(run, tmp_path, name, value):
    shutil.copytree(run, folder := tmp_path / "run")
    for settings in ({name: value}, [], None):
        (folder / "run.json").write_text(json.dumps({"settings": settings}))
        with pytest.raises(CheckpointError, match=f"run.json.*{name if settings else 'format'}"):
            Apprentice.load(folder)


def test_a_run_json_without_settings_is_asked_in_plain_instructions(run, tmp_path):
    shutil.copytree(run, folder := tmp_path / "run")
    (folder / "run.json").write_text("{}")
    assert Apprentice.load(folder).format == "instruction"


def test_memory_that_does_not_suffice_is_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        apprentice.run_main(lambda argv: torch.empty(2**50))
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith("error: memory does not suffice")


def test_what_is_written_ends_at_the_first_end_or_before_the_padding():
    from apprentice import cut

    assert [cut(row) for row in ([5, 0, 1, 9], [5, 0, 7, 0, 0], [0, 0], [5, 6, -1, -1], [1, -1])] == [[5, 0], [5, 0, 7], [], [5, 6], []]
