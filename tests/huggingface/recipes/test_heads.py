"""Heads against their definitions in plain loops, on encoders of several kinds."""

import pytest
import torch

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes.models import heads, marks
from lf_huggingface.recipes.models.heads import CandidateScorer, EvidenceReader, SpanReader, any_of
from lf_huggingface.recipes.tasks.triviaqa import best_span

SMALL = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 130}  # fmt: skip


def _encoder(kind):
    import transformers

    if kind == "longformer":
        config = transformers.LongformerConfig(**SMALL, attention_window=8)
        return transformers.LongformerModel(config, add_pooling_layer=False)
    if kind == "modernbert":
        config = transformers.ModernBertConfig(
            **SMALL,
            local_attention=8,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            cls_token_id=0,
            sep_token_id=2,
        )
    else:
        config = transformers.RobertaConfig(**SMALL, lf_attention="window(4, 4)")
    return transformers.AutoModel.from_config(config, attn_implementation="lf")


def _batch(rows=3, length=40):
    ids = torch.randint(3, 90, (rows, length))
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    marked = torch.zeros_like(ids)
    marked[:, :4] = 1
    return {
        "input_ids": ids.masked_fill(mask == 0, 1),
        "attention_mask": mask,
        "global_attention_mask": marked,
    }


CHUNKS = {"candidates": torch.tensor([[1, 3], [1, 3], [2, -1]]), "question": torch.tensor([0, 0, 1])}
HEADS = {
    CandidateScorer: ({"over_chunks": "average"}, CHUNKS),
    SpanReader: ({}, {}),
    EvidenceReader: ({}, {"titles": torch.tensor([[5, 9]] * 3), "marks": torch.tensor([[7, -1]] * 3)}),
}  # fmt: skip


@pytest.mark.parametrize("encoder", ["longformer", "modernbert", "roberta"])
@pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.__name__)
def test_a_head_on_any_encoder_is_saved_and_loaded_whole(kind, encoder, tmp_path):
    head, more = HEADS[kind]
    model, batch = kind.on(_encoder(encoder), **head).eval(), {**_batch(), **more}
    want = model(**batch)
    model.save_pretrained(tmp_path)
    got = kind.trained(tmp_path).eval()(**batch)
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, msg=name)
    without = model(**{**batch, "global_attention_mask": torch.zeros_like(batch["input_ids"])})
    assert not torch.equal(
        next(iter(want.values())), next(iter(without.values()))
    )  # global tokens reach attention


def test_candidates_over_chunks():
    batch = _batch()
    more = {"candidates": torch.tensor([[1, 3], [1, 3], [2, -1]]), "question": torch.tensor([0, 0, 1])}
    encoder = _encoder("longformer").eval()
    for how, divide in (("average", 2), ("sum", 1)):
        model = CandidateScorer.on(encoder, over_chunks=how).eval()
        found = model(**batch, **more, labels=torch.tensor([1, 0]))
        each = model.score(model.encode(**batch))[..., 0].detach()
        want = torch.tensor(
            [[float(each[0, at] + each[1, at]) / divide for at in (1, 3)], [float(each[2, 2]), -torch.inf]]
        )
        torch.testing.assert_close(found.logits.detach(), want)
        torch.testing.assert_close(found.loss.detach(), -want.log_softmax(1)[0, 1] / 2)
    nothing = model(**batch, **more, labels=torch.tensor([-1, -1])).loss
    nothing.backward()
    assert float(nothing.detach()) == 0 and all(
        x.grad is None or x.grad.isfinite().all() for x in model.parameters()
    )
    with pytest.raises(RecipeError, match="over_chunks: average or sum wanted, got None"):
        CandidateScorer.on(encoder)


def test_the_or_loss():
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    gold = torch.tensor([[1, 4, 4], [0, -1, -1], [-1, -1, -1]])
    p = logits.softmax(1)
    want = -(torch.log(p[0, 1] + p[0, 4]) + torch.log(p[1, 0])) / 2
    torch.testing.assert_close(any_of(logits, gold), want)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (any_of(logits, gold), want)))
    alone = any_of(logits, torch.full((3, 1), -1))
    assert float(alone.detach()) == 0 and torch.autograd.grad(alone, logits)[0].abs().max() == 0
    padded = torch.cat(
        [logits.detach(), torch.full((3, 2), -torch.inf, dtype=torch.float64)], 1
    ).requires_grad_()
    assert torch.autograd.grad(any_of(padded, gold), padded)[0].isfinite().all()


def test_the_best_span_is_the_brute_force_one():
    for _ in range(20):
        starts, ends = torch.randn(50), torch.randn(50)
        a, b = starts.topk(20).indices.tolist(), ends.topk(20).indices.tolist()
        want = max((float(starts[i] + ends[j]), (i, j)) for i in a for j in b if i <= j < i + 30)
        got = best_span(starts, ends)
        assert got[1] == want[1] and got[0] == pytest.approx(want[0])
    assert best_span(torch.empty(0), torch.empty(0))[1] is None
    assert best_span(torch.tensor([-torch.inf] * 2), torch.zeros(2))[1] is None


def test_marks_start_as_the_table_is(tmp_path):
    import transformers
    from tokenizers import Tokenizer, models

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({str(n): n for n in range(90)}, unk_token="0"))
    )
    model = SpanReader.on(_encoder("longformer"))
    table = model.get_input_embeddings().weight.detach().clone() + 3
    model.get_input_embeddings().weight.data.copy_(table)
    with pytest.raises(RecipeError, match="it lacks <a>, <b>"):
        marks.check(tokenizer, ["<a>", "<b>"])
    marks.add(model, tokenizer, ["<a>", "<b>"])
    marks.check(tokenizer, ["<a>", "<b>"])
    new = model.get_input_embeddings().weight
    assert new.shape[0] == 92 and torch.equal(new[:90], table)
    assert abs(float(new[90:].detach().mean()) - 3) < 0.1 and heads.NEVER == -1
    model.save_pretrained(tmp_path)
    assert SpanReader.trained(tmp_path).get_input_embeddings().weight.shape[0] == 92
