"""What is said about the ranking, in Markdown."""

from collections.abc import Sequence

from sb3_pg.zoo.reevaluate.ranking import N_BOOTSTRAP, Row
from sb3_pg.zoo.runs import show

HEAD = ["rank", "trial", "value in the study", "mean", "95% CI", "median", "min", "max", "seeds"]


def table(rows: Sequence[Row]) -> str:
    """
    :param rows: best first
    :return: the table
    """
    lines = [HEAD, ["---"] * len(HEAD)]
    for row in rows:
        numbers = [show(number) for number in (row.median, row.min, row.max)]
        interval = f"{show(row.low)} to {show(row.high)}"
        lines.append(
            [str(row.rank), str(row.trial), show(row.value), show(row.mean), interval, *numbers, str(len(row.rewards))]
        )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def verdict(rows: Sequence[Row]) -> str:
    """
    :param rows: best first
    :return: how sure the first place is, and how far the study was off
    """
    winner, others = rows[0], rows[1:]
    text = f"Trial {winner.trial} is the winner, by the mean over its seeds.\n"
    if others:
        second = others[0]
        if winner.low <= second.high:
            text += f"Its interval overlaps with that of trial {second.trial}, the runner-up: "
            text += "these seeds do not tell them apart.\n"
        else:
            text += f"Its interval lies above that of trial {second.trial}, the runner-up.\n"
        text += "Bootstrap probability that its mean is higher (ties count half): "
        text += ", ".join(f"{row.p_winner_higher:.2f} than trial {row.trial}" for row in others) + ".\n"
    optimism = sum(row.value - row.mean for row in rows) / len(rows)
    text += f"What the study says is on average {show(abs(optimism))} {'above' if optimism >= 0 else 'below'} these means.\n"
    return text


def method(episodes: int, seeds: Sequence[int]) -> str:
    """
    :param episodes: of the evaluation of each seed
    :param seeds: of the trainings
    :return: what the columns are
    """
    return (
        f"Each seed ({', '.join(map(str, seeds))}) is one training, and its result the mean reward of the final policy over "
        f"{episodes} episodes, acting deterministically. The intervals are of the mean over the seeds (percentile bootstrap, "
        f"{N_BOOTSTRAP} resamples); with fewer than ten seeds or so they are too narrow, and the probabilities too sure.\n"
    )
