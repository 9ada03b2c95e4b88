"""model.py: the architecture against its definition, the weight files against damage, the hub against a server on loopback."""
import json
import math
import struct

import pytest
import torch
import torch.nn.functional as F

import model as m
from model import T5, CheckpointError, T5Config


def small(tied=False, seed=0, **kw):
    torch.manual_seed(seed)
    return T5(T5Config(vocab_size=50, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2, tie_word_embeddings=tied,
                       feed_forward_proj="relu" if tied else "gated-gelu", **kw)).eval()


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
    (edit("shared.weight", data_offsets=[0, 10**9]), "header is wrong"),
    (edit("shared.weight", shape=[50, 25]), "asks for"),
    (lambda h, b: ({k: v for k, v in h.items() if k != "shared.weight"}, b), "missing (shared.weight)"),
    (lambda h, b: ({**h, "odd": h["shared.weight"]}, b), "unknown (odd)"),
    (edit("shared.weight", shape=[24, 50]), "has shape (24, 50)"),
    (edit("shared.weight", dtype="F8"), "header cannot be read"),
])  # fmt: skip
def test_damage_is_named(tmp_path, change, says):
    with pytest.raises(CheckpointError, match=says.replace("(", r"\(").replace(")", r"\)")):
        T5.from_pretrained(damaged(tmp_path, change))


def test_a_stray_tensor_of_old_files_is_known(tmp_path):
    T5.from_pretrained(damaged(tmp_path, lambda h, b: ({**h, "encoder.embed_tokens.weight": h["shared.weight"]}, b)))


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


def test_config_errors_name_file_and_value(tmp_path):
    (tmp_path / "config.json").write_text('{"d_model": -3}')
    with pytest.raises(CheckpointError, match="d_model is -3"):
        T5.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no folder here and no hub name"):
        T5.from_pretrained(tmp_path / "none")
