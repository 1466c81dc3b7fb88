"""Names and layout of the tensors in the authors' GPT (FFTYYY/mhc-lite): theirs to ours and back.

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

VARIANTS = ("residual", "hc", "mhc", "mhc_lite", "kromhc")  # those in their code


def parts_of(name: str) -> list[str]:
    """Our names for one tensor of the authors' GPT: two where one of theirs holds two of ours.

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
    """Convert one tensor of the authors' GPT to our names, shapes and orientation.

    Args:
        name: theirs, e.g. `transformer.h.0.hc_attn.static_alpha`.
        array: its values.
        variant: hc, mhc, mhc_lite, kromhc or residual.
        n: streams.
    """
    names = parts_of(name)
    if len(names) == 1:
        # Some of their scales have shape (1,), some ().
        return {names[0]: array if array.ndim else array.reshape(1)}
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


def to_theirs(state: dict[str, Array], variant: str, n: int) -> dict[str, Array]:
    """Convert a whole state of our GPT to their names, shapes and orientation.

    Their repeated entries (the tied head, `hc_*.branch.*`) are included, as in their checkpoints.

    Args:
        state: our names and values.
        variant: one of `VARIANTS`.
        n: streams.
    """
    result: dict[str, Array] = {}
    for theirs, ours in _BACKBONE.items():
        result[theirs] = state[ours]
    result["lm_head.weight"] = state["wte.weight"]
    n_sublayers = len(
        [name for name in state if re.fullmatch(r"sublayers\.\d+\.norm\.weight", name)]
    )
    for index in range(n_sublayers):
        prefix = f"sublayers.{index}."
        kind = "mlp" if index % 2 else "attn"
        block = f"transformer.h.{index // 2}."
        for theirs, ours in _BRANCH.items():
            if prefix + ours in state:
                result[f"{block}branch_{kind}.{theirs}"] = state[prefix + ours]
                result[f"{block}hc_{kind}.branch.{theirs}"] = state[prefix + ours]
        own = {
            name.removeprefix(f"{prefix}connection."): value
            for name, value in state.items()
            if name.startswith(f"{prefix}connection.")
        }
        for theirs, value in _connection_to_theirs(own, variant, n).items():
            result[f"{block}hc_{kind}.{theirs}"] = value
    return result


def _connection_to_theirs(own: dict[str, Array], variant: str, n: int) -> dict[str, Array]:
    """The tensors of one connection, under their names."""
    if variant == "residual":
        return {}
    pre, res, w_pre, w_res = (own[name] for name in ("b_pre", "b_res", "w_pre", "w_res"))
    matrices = variant in ("hc", "mhc")
    if variant == "hc":
        dynamic = np.concatenate((w_pre[:, None], w_res), axis=1)
    elif variant == "mhc":
        by_stream = w_res.reshape(-1, n, n).swapaxes(1, 2)  # (nC, s, t)
        dynamic = np.concatenate((w_pre[..., None], by_stream), axis=2).reshape(len(w_pre), -1)
    else:
        dynamic = np.concatenate((w_pre, w_res), axis=1)
    result = {
        "static_alpha": np.concatenate((pre[:, None], res.T), axis=1)
        if matrices
        else np.concatenate((pre, res)),
        "dynamic_alpha_fn": dynamic,
        "static_beta": own["b_post"],
        "dynamic_beta_fn": own["w_post"],
        "norm.gamma": own["norm_gain"],
    }
    if variant == "hc":
        result["dynamic_alpha_scale"] = own["scale_alpha"].reshape(())
        result["dynamic_beta_scale"] = own["scale_post"].reshape(())
    else:
        result["pre_branch_scale"] = own["scale_pre"].reshape(1)
        result["residual_scale"] = own["scale_res"].reshape(1)
        result["h_post_scale"] = own["scale_post"].reshape(())
    return result


def without_wrappers(name: str) -> str:
    """A name without what torch.compile and DistributedDataParallel put before it."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", name)


def is_repeated(name: str) -> bool:
    """Whether the entry repeats another one: `hc_*.branch.*` is `branch_*`, the head is tied."""
    return bool(re.search(r"\.hc_(attn|mlp)\.branch\.", name)) or name == "lm_head.weight"
