"""The divisions of Sinkhorn-Knopp on a CPU as compiled C++: what torch.compile's graphs call.

In torch each of twenty iterations is four passes over a few thousand numbers, which cost more to
call than to compute: a third of a narrow model's step. Built by the compiler that torch.compile
needs anyway, once a process, in half a second.

Shapes: B blocks of T tokens, n streams; matrices are (B, n, n, T), contiguous, float32.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

WIDEST = 30.0  # spread of logits: beyond, exp may underflow, and the log domain is needed
# Step i divides by sums over dimension 2 (even) or 1 (odd), plus eps. Backwards M is taken back
# step by step, and G, the gradient in M, becomes (G - sum G M) / divisor.
SOURCE = """
#include <cstdint>
#define EACH_SUM for (int j = 0; j < N; j++)
#define TOKENS _Pragma("omp simd") for (int64_t k = 0; k < T; k++)
#define TERMS for (int s = 0; s < N; s++)
static int64_t between_sums(int i, int64_t T) { return i % 2 ? T : N * T; }
static int64_t between_terms(int i, int64_t T) { return i % 2 ? N * T : T; }
static void divide(float *M, float *D, int64_t T, int steps, float eps) {
  for (int i = 0; i < steps; i++) {
    const int64_t apart = between_terms(i, T);
    EACH_SUM {
      float *__restrict__ m = M + j * between_sums(i, T);
      float *__restrict__ d = D + (i * N + j) * T;
      TOKENS {
        float sum = eps;
        TERMS sum += m[s * apart + k];
        d[k] = sum;
        const float factor = 1 / sum;
        TERMS m[s * apart + k] *= factor;
      }
    }
  }
}
extern "C" void forward(float *M, float *D, int64_t B, int64_t T, int steps, float eps) {
  for (int64_t b = 0; b < B; b++) divide(M + b * N * N * T, D, T, steps, eps);
}
extern "C" void backward(float *M, float *G, float *D, int64_t B, int64_t T, int steps, float eps) {
  for (int64_t b = 0; b < B; b++, M += N * N * T, G += N * N * T) {
    divide(M, D, T, steps, eps);
    for (int i = steps - 1; i >= 0; i--) {
      const int64_t apart = between_terms(i, T);
      EACH_SUM {
        float *__restrict__ m = M + j * between_sums(i, T);
        float *__restrict__ g = G + j * between_sums(i, T);
        const float *__restrict__ d = D + (i * N + j) * T;
        TOKENS {
          float sum = 0;
          const float factor = 1 / d[k];
          TERMS sum += m[s * apart + k] * g[s * apart + k];
          TERMS g[s * apart + k] = (g[s * apart + k] - sum) * factor;
          TERMS m[s * apart + k] *= d[k];
        }
      }
    }
  }
}
"""


@cache
def _library(n: int) -> ctypes.CDLL:
    """The code for n streams."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    flags = ["-O3", "-march=native", "-fopenmp-simd", "-shared", "-fPIC", f"-DN={n}", "-xc++", "-"]
    with tempfile.TemporaryDirectory() as folder:  # once loaded, the file may go
        path = str(Path(folder, "sinkhorn.so"))
        command = [*shlex.split(compiler), *flags, "-o", path]
        subprocess.run(command, input=SOURCE, text=True, check=True)
        return ctypes.CDLL(path)


def _call(name: str, steps: int, eps: float, M: Tensor, *more: Tensor) -> None:
    """Scratch holds the divisors of one block."""
    B, n, _, T = M.shape
    tensors = (M, *more, M.new_empty(steps * n * T))
    assert all(t.is_contiguous() and t.dtype == torch.float32 for t in tensors)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    sizes = ctypes.c_int64(B), ctypes.c_int64(T), ctypes.c_int(steps), ctypes.c_float(eps)
    getattr(_library(n), name)(*pointers, *sizes)


def divide(M: Tensor, steps: int, eps: float = 0.0) -> None:
    """Divide M by its sums + eps, over dimensions 2, 1, 2, ... in turn, in place."""
    _call("forward", steps, eps, M)


def divide_backward(M: Tensor, dM: Tensor, steps: int, eps: float = 0.0) -> None:
    """Make dM, the gradient in what `divide` makes of M, the gradient in M; in place."""
    _call("backward", steps, eps, M, dM)
