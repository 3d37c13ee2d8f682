"""SBO heads and batches for them, and the formula of the paper in plain torch."""

import torch
import torch.nn.functional as F
from strategies import CLS, PAD, SEP, make_masker, word_text

from spanbert_ext import SBOHead
from spanbert_ext.masking.batch import MaskedBatch

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def make_head(hidden_size=24, seed=0, dtype=torch.float32, **options) -> SBOHead:
    torch.manual_seed(seed)
    head = SBOHead(hidden_size, **{"position_size": 10, **options})
    for parameter in head.parameters():  # biases and gains that matter
        parameter.data += torch.randn_like(parameter) * 0.3
    return head.to(dtype)


def framed_batch(rows=4, width=60, seed=0, **options) -> MaskedBatch:
    ids = word_text(rows * width, seed).view(rows, width)
    ids[:, 0], ids[:, -4], ids[:, -3:] = CLS, SEP, PAD
    return make_masker(seed=seed, **{"mask_ratio": 0.3, **options})(ids)


def padded_formula(hidden, batch, head: SBOHead):
    """SPEC 2.3 as the original computes it: every span's every slot, torch functions, the target
    rows read last."""
    slots, spans = head.position_embeddings.weight.shape[0], batch.span_left.shape[0]
    pair = torch.cat([hidden[batch.span_left], hidden[batch.span_right]], 1)
    pair = pair.unsqueeze(1).expand(spans, slots, -1)
    positions = head.position_embeddings.weight.unsqueeze(0).expand(spans, slots, -1)
    x = torch.cat([pair, positions], 2)
    for linear, norm in ((head.linear1, head.layer_norm1), (head.linear2, head.layer_norm2)):
        x = F.gelu(F.linear(x, linear.weight, linear.bias))
        x = F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, norm.eps)
    used = batch.sbo_ids != -100
    rows = x[torch.where(used, batch.target_spans, 0), torch.where(used, batch.target_offsets, 0)]
    return torch.where(used.unsqueeze(1), rows, 0)


def run(formula, hidden, batch, head, grad):
    """Rows, gradient of hidden and gradients of the parameters by name."""
    hidden = hidden.detach().clone().requires_grad_()
    head.zero_grad()
    rows = formula(hidden, batch, head)
    rows.backward(grad.to(rows.dtype))
    named = {n: p.grad.clone() for n, p in head.named_parameters()}
    return {"rows": rows.detach(), "hidden": hidden.grad, **named}
