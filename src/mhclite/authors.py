"""The authors' names: tensors of their GPT (FFTYYY/mhc-lite) as ours.

Their code keeps b_pre and b_res in one tensor (`static_alpha`), w_pre and w_res in another
(`dynamic_alpha_fn`), and stores mixing matrices as alpha[s, t], the transpose of H_res[t, s].
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]

_BACKBONE = {
    "transformer.wte.weight": "wte.weight",
    "transformer.wpe.weight": "wpe.weight",
    "transformer.ln_f.weight": "ln_f.weight",
}
_SUBLAYER = re.compile(r"transformer\.h\.(\d+)\.(branch|hc)_(attn|mlp)\.(.+)")
_BRANCH = {
    "0.weight": "norm.weight",
    "1.c_attn.weight": "body.c_attn.weight",
    "1.c_fc.weight": "body.c_fc.weight",
    "1.c_proj.weight": "body.c_proj.weight",
}
_CONNECTION = {
    "norm.gamma": "norm_gain",
    "static_beta": "b_post",
    "dynamic_beta_fn": "w_post",
    "dynamic_alpha_scale": "scale_alpha",
    "dynamic_beta_scale": "scale_post",
    "pre_branch_scale": "scale_pre",
    "residual_scale": "scale_res",
    "h_post_scale": "scale_post",
}


def parts_of(name: str, variant: str, n: int) -> list[str]:
    """Our names for one tensor of the authors' GPT: two where they keep two of ours in one.

    Raises:
        KeyError: for a name that their code does not have.
    """
    if name in _BACKBONE:
        return [_BACKBONE[name]]
    match = _SUBLAYER.fullmatch(name)
    if match is None:
        raise KeyError(name)
    block, side, kind, rest = match.groups()
    prefix = f"sublayers.{2 * int(block) + (kind == 'mlp')}."
    if side == "branch":
        return [prefix + _BRANCH[rest]]
    if rest in ("static_alpha", "dynamic_alpha_fn"):
        letter = "b" if rest == "static_alpha" else "w"
        return [f"{prefix}connection.{letter}_{end}" for end in ("pre", "res")]
    return [f"{prefix}connection.{_CONNECTION[rest]}"]


def to_ours(name: str, array: Array, variant: str, n: int) -> dict[str, Array]:
    """One tensor of the authors' GPT under our names, in our shapes and orientation.

    Args:
        name: theirs, e.g. `transformer.h.0.hc_attn.static_alpha`.
        array: its values.
        variant: hc, mhc, mhc_lite, kromhc or residual.
        n: streams.
    """
    names = parts_of(name, variant, n)
    if len(names) == 1:
        # They hold some scales as (1,), some as ().
        return {names[0]: array.reshape(()) if array.size == 1 else array}
    if name.endswith("static_alpha"):
        if variant in ("hc", "mhc"):  # (n, 1 + n): [s, 0] is b_pre[s], [s, 1 + t] is b_res[t, s]
            pre, res = array[:, 0], array[:, 1:].T
        else:
            pre, res = array[:n], array[n:]
    elif variant == "hc":  # (C, 1 + n)
        pre, res = array[:, 0], array[:, 1:]
    elif variant == "mhc":  # (nC, n * (1 + n)): for each s first its b_pre, then all t
        columns = array.reshape(-1, n, 1 + n)
        pre, res = columns[..., 0], columns[..., 1:].swapaxes(1, 2).reshape(-1, n * n)
    else:
        pre, res = array[:, :n], array[:, n:]
    return dict(zip(names, (pre, res), strict=True))


def is_repeated(name: str) -> bool:
    """Whether the entry only repeats another one (`hc_*.branch.*` repeats `branch_*`)."""
    return bool(re.search(r"\.hc_(attn|mlp)\.branch\.", name)) or name == "lm_head.weight"
