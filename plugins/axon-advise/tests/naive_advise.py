"""The learning of one set of learners as plain Python loops over floats: what `play_episodes` must equal."""

import math


def first_above(cumulative, uniform):
    """Return the first place whose cumulative number is above the uniform one."""
    return next(i for i, c in enumerate(cumulative) if c > uniform)


def running(numbers):
    """Return cumulative sums as a list."""
    total, found = 0.0, []
    for number in numbers:
        total += float(number)
        found.append(total)
    return found


def naive_learner(table, start, rates, weight, settings, episodes, confidence, numbers, first):
    """Play episodes of one learner from empty tables; return Q, h⁺, h⁻ and the returns.

    `numbers(step)` are the step's uniform numbers: of action, outcome, then each trainer; `first` start the episodes.
    """
    n, a_count, m_count = table.n_states, table.n_actions, len(weight)
    q = [[0.0] * a_count for _ in range(n)]
    good = [[[0] * a_count for _ in range(m_count)] for _ in range(n)]
    bad = [[[0] * a_count for _ in range(m_count)] for _ in range(n)]

    def scores(s):
        return [sum(weight[m] * (good[s][m][a] - bad[s][m][a]) for m in range(m_count)) for a in range(a_count)]

    def logits(s):
        told = scores(s)
        if settings.several:
            told = [-math.log1p(math.exp(-x)) for x in told]
        return [q[s][a] / settings.temperature + told[a] for a in range(a_count)]

    returns, step = [], 0
    for episode in range(episodes):
        s, total = first_above(start, first[episode] * start[-1]), 0.0
        x = logits(s)
        for _ in range(settings.limit):
            u = numbers(step)
            step += 1
            policy = running([math.exp(value - max(x)) for value in x])
            a = first_above(policy, u[0] * policy[-1])
            outcomes = running(table.probability[s, a])
            k = first_above(outcomes, u[1] * outcomes[-1])
            after, reward, over = int(table.following[s, a, k]), table.reward[s, a, k], table.terminated[s, a, k]
            told = scores(s)
            certain = 1 / sum(math.exp(value - max(told)) for value in told)
            for m in range(m_count):
                says_good, says_bad = rates[0][s, a, m], rates[1][s, a, m]
                if certain <= confidence and u[2 + m] < says_good + says_bad:
                    (good if u[2 + m] < says_good else bad)[s][m][a] += 1
            x = logits(after)
            target = reward if over else reward + settings.gamma * q[after][x.index(max(x))]
            q[s][a] += settings.alpha * (target - q[s][a])
            s, total = after, total + reward
            if over:
                break
        returns.append(total)
    return q, good, bad, returns
