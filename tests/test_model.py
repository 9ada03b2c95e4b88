"""model.py: the architecture against its definition, the weight files against damage, the hub against a server on loopback."""
import doctest
import json
import math
import runpy
import struct
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hub import Hub

import model as m
from data import cache_folder
from model import T5, CheckpointError, T5Config

def small(tied=False, seed=0, **kw):
    torch.manual_seed(seed)
    return T5(T5Config(vocab_size=50, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2, tie_word_embeddings=tied,
                       feed_forward_proj="relu" if tied else "gated-gelu", **kw)).eval()


def test_the_examples_in_the_docstrings_are_true():
    found = doctest.testmod(m)
    assert found.attempted and not found.failed


@pytest.mark.parametrize("rows", (1, 300))
def test_the_gelu_is_the_tanh_form_and_the_quick_one_is_the_same(rows):
    gate, up = torch.cat([torch.linspace(-9, 9, 997), torch.tensor([0.0, -1e30, 1e30])]).expand(rows, -1), torch.randn(rows, 1000)
    x = gate.double()  # Hendrycks & Gimpel 2016, arXiv 1606.08415, section 2
    truth = (0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) * up.double()).float()
    h = torch.cat([gate, up], 1)
    before = h.clone()
    for way in (torch.enable_grad(), torch.no_grad()):
        with way:
            torch.testing.assert_close(m.activated(h, "gated-gelu"), truth, rtol=2e-6, atol=2e-6)
    assert torch.equal(h, before)
    try:
        torch.set_default_dtype(torch.float64)
        with torch.no_grad():
            assert runpy.run_path(m.__file__)["activated"](h, "gated-gelu").dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)

def test_zero_head_gives_ln_v_and_padding_changes_nothing():
    net = small()
    source, target = torch.randint(2, 50, (3, 7)), torch.randint(2, 50, (3, 5))
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:] = mask[2, 1:] = False
    logits = net(source, target, mask)
    wide = net(F.pad(source, (0, 6), value=9), target, F.pad(mask, (0, 6)))
    torch.testing.assert_close(wide, logits)
    torch.testing.assert_close(net(source[1:2, :4], target[1:2]), logits[1:2])
    net.lm_head.weight.data.zero_()
    assert F.cross_entropy(net(source, target).flatten(0, 1), target.flatten()).item() == pytest.approx(math.log(50))


@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load_keep_every_number(tmp_path, tied):
    net = small(tied)
    net.save_pretrained(tmp_path)
    again = T5.from_pretrained(tmp_path)
    x = torch.randint(2, 50, (2, 6))
    assert torch.equal(net(x, x), again(x, x)) and again.config == net.config


def test_dropout_of_next_to_nothing_and_of_next_to_all():
    x = torch.ones(1000, 100)
    assert torch.equal(m.Dropout(5e-6)(x) > 0, x > 0) and (m.Dropout(1 - 5e-6)(x) > 0).float().mean() < 1e-3


@pytest.mark.parametrize("spoil", [math.nan, math.inf, 3e38])
def test_the_largest_of_what_is_no_number_is_the_plain_way_s(spoil):
    head, x = m.Linear(8, 300), torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    for weight, state in ((True, False), (False, True), (True, True)):
        torch.nn.init.normal_(head.weight)
        with torch.inference_mode():
            w, y = head.weight.clone(), x.clone()
            w[7, 3], y[1, 2] = spoil if weight else w[7, 3], spoil if state else y[1, 2]
            spoilt = m.Linear(8, 300)
            spoilt.weight = torch.nn.Parameter(w, requires_grad=False)
            logits = y @ w.T
            logits[:, [1]] = -math.inf
            assert torch.equal(spoilt.largest(y, [1]), logits.argmax(1))


@pytest.mark.parametrize("entry", [{"data_offsets": [4]}, {"data_offsets": [0, 4, 8]}, {"data_offsets": {"a": 0, "b": 4}}, {"shape": None}, {"shape": 5}])
def test_a_header_of_the_wrong_kind_is_told(tmp_path, entry):
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="x.safetensors"):
        m.read_safetensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("values", [dict(d_model=10**12), dict(d_model=10**30), dict(num_layers=10**6), dict(relative_attention_max_distance=16),
                                    dict(relative_attention_num_buckets=2)])
def test_a_shape_that_no_t5_has_is_refused_at_once(values):
    with pytest.raises(CheckpointError, match="config: "):
        T5Config(**values)


def test_an_empty_or_odd_pytorch_file_is_told(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    for write in (lambda: path.write_bytes(b""), lambda: torch.save({1: torch.ones(1)}, path), lambda: torch.save({"a": torch.ones(1, device="meta")}, path)):
        write()
        with pytest.raises(CheckpointError, match="pytorch_model.bin is not"):
            m.read_bin(path)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_draws_each_number_by_itself(p):
    drop, x = m.Dropout(p), torch.ones(999, 41, requires_grad=True)  # not a multiple of four
    torch.manual_seed(0)
    y = drop(x)
    torch.manual_seed(0)
    assert torch.equal(drop(x), y) and torch.equal(torch.autograd.grad(y.sum(), x)[0], y.detach())
    assert {round(value, 4) for value in y.unique().tolist()} == {0.0, round(1 / (1 - p), 4)}
    gone, n = (y == 0).float(), y.numel()
    columns = F.pad(gone.flatten(), (0, -(n % 4))).view(-1, 4)  # the four that share 64 bits
    assert (columns.mean(0) - p).abs().max() < 5 * (p * (1 - p) / len(columns)) ** 0.5
    assert (torch.corrcoef(columns.T) - torch.eye(4)).abs().max() < 5 / len(columns) ** 0.5
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("rows", [(1,), (3, 1), (2, 5)])
def test_products_and_their_gradients_are_those_of_float64(rows, slow, monkeypatch):
    monkeypatch.setattr(m, "SLOW_LINEAR", m.ONEDNN and slow)
    torch.manual_seed(0)
    x, w, dy = torch.randn(*rows, 24, requires_grad=True), torch.randn(40, 24, requires_grad=True), torch.randn(*rows, 40)
    y = m.product(x, w)
    xd, wd = x.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    yd = xd @ wd.T
    for got, want in zip((y, *torch.autograd.grad(y, (x, w), dy)), (yd, *torch.autograd.grad(yd, (xd, wd), dy.double())), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    assert m.product(x.detach(), w).requires_grad and not m.product(x.detach(), w.detach()).requires_grad


def test_the_norm_and_its_gradients_are_those_of_float64():
    """The formula by PyTorch's own derivatives; a row of zeros, a far one and a tiny one included. Without gradients too, which is another way."""
    torch.manual_seed(0)
    norm = m.RMSNorm(24, 1e-6)
    x, dy = 3 * torch.randn(2, 5, 24) + 1, torch.randn(2, 5, 24)
    x[0, 0], x[0, 1], x[0, 2] = 0, x[0, 1] * 1e6, x[0, 2] * 1e-4
    norm.weight.data.normal_(1, 0.5)
    xd, wd = x.double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    yd = xd / (xd.square().mean(-1, keepdim=True) + 1e-6).sqrt() * wd
    y = norm(x.requires_grad_())
    torch.testing.assert_close(y.double(), yd, rtol=1e-5, atol=1e-6)
    for got, want in zip(torch.autograd.grad(y, (x, norm.weight), dy), torch.autograd.grad(yd, (xd, wd), dy.double()), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(norm(x).double(), yd, rtol=1e-5, atol=1e-6)


def test_attention_written_out_for_its_dropout_is_pytorch_s(monkeypatch):
    """With a dropout that drops nothing: bias, hidden keys, and a query that sees none at all."""
    torch.manual_seed(0)
    config = T5Config(d_model=24, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    x, memory, bias = torch.randn(2, 5, 24), torch.randn(2, 7, 24), torch.randn(2, 2, 5, 7)
    bias[:, :, :, 4:], bias[0, 0, 2] = -math.inf, -math.inf
    calls = []
    monkeypatch.setattr(m.Dropout, "forward", lambda self, x: calls.append(x.shape) or x)
    for attention, how in ((m.Attention(config), dict(bias=bias[..., :5])), (m.Attention(config, cross=True), dict(bias=bias, memory=memory))):
        sides = []
        for mode in (True, False):
            y = attention.train(mode)(x.requires_grad_(), **how)
            sides.append((y, *torch.autograd.grad(y.square().sum(), (x, *attention.parameters()))))
        assert calls.pop() == (2, 2, 5, how["bias"].shape[-1]) and not calls
        for got, want in zip(*sides, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slow", [False, True])
def test_a_packed_weight_multiplies_any_number_of_rows(slow, monkeypatch):
    """On every processor's way."""
    torch.manual_seed(0)
    monkeypatch.setattr(m, "SLOW_LINEAR", slow and m.ONEDNN)
    matrix = m.Linear(24, 40)
    with torch.inference_mode():
        matrix.pack()
        for shape in ((), (1,), (3,), (2, 4), (64,)):
            x = torch.randn(*shape, 24)
            torch.testing.assert_close(matrix.product(x), (x.double() @ matrix.weight.double().T).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_packed_weights_change_nothing_and_are_never_stale(tied):
    net, other = small(tied), small(tied, seed=1)
    x = torch.randint(2, 50, (3, 6))
    with torch.no_grad():
        plain, want = net(x, x), other(x, x)
        net.pack()
        torch.testing.assert_close(net(x, x), plain)
        net.load_state_dict(other.state_dict())  # the weights change under the packed copies
        torch.testing.assert_close(net(x, x), want)
        net.pack()
        torch.testing.assert_close(net(x, x), want)
    assert net.state_dict().keys() == other.state_dict().keys()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
    net(x, x).sum().backward()  # the gradients go past the packed copies, even in eval mode
    assert all(p.grad is not None for p in net.parameters())
    optimizer.step()
    again = small(tied)
    again.load_state_dict(net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(net(x, x), again(x, x), rtol=0, atol=1e-6)
        net.pack()
        torch.testing.assert_close(net(x, x), again(x, x))
    net(x, x)
    assert not any(vars(part).get("packed") for part in net.modules())


@pytest.mark.parametrize("outlier", [0.0, 30.0])
def test_the_largest_product_is_that_of_float64(outlier):
    """However the rows lie: of near and of equal rows the first, of ones that differ in length, and for x with one far number."""
    torch.manual_seed(0)
    net, x = m.Linear(64, 3000), torch.randn(9, 64)
    with torch.no_grad():
        net.weight[:1500] *= torch.rand(1500, 1) * 3
        net.weight[2000:2050] = net.weight[1000:1050]  # equal
        net.weight[2100:2150] = net.weight[1100:1150] + 1e-5 * torch.randn(50, 64)  # nearer than 8 bits can tell
        x[:, 5] += outlier
        x[3:6] = net.weight[[1010, 1110, 1120]] * 4
    y = x.double() @ net.weight.double().T
    assert torch.equal(net.largest(x, []), y.argmax(1))
    banned = y.argmax(1)[:2].tolist()
    y[:, banned] = -math.inf
    assert torch.equal(net.largest(x, banned), y.argmax(1))
    with torch.no_grad():
        net.weight.mul_(-100 * torch.rand(3000, 1))  # neither the copy nor its bounds are stale
    assert torch.equal(net.largest(x, []), (x.double() @ net.weight.double().T).argmax(1))


def test_the_largest_product_is_found_where_only_weights_are_rounded():
    torch.manual_seed(0)
    net, x = m.Linear(64, 3000), torch.randint(0, (most := 127 if m.NARROW else 255) + 1, (40, 64)).float()
    x[:, 0], x[:, 1] = 0, most  # these numbers are their own copies in 8 bits
    with torch.no_grad():
        net.weight[:] = net.weight[0] + 3e-3 * torch.randn(3000, 64)
    assert torch.equal(net.largest(x, []), (x.double() @ net.weight.double().T).argmax(1))


@pytest.mark.parametrize("tied", [False, True])
def test_int8_is_near_and_says_what_it_cannot(tmp_path, tied):
    net = small(tied)
    net.save_pretrained(tmp_path)
    quick = T5.from_pretrained(tmp_path, dtype="int8")
    x = torch.randint(2, 50, (8, 20))
    quick.pack()  # as generate does: changes nothing here
    quick.pack(quantize=True)
    a, b = net(x, x), quick(x, x)
    assert 0 < (a - b).norm() / a.norm() < 0.03
    first, second = a.topk(2).values.unbind(-1)
    clear = first - second > 0.1 * a.std()
    assert clear.sum() > 80 and (a.argmax(-1) == b.argmax(-1))[clear].float().mean() > 0.99
    with pytest.raises(CheckpointError, match="int8"):
        quick.save_pretrained(tmp_path)


def test_shift_right_starts_with_pad_and_hides_ignored():
    assert T5.shift_right(torch.tensor([[7, 8, 1], [9, 1, -100]])).tolist() == [[0, 7, 8], [0, 9, 1]]


def test_buckets_by_the_definition():
    """Half of the buckets are exact; the others widen so that bucket b of n begins at exact * (max / exact)^((b - exact) / exact)."""
    bias = m.PositionBias(T5Config(), bidirectional=False)
    starts = [*range(16), *(math.ceil(16 * 8 ** ((b - 16) / 16) - 1e-9) for b in range(16, 32))]
    for distance in range(300):
        want = max(b for b in range(32) if starts[b] <= distance)
        assert bias.bucket(torch.tensor([-distance])).item() == want, distance


def damaged(tmp_path, change):
    small().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    raw = path.read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    header, body = json.loads(raw[8 : 8 + n]), raw[8 + n :]
    header, body = change(header, body)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return tmp_path


def edit(name, **values):
    def change(header, body):
        header[name] |= values
        return header, body

    return change


@pytest.mark.parametrize("change, says", [
    (lambda h, b: (h, b[:-4]), "cut short"),
    (lambda h, b: (h, b[:-1]), "cut short"),
    (lambda h, b: ({k: v for k, v in h.items() if k not in ("shared.weight", "lm_head.weight")}, b), "2 missing (lm_head.weight, shared.weight)"),
    (edit("shared.weight", data_offsets=[0, 10**9]), "header is wrong"),
    (edit("shared.weight", shape=[50, 25]), "asks for"),
    (lambda h, b: ({k: v for k, v in h.items() if k != "shared.weight"}, b), "missing (shared.weight)"),
    (lambda h, b: ({**h, "odd": h["shared.weight"]}, b), "unknown (odd)"),
    (edit("shared.weight", shape=[24, 50]), "has shape (24, 50)"),
    (edit("shared.weight", dtype="F8"), "header cannot be read"),
])
def test_damage_is_named(tmp_path, change, says):
    with pytest.raises(CheckpointError, match=says.replace("(", r"\(").replace(")", r"\)")):
        T5.from_pretrained(damaged(tmp_path, change))


def test_shards_are_read_by_their_index_or_its_fault_is_told(tmp_path):
    net = small()
    net.save_pretrained(tmp_path)
    whole = tmp_path / "model.safetensors"
    tensors, index = m.read_safetensors(whole), tmp_path / "model.safetensors.index.json"
    names = {name: f"{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(names.values()):
        m.write_safetensors(tmp_path / shard, {name: tensors[name] for name in names if names[name] == shard})
    whole.unlink()
    index.write_text(json.dumps({"weight_map": names}))
    assert torch.equal(T5.from_pretrained(tmp_path).shared.weight, net.shared.weight)
    for text, says in (("[1]", "cannot be read"), ("{", "cannot be read"), ("{}", "not an index.*None"), ('{"weight_map": [1]}', r"not an index.*\[1\]"),
                       ('{"weight_map": {"a": "../b"}}', "plain file name, not '../b'"), ('{"weight_map": {"a": ["b"]}}', "not an index"),
                       ('{"weight_map": {"a": "b.safetensors"}}', "b.safetensors is missing")):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=says):
            T5.from_pretrained(tmp_path)


def test_a_stray_tensor_of_old_files_is_known(tmp_path):
    """If it is the copy that it should be; transformers 5 leaves out a head that it ties."""
    T5.from_pretrained(damaged(tmp_path, lambda h, b: ({**h, "encoder.embed_tokens.weight": h["shared.weight"]}, b)))
    with pytest.raises(CheckpointError, match="encoder.embed_tokens.weight is no copy of shared.weight"):
        T5.from_pretrained(damaged(tmp_path, lambda h, b: ({**h, "encoder.embed_tokens.weight": h["lm_head.weight"]}, b)))
    net = T5.from_pretrained(damaged(tmp_path, lambda h, b: ({k: v for k, v in h.items() if k != "lm_head.weight"}, b)))
    assert torch.equal(net.lm_head.weight, net.shared.weight)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    import pickle

    small().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return (print, ("this ran",))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="not a file of plain tensors"):
        T5.from_pretrained(tmp_path)
    for odd in (torch.zeros(3, 3).to_sparse(), torch.zeros(3, device="meta")):
        torch.save({"shared.weight": odd}, tmp_path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="not a dictionary of tensors"):
            T5.from_pretrained(tmp_path)


def test_config_errors_name_file_and_value(tmp_path):
    (tmp_path / "config.json").write_text('{"d_model": -3}')
    with pytest.raises(CheckpointError, match="d_model is -3"):
        T5.from_pretrained(tmp_path)
    for text, says in (('{"decoder_start_token_id": 5}', "decoder_start_token_id is 5; .* only 0 is known"),
                       ('{"dense_act_fn": "gelu"}', "dense_act_fn is 'gelu'"),
                       ('{"feed_forward_proj": "gated-gelu", "is_gated_act": false}', "is_gated_act is False; .* only True")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=says):
            T5Config.from_file(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"eos_token_id": [1]}')  # as transformers may write it
    T5Config.from_file(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="no folder here and no hub name"):
        T5.from_pretrained(tmp_path / "none")


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    small().save_pretrained(tmp_path / "origin")
    (tmp_path / "origin" / "spiece.model").write_bytes(b"pieces" * 50)
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(m.time, "sleep", lambda seconds: None)
    return tmp_path / "origin"


@pytest.mark.parametrize("how", [{}, {"cut": 9000}, {"cut": 9000, "piece": 5000}, {"cut": 9000, "ranges": False}],
                         ids=["well", "cut", "cut, in pieces", "cut, no ranges"])
def test_a_hub_name_is_downloaded_once(hub_folder, monkeypatch, how):
    with Hub({"google/tiny": hub_folder}, **how) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        if how.get("ranges") is False:  # it never comes further than the cut
            with pytest.raises(CheckpointError, match="cut after 9000 of"):
                T5.from_pretrained("google/tiny")
            return
        net = T5.from_pretrained("google/tiny")
        assert torch.equal(net.shared.weight, T5.from_pretrained(hub_folder).shared.weight)
        assert any(r for _, r in hub.asked) == bool(how)  # a cut file is gone on with, not begun again
        count = len(hub.asked)
        T5.from_pretrained("google/tiny")
        assert len(hub.asked) == count
        assert not list(cache_folder().rglob("*.part"))


@pytest.mark.parametrize("kind", ["bin", "shards", "no vocabulary"])
def test_what_was_downloaded_is_used_without_the_hub(hub_folder, monkeypatch, kind):
    whole = hub_folder / "model.safetensors"
    if kind == "bin":
        torch.save(m.read_safetensors(whole), hub_folder / "pytorch_model.bin")
        whole.unlink()
    elif kind == "shards":
        whole.rename(hub_folder / "a.safetensors")
        (hub_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"shared.weight": "a.safetensors"}}))
    else:
        (hub_folder / "spiece.model").unlink()
    with Hub({"google/tiny": hub_folder}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        first = T5.from_pretrained("google/tiny")
        count = len(hub.asked)
    assert torch.equal(T5.from_pretrained("google/tiny").shared.weight, first.shared.weight) and len(hub.asked) == count


def test_a_range_that_was_not_asked_for_is_refused(hub_folder, monkeypatch):
    folder = cache_folder() / "google--tiny"
    folder.mkdir(parents=True)
    (folder / "config.json.part").write_bytes(b"{")
    with Hub({"google/tiny": hub_folder}, early=1) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(CheckpointError, match="asked for bytes from 1 on, the server sends those from 0 on"):
            T5.from_pretrained("google/tiny")


def test_a_part_that_lies_here_is_gone_on_with_or_replaced(hub_folder, monkeypatch):
    folder = cache_folder() / "google--tiny"
    folder.mkdir(parents=True)
    whole = (hub_folder / "model.safetensors").read_bytes()
    with Hub({"google/tiny": hub_folder}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        for part, asked in ((whole[:1000], "bytes=1000-"), (whole + b"more", f"bytes={len(whole) + 4}-")):
            (folder / "model.safetensors.part").write_bytes(part)
            T5.from_pretrained("google/tiny")
            assert asked in [r for _, r in hub.asked] and (folder / "model.safetensors").read_bytes() == whole
            (folder / "model.safetensors").unlink()


def test_wrong_sums_unknown_names_and_no_network_are_told(hub_folder, monkeypatch):
    with Hub({"google/tiny": hub_folder}, wrong=True) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(CheckpointError, match="sha256"):
            T5.from_pretrained("google/tiny")
        assert not [f for f in cache_folder().rglob("*") if f.is_file()]
        with pytest.raises(CheckpointError, match="check the name"):
            T5.from_pretrained("google/none")
    with Hub({"google/tiny": hub_folder}, barred=True) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(CheckpointError, match="answers 403 for .*/store/.* by hand"):  # a proxy's doing, perhaps: the hub has it
            T5.from_pretrained("google/tiny")
        monkeypatch.setenv("HF_ENDPOINT", hub.url.removeprefix("http://"))
        with pytest.raises(CheckpointError, match="unknown url type"):
            T5.from_pretrained("google/tiny")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    with pytest.raises(CheckpointError, match="put config.json, spiece.model and model.safetensors of google/tiny into .* by hand"):
        T5.from_pretrained("google/tiny")


def test_the_command_prints_parts_that_add_up(tmp_path, capsys):
    net = small()
    net.save_pretrained(tmp_path)
    m.main([str(tmp_path)])
    assert f"{sum(p.numel() for p in net.parameters()):,}" in capsys.readouterr().out
    m.main(["small"])
    assert "76,961,152" in capsys.readouterr().out  # FLAN-T5-small's parameters, as its model card's file has them


def test_a_path_into_a_folder_that_is_here_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(m, "download", lambda *args: pytest.fail("the hub was asked"))
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="'out/nope' is no folder here"):
        m.fetch("out/nope")


def test_a_reader_that_has_seen_enough_is_no_error():
    process = subprocess.Popen([sys.executable, m.__file__, "small"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.communicate()[1], process.returncode) == (b"", 0)
