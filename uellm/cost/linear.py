"""Linear algebra of the few coefficients of a cost model, in plain Python. Matrices are positive definite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

Vector = tuple[float, ...]
Matrix = tuple[Vector, ...]

WORST_CONDITION = 1e6


def product(matrix: Matrix, vector: Sequence[float]) -> Vector:
    """The matrix times the vector."""
    return tuple(sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix)


def quadratic(matrix: Matrix, vector: Sequence[float]) -> float:
    """The quadratic form of the vector; never negative."""
    return max(0.0, sum(a * b for a, b in zip(product(matrix, vector), vector, strict=True)))


def diagonal(values: Sequence[float]) -> Matrix:
    """A diagonal matrix."""
    return tuple(tuple(value if i == j else 0.0 for j in range(len(values))) for i, value in enumerate(values))


def inverse(matrix: Matrix) -> Matrix:
    """The inverse, scaled to a unit diagonal in between: coefficients differ by a factor of a million."""
    size = len(matrix)
    scale = [1 / math.sqrt(matrix[i][i]) for i in range(size)]
    rows = [[matrix[i][j] * scale[i] * scale[j] for j in range(size)] + [float(i == j) for j in range(size)]
            for i in range(size)]  # fmt: skip
    for pivot in range(size):
        head = rows[pivot][pivot]
        rows[pivot] = [value / head for value in rows[pivot]]
        for other in range(size):
            if other != pivot:
                factor = rows[other][pivot]
                rows[other] = [a - factor * b for a, b in zip(rows[other], rows[pivot], strict=True)]
    found = [[rows[i][size + j] * scale[i] * scale[j] for j in range(size)] for i in range(size)]
    return tuple(tuple((found[i][j] + found[j][i]) / 2 for j in range(size)) for i in range(size))


def non_negative_minimum(matrix: Matrix, vector: Sequence[float]) -> Vector:
    """The x >= 0 that minimises x'Mx/2 - v'x, exactly: the few sets of zeros are tried out, none first."""
    size = len(vector)
    best, lowest = (0.0,) * size, 0.0
    for count in range(size, 0, -1):
        for free in combinations(range(size), count):
            part = inverse(tuple(tuple(matrix[i][j] for j in free) for i in free))
            solved = dict(zip(free, product(part, [vector[i] for i in free]), strict=True))
            if any(value < 0 for value in solved.values()):
                continue
            found = tuple(solved.get(i, 0.0) for i in range(size))
            value = quadratic(matrix, found) / 2 - sum(a * b for a, b in zip(vector, found, strict=True))
            if count == size:
                return found
            if value < lowest:
                best, lowest = found, value
    return best


def condition_number(matrix: Matrix) -> float:
    """Square root of largest over smallest eigenvalue, once the diagonal is scaled to ones; at most `WORST_CONDITION`.

    Belsley's index of collinearity. The matrix may be singular.
    """
    size = len(matrix)
    if any(matrix[i][i] <= 0 for i in range(size)):
        return WORST_CONDITION
    scale = [1 / math.sqrt(matrix[i][i]) for i in range(size)]
    rows = [[matrix[i][j] * scale[i] * scale[j] for j in range(size)] for i in range(size)]
    for _ in range(12 * size):
        row, column = max(combinations(range(size), 2), key=lambda at: abs(rows[at[0]][at[1]]))
        if abs(rows[row][column]) < 1e-15:
            break
        _rotate(rows, row, column)
    values = [rows[i][i] for i in range(size)]
    return min(WORST_CONDITION, math.sqrt(max(values) / max(min(values), 1e-300)))


def _rotate(rows: list[list[float]], p: int, q: int) -> None:
    """One Jacobi rotation, which makes the element (p, q) zero."""
    angle = math.atan2(2 * rows[p][q], rows[q][q] - rows[p][p]) / 2
    cosine, sine = math.cos(angle), math.sin(angle)
    for row in rows:
        row[p], row[q] = cosine * row[p] - sine * row[q], sine * row[p] + cosine * row[q]
    first, second = rows[p], rows[q]
    rows[p] = [cosine * a - sine * b for a, b in zip(first, second, strict=True)]
    rows[q] = [sine * a + cosine * b for a, b in zip(first, second, strict=True)]
