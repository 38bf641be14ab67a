"""
Causal sequence layers: recurrent (LSTM, GRU) and Transformer. Text encoder and decoder are both built of one of them.

Output `t` depends on inputs up to `t` only, and padding touches no state, whichever side it is on.

B: batch, L: tokens of this call, S: tokens so far, past ones included, D: hidden size, N: layers
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from operator import is_

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .packed_lstm import LSTMLayer

# What a layer carries from one call to the next: each tensor has the batch in its first dimension,
# so that a cache can reorder it without knowing what it is.
State = tuple[torch.Tensor, ...]

# Rows of like length are computed together: at most so many groups, of at least so many rows.
MAX_LENGTH_GROUPS = 4
MIN_GROUP_ROWS = 32

# With more rows the usual kernel is as fast.
MAX_ROWS = 192
# In generation the sequence kernel, which packs its weights in each call, is no faster for so many tokens.
MAX_STEPS = 4
# A smaller weight fits into a core's own cache, and there is nothing to gain.
MIN_WEIGHTS = 2**16

CAN_PACK = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# Whether float32 can be multiplied by weights in float16, which FBGEMM does.
CAN_PACK_HALF = torch.backends.quantized.engine in ("fbgemm", "x86") and hasattr(
    torch.ops.quantized, "linear_prepack_fp16"
)


class PackedWeight:
    """
    Weights and biases of linear layers that are added up, of one at least, copied as one weight in the layout that few
    rows are multiplied by.

    A copy that is kept may take its time: a weight of float32 that float16 holds exactly, as those of a checkpoint
    that was saved in float16, is packed in float16 then, which halves the bytes to read. Products are float32 all the
    same.

    Args:
        weights (`torch.Tensor` of shape `(output_size, part of input_size)` each): side by side.
        biases (`torch.Tensor` of shape `(output_size,)`, *optional*, each): added up; all are given or none.
        dtype: of the rows that will be multiplied.
        is_kept: whether the copy serves many calls of `generate`.
    """

    def __init__(
        self,
        weights: tuple[torch.Tensor, ...],
        biases: tuple[torch.Tensor | None, ...],
        dtype: torch.dtype,
        is_kept: bool,
    ) -> None:
        weight = torch.cat([each.detach() for each in weights], dim=1).to(dtype)
        given = [each.detach() for each in biases if each is not None]
        bias = torch.stack(given).sum(dim=0) if given else None
        self.dtype = dtype
        self.sources = (*weights, *biases)
        self.half = None
        if CAN_PACK_HALF and is_kept and dtype == torch.float32 and _is_exact_in_half(weight):
            self.half = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        else:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight)
            self.packed_bias = None if bias is None else bias.to(dtype)

    def is_of(self, weights: tuple[torch.Tensor, ...], biases: tuple[torch.Tensor | None, ...]) -> bool:
        """Whether it is a copy of these very tensors."""
        return all(map(is_, self.sources, (*weights, *biases)))

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """`(..., input_size)` → `(..., output_size)`"""
        if rows.dtype != self.dtype:
            rows = rows.to(self.dtype)
        if self.half is not None:
            return torch.ops.quantized.linear_dynamic_fp16(rows, self.half)
        return torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.packed_bias, "none", [], "")


def _is_exact_in_half(weight: torch.Tensor) -> bool:
    half = weight.half()
    return torch.equal(half.float(), weight) and bool(half.isfinite().all())  # FBGEMM would make infinity finite


# Weights that may be packed: `None` before their first use, then themselves, then the packed copy.
PackedWeights = dict[torch.Tensor, torch.Tensor | PackedWeight | None]
# In generation, and whether the copies outlive the call.
_PACKED: ContextVar[tuple[PackedWeights, bool] | None] = ContextVar("packed", default=None)


@contextmanager
def packed_weights(modules: Iterable[nn.Module], kept: PackedWeights | None = None) -> Iterator[None]:
    """
    Inside, linear and recurrent layers within `modules` multiply few rows by packed copies of their weights.

    A step of generation multiplies one row per beam by every weight of the decoder. On CPUs the kernel behind
    `nn.Linear` is made for many rows; with a few it is faster on weights that are laid out for it
    (`benchmarks/packed_linear.py` measures by how much). A copy is made at a weight's second use. Two things are worth
    a copy only if it is kept: weights that a call uses once, as those that project an image, and single rows. Under
    autocast the copy has its type, and so half the bytes to read at each step. None outlives the call, so that no
    change of a weight is missed, unless the caller keeps them.

    The weights must not change inside. Weights that are quantised, offloaded or not on a CPU are left alone.

    Args:
        modules: may share layers.
        kept: copies for further calls, where the weights do not change between them either; empty at first.
    """
    layers = [layer for module in modules for layer in module.modules()]
    linears = [layer for layer in layers if type(layer) in (nn.Linear, PackedLinear)]
    recurrents = [layer for layer in layers if type(layer) in (nn.LSTM, nn.GRU)]
    parameters = (parameter for layer in (*linears, *recurrents) for parameter in layer.parameters(recurse=False))
    weights = {} if kept is None else kept
    for weight in parameters:
        if weight not in weights and _can_be_packed(weight):
            weights[weight] = None
    token = _PACKED.set((weights, kept is not None))
    # at rest the layers are torch's own, which tools for quantisation look for by their exact type
    linears = [layer for layer in linears if type(layer) is nn.Linear and layer.weight in weights]
    for layer in linears:
        layer.__class__ = PackedLinear
    try:
        yield
    finally:
        for layer in linears:
            layer.__class__ = nn.Linear
        _PACKED.reset(token)


def _can_be_packed(parameter: nn.Parameter) -> bool:
    return (
        CAN_PACK
        and type(parameter) is nn.Parameter  # quantised weights are of other types
        and parameter.device.type == "cpu"
        and parameter.dim() == 2
        and parameter.numel() >= MIN_WEIGHTS
        and can_be_multiplied(parameter.dtype)
    )


def can_be_multiplied(dtype: torch.dtype) -> bool:
    """Whether packed weights of this type can be multiplied on this processor."""
    is_bfloat16 = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or is_bfloat16


def few_row_linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """
    `nn.functional.linear`, for a few rows by the packed copy of the weight where [`packed_weights`] allows one.

    Args:
        inputs (`torch.FloatTensor` of shape `(..., input_size)`).
        weight (`torch.FloatTensor` of shape `(output_size, input_size)`).
        bias (`torch.FloatTensor` of shape `(output_size,)`, *optional*).
    """
    packed = _packed_copy(inputs, (weight,), (bias,))
    return nn.functional.linear(inputs, weight, bias) if packed is None else packed.multiply(inputs)


def _packed_copy(
    inputs: torch.Tensor, weights: tuple[torch.Tensor, ...], biases: tuple[torch.Tensor | None, ...]
) -> PackedWeight | None:
    """
    What a few rows are multiplied by in the place of weights that stand side by side, or `None` where torch's own
    product is to be taken.

    Args:
        inputs (`torch.FloatTensor` of shape `(..., input_size)`).
        weights (`torch.FloatTensor` of shape `(output_size, part of input_size)` each): the first stands for all.
        biases (`torch.FloatTensor` of shape `(output_size,)`, *optional*, each): of the weights.
    """
    # first of all, so that a compiler sees nothing of the rest
    packing = None if torch.compiler.is_compiling() else _PACKED.get()
    if packing is None or torch.is_grad_enabled():
        return None
    known, is_kept = packing
    weight = weights[0]
    packed = known.get(weight, False)  # False: of another layer, or not to be packed
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    width = inputs.shape[-1]
    if (
        packed is False
        or (dtype != weight.dtype and not can_be_multiplied(dtype))
        or (inputs.dtype != weight.dtype and inputs.dtype != dtype)
        or not (0 if is_kept else width) < inputs.numel() <= MAX_ROWS * width
        or inputs.dim() == 1
    ):
        return None
    if packed is None:
        known[weight] = weight
        return None
    if not isinstance(packed, PackedWeight) or packed.dtype != dtype:
        packed = known[weight] = PackedWeight(weights, biases, dtype, is_kept)
    return packed if packed.is_of(weights, biases) else None  # another layer may have the same weight


class PackedLinear(nn.Linear):
    """What an `nn.Linear` is inside [`packed_weights`]."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return few_row_linear(input, self.weight, self.bias)


class SequenceDropout(nn.Module):
    """
    Dropout with one mask a sequence, the same at every step (Gal & Ghahramani, 2016), which suits recurrent layers
    better than a new mask a step, and draws fewer random numbers: on CPUs these took a tenth of a training step.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        """`(B, L, D)` → `(B, L, D)`; as it is in evaluation mode."""
        if not self.training or not self.probability:
            return sequence
        mask = sequence.new_empty(len(sequence), 1, sequence.shape[-1]).bernoulli_(1 - self.probability)
        return sequence * mask.div_(1 - self.probability)

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


class CausalRecurrent(GradientCheckpointingLayer):
    """
    A stack of LSTM or GRU layers over a padded batch, in one call.

    Rows that are padded on the left are rolled until they are padded on the right, where padding comes after every
    real token and so cannot reach its state; outputs are rolled back. When the state is asked for, rows of unequal
    length are packed as well, so that each state is that of the row's last real token. One token, as in generation, or
    the few that it begins with, go through the layer's equations, whose matrix products then have few rows (see
    [`packed_weights`]).
    """

    recurrent_class: type[nn.LSTM] | type[nn.GRU]

    def cell(self, inputs: torch.Tensor, state: State, *weights: torch.Tensor) -> State:
        """One layer's step: the state `(B, D)` each after `inputs (B, input_size)`, the output first."""
        raise NotImplementedError

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, dropout: float, **_) -> None:
        super().__init__()
        self.recurrent = self.recurrent_class(
            input_size, hidden_size, num_layers, batch_first=True, dropout=dropout if num_layers > 1 else 0.0
        )

    def forward(
        self,
        inputs: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        state: State | None = None,
        return_state: bool = False,
    ) -> tuple[torch.Tensor, State | None]:
        """
        Args:
            inputs (`torch.FloatTensor` of shape `(B, L, input_size)`).
            attention_mask (`torch.LongTensor` of shape `(B, S)`, *optional*): 1 at tokens, 0 at padding.
            state (tuple of `torch.FloatTensor` of shape `(B, N, D)`, *optional*): what an earlier call returned.
            return_state (`bool`): whether the state after the last token is wanted.

        Returns:
            outputs of shape `(B, L, D)`, and the state or `None`.
        """
        length = inputs.shape[1]
        if return_state and not self.training and self._goes_by_steps(length, attention_mask) and self._is_plain():
            outputs, state_after = self._steps(inputs, state)
            return outputs, self._keep_unseen(state_after, attention_mask, state, length)
        hidden = None if state is None else self._to_recurrent(state)
        if attention_mask is None or length == 1:
            outputs, hidden = self.recurrent(inputs, hidden)
        else:
            mask = attention_mask[:, -length:].long()
            # argmax finds the first real token; a row of padding alone stays where it is
            left_padding = mask.argmax(dim=1, keepdim=True)
            rolled = self._rolled(inputs, left_padding)
            if return_state:
                lengths = mask.sum(dim=1).clamp(min=1).cpu()
                packed = pack_padded_sequence(rolled, lengths, batch_first=True, enforce_sorted=False)
                packed_outputs, hidden = self.recurrent(packed, hidden)
                outputs, _ = pad_packed_sequence(packed_outputs, batch_first=True, total_length=length)
            elif rolled.device.type == "cpu" and not torch.compiler.is_compiling():
                outputs = self._by_length(rolled, mask.sum(dim=1), hidden)
            else:
                outputs, _ = self.recurrent(rolled, hidden)
            outputs = self._rolled(outputs, -left_padding)
        if not return_state:
            return outputs, None
        return outputs, self._keep_unseen(self._from_recurrent(hidden), attention_mask, state, length)

    def _by_length(self, inputs: torch.Tensor, lengths: torch.Tensor, hidden) -> torch.Tensor:
        """
        Outputs for rows that are padded on the right, zeros at the padding. The rows are taken in groups of like
        length, so that little of the work is padding: captions of one batch differ by a factor of three. (CPUs run
        packed sequences step by step; this way the sequence kernel serves each group.)
        """
        order = lengths.argsort()
        outputs = inputs.new_zeros(*inputs.shape[:2], self.recurrent.hidden_size)
        for rows in order.tensor_split(max(1, min(MAX_LENGTH_GROUPS, len(inputs) // MIN_GROUP_ROWS))):
            longest = max(1, int(lengths[rows[-1]]))
            state = None
            if hidden is not None:
                state = tuple(tensor[:, rows] for tensor in hidden) if isinstance(hidden, tuple) else hidden[:, rows]
            group, _ = self.recurrent(inputs[rows, :longest], state)
            outputs[rows, :longest] = group.to(outputs.dtype)
        return outputs

    def _is_plain(self) -> bool:
        """Whether the weights may be read past the layer: quantisation and adapters put another layer in its place,
        offloading another `forward`, pruning a hook."""
        recurrent = self.recurrent
        hooks = recurrent._forward_pre_hooks or recurrent._forward_hooks
        return type(recurrent) is self.recurrent_class and "forward" not in vars(recurrent) and not hooks

    @staticmethod
    def _goes_by_steps(length: int, attention_mask: torch.Tensor | None) -> bool:
        if length == 1 or length > MAX_STEPS or torch.compiler.is_compiling() or _PACKED.get() is None:
            return length == 1
        return attention_mask is None or bool(attention_mask[:, -length:].all())

    def _steps(self, inputs: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        """The outputs `(B, L, D)` and the state after all tokens, token by token and layer by layer."""
        recurrent = self.recurrent
        if state is None:
            zeros = inputs.new_zeros(inputs.shape[0], recurrent.num_layers, recurrent.hidden_size)
            state = (zeros,) * (2 if self.recurrent_class is nn.LSTM else 1)
        layers = [tuple(tensor[:, layer] for tensor in state) for layer in range(recurrent.num_layers)]
        outputs = []
        for token in inputs.unbind(dim=1):
            for layer, weights in enumerate(recurrent.all_weights):
                layers[layer] = self.cell(token, layers[layer], *weights)
                token = layers[layer][0]
            outputs.append(token)
        return _stacked(outputs), tuple(_stacked(tensors) for tensors in zip(*layers))

    @staticmethod
    def _keep_unseen(
        state_after: State, attention_mask: torch.Tensor | None, state_before: State | None, length: int
    ) -> State:
        """A long prompt can come in pieces, and a piece can be padding alone: such a row stays in the state it had."""
        if attention_mask is None:
            return state_after
        seen = attention_mask[:, -length:].any(dim=1)[:, None, None]
        if seen.device.type == "cpu" and not torch.compiler.is_compiling() and seen.all():
            return state_after
        zeros = (torch.zeros_like(tensor) for tensor in state_after)
        before = zeros if state_before is None else state_before
        return tuple(torch.where(seen, new, old) for new, old in zip(state_after, before))

    @staticmethod
    def _rolled(sequence: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """`(B, L, size)` with each row rolled to the left by its shift, `(B, 1)`."""
        if sequence.device.type == "cpu" and not torch.compiler.is_compiling() and not shift.any():
            return sequence
        length = sequence.shape[1]
        index = (torch.arange(length, device=sequence.device) + shift) % length
        return sequence.gather(1, index.unsqueeze(-1).expand(-1, -1, sequence.shape[-1]))

    def _to_recurrent(self, state: State):
        hidden = tuple(tensor.transpose(0, 1).contiguous() for tensor in state)  # (N, B, D) each
        return hidden if len(hidden) > 1 else hidden[0]

    def _from_recurrent(self, hidden) -> State:
        tensors = hidden if isinstance(hidden, tuple) else (hidden,)
        return tuple(tensor.transpose(0, 1) for tensor in tensors)  # (B, N, D) each


def _stacked(tensors: list[torch.Tensor] | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Tensors `(B, D)` as one, `(B, number, D)`; a single one is not copied."""
    return tensors[0].unsqueeze(1) if len(tensors) == 1 else torch.stack(tensors, dim=1)


def initialize_recurrent(layers: nn.LSTM | nn.GRU) -> None:
    """Set orthogonal recurrent weights for each gate, Xavier-uniform input weights, and biases of 0."""
    for name, parameter in layers.named_parameters():
        if "weight_hh" in name:
            for gate in parameter.chunk(3 if isinstance(layers, nn.GRU) else 4):
                init.orthogonal_(gate)
        elif "weight" in name:
            init.xavier_uniform_(parameter)
        else:
            init.zeros_(parameter)


class CausalLSTM(CausalRecurrent):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997)."""

    recurrent_class = nn.LSTM

    def _by_length(self, inputs, lengths, hidden):
        if hidden is not None or not self._is_plain():
            return super()._by_length(inputs, lengths, hidden)
        lengths, order = lengths.clamp(min=1).sort(descending=True)
        is_token = torch.arange(int(lengths[0]), device=inputs.device).unsqueeze(1) < lengths  # (L, B), longest first
        steps, texts = is_token.nonzero(as_tuple=True)
        texts = order[texts]
        sizes = is_token.sum(dim=1).tolist()
        rows = inputs[texts, steps]  # as `pack_padded_sequence` has them, whose gradient takes longer than the layer
        for layer, weights in enumerate(self.recurrent.all_weights):
            if layer:
                rows = nn.functional.dropout(rows, self.recurrent.dropout, self.training)
            rows = LSTMLayer.apply(rows, sizes, *weights)
        return rows.new_zeros(*inputs.shape[:2], rows.shape[1]).index_put((texts, steps), rows)

    def cell(self, inputs, state, *weights):
        input_weight, hidden_weight, input_bias, hidden_bias = weights
        hidden, memory = state
        both = torch.cat((inputs, hidden), dim=1)
        packed = _packed_copy(both, (input_weight, hidden_weight), (input_bias, hidden_bias))
        if packed is not None:
            gates = packed.multiply(both)
        elif torch.compiler.is_exporting():
            joined = torch.cat((input_weight, hidden_weight), dim=1)
            gates = nn.functional.linear(both, joined, input_bias + hidden_bias)
        else:
            gates = nn.functional.linear(inputs, input_weight, input_bias)
            gates += nn.functional.linear(hidden, hidden_weight, hidden_bias)
        entered, kept, candidate, shown = gates.chunk(4, dim=-1)
        memory = kept.sigmoid() * memory + entered.sigmoid() * candidate.tanh()
        return shown.sigmoid() * memory.tanh(), memory


class CausalGRU(CausalRecurrent):
    """Gated recurrent units (Cho et al., 2014)."""

    recurrent_class = nn.GRU

    def cell(self, inputs, state, *weights):
        input_weight, hidden_weight, input_bias, hidden_bias = weights
        of_input = few_row_linear(inputs, input_weight, input_bias).chunk(3, dim=-1)
        of_hidden = few_row_linear(state[0], hidden_weight, hidden_bias).chunk(3, dim=-1)
        reset, kept = ((of_input[gate] + of_hidden[gate]).sigmoid() for gate in (0, 1))
        candidate = (of_input[2] + reset * of_hidden[2]).tanh()
        return (candidate + kept * (state[0] - candidate),)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    allowed: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """
    Scaled dot-product attention, the softmax in float32.

    Half precision on a CPU takes two products: torch's fused kernel is half as fast there, and its gradient 5 to 10
    times slower than in float32.

    Args:
        query (`torch.FloatTensor` of shape `(B, heads, L, D/heads)`), key and value (`(B, heads, S, D/heads)`).
        allowed (`torch.BoolTensor` that fits `(B, heads, L, S)`, *optional*): true where a query may look.
        dropout: of the weights.
    """
    is_fused_fast = query.dtype == torch.float32 or query.device.type != "cpu"
    if is_fused_fast and not torch.compiler.is_exporting():
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
    scores = (query / math.sqrt(query.shape[-1]) @ key.transpose(-1, -2)).float()
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    weights = scores.softmax(dim=-1).to(query.dtype)
    return nn.functional.dropout(weights, dropout) @ value


class TransformerLayer(GradientCheckpointingLayer):
    """Self-attention and feed-forward, each behind a normalisation and a residual (Vaswani et al., 2017; pre-norm)."""

    def __init__(
        self, hidden_size: int, num_heads: int, intermediate_size: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_size, intermediate_size), nn.GELU(), nn.Linear(intermediate_size, hidden_size)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, hidden_states: torch.Tensor, allowed: torch.Tensor, past: State | None = None
    ) -> tuple[torch.Tensor, State]:
        """`allowed (B or 1, 1, L, S)` is true where a query may look; returns the states and all keys and values."""
        batch, length, _ = hidden_states.shape
        projected = self.query_key_value(self.attention_norm(hidden_states))
        query, key, value = projected.view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)  # (B, heads, S, D/heads)
        context = attend(query, key, value, allowed, self.attention_dropout if self.training else 0.0)
        context = self.output(context.transpose(1, 2).reshape(batch, length, -1))
        hidden_states = hidden_states + self.dropout(context)
        fed_forward = self.feed_forward(self.feed_forward_norm(hidden_states))
        return hidden_states + self.dropout(fed_forward), (key, value)


class CausalTransformer(nn.Module):
    """A stack of causal Transformer layers with learned positions; a token's position counts real tokens only."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        dropout: float,
        *,
        num_heads: int,
        intermediate_size: int,
        attention_dropout: float,
        max_positions: int,
    ) -> None:
        super().__init__()
        self.input_projection = nn.Linear(input_size, hidden_size) if input_size != hidden_size else nn.Identity()
        self.max_positions = max_positions
        self.position_embedding = nn.Embedding(max_positions, hidden_size)
        self.layers = nn.ModuleList(
            TransformerLayer(hidden_size, num_heads, intermediate_size, dropout, attention_dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, inputs, attention_mask=None, state=None, return_state=False):
        """Same arguments as `CausalRecurrent.forward`; the state is every layer's keys and values, in turn."""
        length = inputs.shape[1]
        total = length + (state[0].shape[2] if state is not None else 0)
        if total > self.max_positions:
            raise ValueError(
                f"a text of {total} tokens is longer than `max_position_embeddings` ({self.max_positions}); "
                "shorten it, or train with a larger `max_position_embeddings`."
            )
        steps = torch.arange(total, device=inputs.device)
        allowed = steps <= steps[total - length :, None]  # (L, S)
        if attention_mask is None:
            positions = steps[total - length :].unsqueeze(0)
            allowed = allowed[None, None]
        else:
            mask = attention_mask.bool()
            positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -length:]
            # padding may look at itself: a row of the softmax must not be empty
            itself = steps == steps[total - length :, None]
            allowed = (allowed & mask[:, None, :] | itself)[:, None]
        hidden_states = self.input_projection(inputs) + self.position_embedding(positions)
        new_state: list[torch.Tensor] = []
        for index, layer in enumerate(self.layers):
            past = None if state is None else state[2 * index : 2 * index + 2]
            hidden_states, keys_and_values = layer(hidden_states, allowed, past)
            if return_state:
                new_state.extend(keys_and_values)
        return self.norm(hidden_states), tuple(new_state) if return_state else None


CAUSAL_LAYERS = {"lstm": CausalLSTM, "gru": CausalGRU, "transformer": CausalTransformer}


def build_causal_layers(layer_type: str, input_size: int, num_layers: int, config) -> nn.Module:
    """The causal layers that `layer_type`, a key of `CAUSAL_LAYERS`, names, with the sizes of `config`."""
    return CAUSAL_LAYERS[layer_type](
        input_size,
        config.hidden_size,
        num_layers,
        config.dropout,
        num_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        attention_dropout=config.attention_dropout,
        max_positions=config.max_position_embeddings,
    )
