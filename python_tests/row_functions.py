"""The native row functions that are no operations of their own, as functions that tests can
differentiate: the boundary gather and both layers of the SBO head, and the softmax and dropout
of the CPU's attention. In the reference mode they are the functions of the same names there."""

import torch

from spanbert_ext.ops import attention_weights as attention_op
from spanbert_ext.ops import backend, sbo_rows
from spanbert_ext.ops.reference import dropout as dropout_reference
from spanbert_ext.ops.reference import sbo as reference
from spanbert_ext.ops.reference.dropout import mask_threshold


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, span_left, span_right):
        ctx.save_for_backward(span_left, span_right)
        ctx.tokens = hidden.shape[0]
        return sbo_rows.gather(hidden, span_left, span_right)

    @staticmethod
    def backward(ctx, grad):
        pairs = grad.contiguous()
        return sbo_rows.gather_backward(pairs, *ctx.saved_tensors, ctx.tokens), None, None


def gather_boundaries(hidden, span_left, span_right):
    """[T, H] to [S, 2H]."""
    if not backend.use_native(hidden.device):
        return reference.gather_boundaries(hidden, span_left, span_right)
    return _Gather.apply(hidden, span_left, span_right)


class _GeluLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        out, mean, rstd = sbo_rows.norm(x, None, weight, bias, eps)
        ctx.save_for_backward(x, None, weight, mean, rstd)
        return out

    @staticmethod
    def backward(ctx, grad):
        return *sbo_rows.norm_backward(grad.contiguous(), *ctx.saved_tensors)[:3], None


def gelu_layer_norm(x, weight, bias, eps):
    """[R, H] to [R, H]: LN(GELU(x)) as the second layer of the SBO head has it."""
    if not backend.use_native(x.device):
        return reference.gelu_layer_norm(x, weight, bias, eps)
    return _GeluLayerNorm.apply(x, weight, bias, eps)


class _FirstLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, spans, positions, target_spans, target_offsets, sbo_ids, weight, bias, eps):
        index = (target_spans, target_offsets, sbo_ids)
        out, mean, rstd = sbo_rows.first_layer(spans, positions, *index, weight, bias, eps)
        ctx.save_for_backward(spans, positions, *index, weight, mean, rstd)
        return out

    @staticmethod
    def backward(ctx, grad):
        grads = sbo_rows.first_layer_backward(grad.contiguous(), *ctx.saved_tensors)
        return *grads[:2], None, None, None, *grads[2:], None


def sbo_first_layer(spans, positions, target_spans, target_offsets, sbo_ids, weight, bias, eps):
    """[S, H] and [P, H] to [K, H]."""
    arguments = (spans, positions, target_spans, target_offsets, sbo_ids, weight, bias, eps)
    if not backend.use_native(spans.device):
        return reference.sbo_first_layer(*arguments)
    return _FirstLayer.apply(*arguments)


class _AttentionWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, first_queries, queries, keys, scale, threshold, seed, site):
        outputs = torch.empty_like(scores), torch.empty_like(scores)
        arguments = (scores, first_queries, queries, keys, scale, threshold, seed, site)
        attention_op.run(*arguments, outputs)
        ctx.save_for_backward(outputs[1], queries, keys)
        ctx.settings = scale, threshold
        return outputs[0]

    @staticmethod
    def backward(ctx, grad):
        signed_probs = ctx.saved_tensors[0]
        outputs = torch.empty_like(signed_probs), torch.empty_like(signed_probs)
        attention_op.run_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.settings, outputs)
        return outputs[0], *[None] * 7


def attention_weights(scores, first_queries, queries, keys, scale, p=0.0, seed=None, site=0):
    """[N, heads, Lq, Lk] to the same."""
    threshold = mask_threshold(p)
    arguments = (scores, first_queries, queries, keys, scale, threshold)
    if not backend.use_native(scores.device):
        return dropout_reference.attention_weights(*arguments, seed, site)
    return _AttentionWeights.apply(*arguments, seed if threshold else None, site)
