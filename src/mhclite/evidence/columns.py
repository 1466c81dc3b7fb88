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
    "validation_loss": "float64",  # at the end of training; none if it diverged
    "validation_bits_per_byte": "float64",
    "best_validation_loss": "float64",
    "seconds": "float64",
    "tokens_per_second": "float64",
    "parameters": "int64",
    "connection_parameters": "int64",
    "loss_spikes": "int64",
    "grad_norm_spikes": "int64",
    "spikes_per_1000_steps": "float64",  # empty: too few steps to judge
    "grad_norm_mean": "float64",
    "grad_norm_fluctuation": "float64",
    "single_max_deviation": "float64",
    "product_max_deviation": "float64",
    "gain_forward": "float64",
    "gain_backward": "float64",
    "sinkhorn_share_above_30": "float64",
    "identity_distance": "float64",
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
    "learning_rate": "float64",
    "validation_loss": "float64",  # on evaluation steps
    "validation_bits_per_byte": "float64",
    "grad_norm_window_mean": "float64",  # empty until the window is full
    "grad_norm_window_sd": "float64",
}
