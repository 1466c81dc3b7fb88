"""oHC: mixing matrices that are rotations of four streams, from two unit quaternions."""

from __future__ import annotations

import torch
from torch import Tensor

from mhclite.connections.dynamic import DynamicConnection

# Below its root a quaternion's length counts as this. The paper names no number, but says that
# 1 + eps is 1 in float32.
EPS = 1e-24


def rotation(q: Tensor, r: Tensor) -> Tensor:
    """The matrix of x -> q x conj(r) for quaternions x: L(q) R(conj r) (oHC, eq. 8 and 15).

    Args:
        q, r: (..., 4), real part first. Of unit length for a rotation.

    Returns:
        (..., 4, 4): every entry is a sum of four products q[a] r[b] with their signs.
    """
    w, x, y, z = q.unbind(-1)
    left = torch.stack((w, -x, -y, -z, x, w, -z, y, y, z, w, -x, z, -y, x, w), -1)
    w, x, y, z = r.unbind(-1)
    right = torch.stack((w, x, y, z, -x, w, -z, y, -y, z, w, -x, -z, -y, x, w), -1)
    left, right = left.unflatten(-1, (4, 4, 1)), right.unflatten(-1, (1, 4, 4))
    # Not a matrix product: under autocast that would be rounded to bfloat16, and no rotation.
    return (left * right).sum(-2)


class QuaternionHC(DynamicConnection):
    """oHC's quaternion arm (arXiv 2609.02672, section 5): H_res in SO(4), so n = 4 alone.

    From eight logits l = scale_res u w_res + b_res come two quaternions of length 1,
    q = v / |v| with v = (1 + l[0], l[1], l[2], l[3]) and r likewise from l[4:], and
    H_res = L(q) R(conj r): orthogonal with determinant 1, without an iteration. b_res = 0 at first,
    where H_res = I. Reads and writes are those of mHC, as in the paper; so are here their initial
    values. scale_res stays at 0.01: the paper trains no such scale for orthogonal variants, where
    its gradient would use up the clipping.

    No code of the authors was found. Theirs takes the eight logits from the 16 of mHC and leaves
    eight columns of w_res without use; here they do not exist. They train with Muon and name no
    decay: w_* decay here and b_res, a vector, does not, as by the rule for the other variants.
    """

    decayed = frozenset({"w_pre", "w_post", "w_res"})

    def __init__(self, n_streams: int, n_embd: int, home_stream: int) -> None:
        assert n_streams == 4
        super().__init__(n_streams, n_embd, home_stream, torch.zeros(8), learned_scale=False)
        one = torch.zeros(2, 4)
        one[:, 0] = 1.0
        self.register_buffer("one", one, persistent=False)

    def mixing_matrix(self, logits: Tensor) -> Tensor:
        v = logits.unflatten(-1, (2, 4)) + self.one
        q, r = (v * torch.rsqrt(v.square().sum(-1, keepdim=True) + EPS)).unbind(-2)
        return rotation(q, r)


ConnectionClass = QuaternionHC
