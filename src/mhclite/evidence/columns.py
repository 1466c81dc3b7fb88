"""The columns of runs.csv and curves.csv, defined once."""

from __future__ import annotations

# column -> pandas type. "order" becomes an ordered categorical in the study's order.
# Losses in nats per token; `seconds` of training; counts are integers, empty where there is none.
RUN_COLUMNS = {
    "run": "str",
    "corpus": "order",
    "model": "order",
    "n_layer": "int64",
    "n_embd": "int64",
    "variant": "order",
    "condition": "order",  # "base": the study's own settings
    "n_streams": "int64",
    "seed": "int64",
    "status": "str",  # completed | diverged
    "steps": "int64",
    "diverged_step": "Int64",
    "tokens": "int64",
    "train_loss": "float64",
    # At the end of training, none if it diverged: over the validation split as far as the probe
    # reads it, and over the fixed windows of training.
    "validation_loss": "float64",
    "validation_bits_per_byte": "float64",
    "validation_loss_windows": "float64",
    "best_validation_loss": "float64",
    "seconds": "float64",
    "tokens_per_second": "float64",
    "parameters": "int64",
    "connection_parameters": "int64",
    "loss_spikes": "int64",
    "grad_norm_spikes": "int64",
    "judged_steps": "int64",  # that could have been a spike: after warm-up, a full window before
    "spikes_per_1000_steps": "float64",  # judged ones; empty: none
    "grad_norm_mean": "float64",
    "grad_norm_fluctuation": "float64",  # sd of its logarithm about a running median
    "backbone_grad_norm_mean": "float64",  # empty: not recorded
    "backbone_grad_norm_fluctuation": "float64",
    # Of single matrices H_res, and of the product over the depth:
    "single_deviation_99": "float64",  # |row sum - 1|, 99 % quantile over tokens and rows
    "product_deviation_99": "float64",
    "single_max_deviation": "float64",  # |row or column sum - 1|, the largest
    "product_max_deviation": "float64",
    "orthogonality_error": "float64",  # |H_res^T H_res - I|, mean over tokens and sub-layers
    "product_orthogonality_error": "float64",
    "gain_forward": "float64",
    "gain_forward_peak": "float64",  # largest at any evaluation of the training
    "gain_backward": "float64",
    "sinkhorn_share_above_30": "float64",
    "identity_distance": "float64",
    "start_distance": "float64",  # of H_res from what it was before training
    # What is lost if every H_res is the identity, or its mean over tokens: nats per token, with the
    # standard error over windows.
    "knockout_identity": "float64",
    "knockout_identity_error": "float64",
    "knockout_mean": "float64",
    "knockout_mean_error": "float64",
    "functional_mixing": "int64",  # sub-layers whose H_res can change what the model computes
    "unigram": "float64",
    "bigram": "float64",
    "key": "str",
}

CURVE_COLUMNS = {
    "run": "str",
    "corpus": "order",
    "model": "order",
    "variant": "order",
    "condition": "order",
    "seed": "int64",
    "step": "int64",  # 0: evaluated before training, no loss
    "tokens": "int64",
    "loss": "float64",
    "grad_norm": "float64",  # before clipping
    "validation_loss": "float64",  # on evaluation steps
    "validation_bits_per_byte": "float64",
    "attention_logit": "float64",  # largest, on evaluation steps
    "grad_norm_window_mean": "float64",  # empty until the window is full
    "grad_norm_window_sd": "float64",
}
