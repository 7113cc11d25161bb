"""The definitions, one number at a time: plain Python, float64, no tensor and none of our code."""

from collections.abc import Sequence
from math import exp, log, sqrt

Row = Sequence[float]
Matrix = Sequence[Row]


def softmax(row: Row, temperature: float = 1.0) -> list[float]:
    largest = max(row)
    weights = [exp((value - largest) / temperature) for value in row]
    return [weight / sum(weights) for weight in weights]


def dot(u: Row, v: Row) -> float:
    return sum(a * b for a, b in zip(u, v, strict=True))


def norm(u: Row) -> float:
    return sqrt(dot(u, u))


def cosine(u: Row, v: Row, eps: float = 1e-8) -> float:
    return dot(u, v) / (norm(u) * norm(v) + eps)


def pearson(u: Row, v: Row) -> float:
    u_mean, v_mean = sum(u) / len(u), sum(v) / len(v)
    return cosine([a - u_mean for a in u], [b - v_mean for b in v])


def column(matrix: Matrix, j: int) -> list[float]:
    return [row[j] for row in matrix]


def kd(student: Matrix, teacher: Matrix, tau: float) -> float:
    total = 0.0
    for z_s, z_t in zip(student, teacher, strict=True):
        for p_s, p_t in zip(softmax(z_s, tau), softmax(z_t, tau), strict=True):
            total += p_t * log(p_t / p_s)
    return tau * tau * total / len(student)


def soft_cross_entropy(student: Matrix, teacher: Matrix, tau: float) -> float:
    total = 0.0
    for z_s, z_t in zip(student, teacher, strict=True):
        for p_s, p_t in zip(softmax(z_s, tau), softmax(z_t, tau), strict=True):
            total -= p_t * log(p_s)
    return total / len(student)


def hard_label(student: Matrix, teacher: Matrix) -> float:
    total = 0.0
    for z_s, z_t in zip(student, teacher, strict=True):
        decision = max(range(len(z_t)), key=lambda j: z_t[j])
        total -= log(softmax(z_s)[decision])
    return total / len(student)


def sp(student: Matrix, teacher: Matrix, *, normalize_features: bool = False) -> float:
    def similarity(features: Matrix, i: int, j: int) -> float:
        value = dot(features[i], features[j])
        if normalize_features:
            return value / (norm(features[i]) * norm(features[j]))
        return value / sqrt(sum(dot(features[i], other) ** 2 for other in features))

    size = len(student)
    total = 0.0
    for i in range(size):
        for j in range(size):
            total += (similarity(teacher, i, j) - similarity(student, i, j)) ** 2
    return total / size**2


def cskd(student: Matrix, teacher: Matrix, temperatures: Row, alpha: float = 2.0) -> float:
    p_s = [softmax(row, t) for row, t in zip(student, temperatures, strict=True)]
    p_t = [softmax(row, t) for row, t in zip(teacher, temperatures, strict=True)]
    classes = len(student[0])
    mean_cosine = sum(cosine(column(p_s, j), column(p_t, j)) for j in range(classes)) / classes
    return alpha * (sum(temperatures) / len(temperatures)) ** 2 * (1 - mean_cosine)


def cswt_temperatures(
    student: Matrix, teacher: Matrix, low: float = 2.0, high: float = 6.0
) -> list[float]:
    agreement = [
        cosine(softmax(z_s), softmax(z_t)) for z_s, z_t in zip(student, teacher, strict=True)
    ]
    best, worst = max(agreement), min(agreement)
    return [low + (high - low) * (best - c) / (best - worst) for c in agreement]


def class_correlation(student: Matrix, teacher: Matrix, temperature: float) -> float:
    p_s, p_t = ([softmax(row, temperature) for row in z] for z in (student, teacher))
    classes = range(len(student[0]))
    m_s, m_t = (
        [[dot(column(p, j), column(p, k)) for k in classes] for j in classes] for p in (p_s, p_t)
    )
    return 1 - sum(cosine(m_s[j], m_t[j]) for j in classes) / len(classes)


def batch_correlation(student: Matrix, teacher: Matrix, temperature: float) -> float:
    p_s, p_t = ([softmax(row, temperature) for row in z] for z in (student, teacher))
    samples = range(len(student))
    m_s, m_t = ([[dot(p[i], p[k]) for k in samples] for i in samples] for p in (p_s, p_t))
    return 1 - sum(cosine(m_s[i], m_t[i]) for i in samples) / len(samples)


def dist_inter(student: Matrix, teacher: Matrix, tau: float) -> float:
    y_s, y_t = ([softmax(row, tau) for row in z] for z in (student, teacher))
    return 1 - sum(pearson(a, b) for a, b in zip(y_s, y_t, strict=True)) / len(student)


def dist_intra(student: Matrix, teacher: Matrix, tau: float) -> float:
    y_s, y_t = ([softmax(row, tau) for row in z] for z in (student, teacher))
    classes = range(len(student[0]))
    return 1 - sum(pearson(column(y_s, j), column(y_t, j)) for j in classes) / len(classes)
