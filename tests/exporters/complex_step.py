"""Mean gradients of hand-written numpy steps by complex-step differentiation.

f(x + i·h) = f(x) + i·h·f'(x) + O(h²): with h = 1e-30 the imaginary part holds the derivative to
the last digit of float64, and no framework takes part (Squire and Trapp, 1998).
"""

from __future__ import annotations

import numpy as np

_H = 1e-30


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def hard_sigmoid(x):
    # TensorFlow folds the division by 6 into a float32 reciprocal, which the file then holds.
    y = (x + 3) * float(np.float32(1 / 6))
    return np.where(y.real < 0, 0, np.where(y.real > 1, 1, y))


def layer_norm(x, gamma, beta, epsilon=1e-3):
    epsilon = float(np.float32(epsilon))  # the file holds it in float32, as it holds the weights
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * gamma + beta


def mean_gradients(step, starts, xs, delays):
    """State → ``[delay, unit, embedding]``, the mean over all positions.

    Args:
        step: (x ``[..., E]``, state name → ``[..., H]``) → new states.
        starts: State name → ``[H]`` at the start of the stream.
        xs: ``[time, E]`` what the core reads.
        delays: Largest delay.
    """
    time, size = xs.shape
    state = {k: np.asarray(v, np.complex128) for k, v in starts.items()}
    before = []
    for x in xs:
        before.append(state)
        state = step(x.astype(np.complex128), state)
    # One row per position, one per direction: [time, E, ...].
    now = {k: np.repeat(np.stack([b[k] for b in before])[:, None], size, 1) for k in starts}
    padded = np.concatenate([xs, np.zeros((delays, size))]).astype(np.complex128)
    sums = {k: [] for k in starts}
    for delay in range(delays + 1):
        read = np.repeat(padded[delay : delay + time, None], size, 1)
        if delay == 0:
            read = read + 1j * _H * np.eye(size)
        now = step(read, now)
        for k in starts:
            inside = now[k][: time - delay].imag / _H  # [position, E, H]
            sums[k].append(inside.mean(0).T)
    return {k: np.stack(v) for k, v in sums.items()}
