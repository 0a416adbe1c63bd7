"""Report of the ranking in Markdown."""

from collections.abc import Sequence

from sb3_pg.zoo.reevaluate.ranking import N_BOOTSTRAP, Row
from sb3_pg.zoo.runs import format_reward

HEAD = ["rank", "trial", "value in the study", "mean", "95% CI", "median", "min", "max", "seeds"]


def table(rows: Sequence[Row]) -> str:
    """
    :param rows: ranked trials, best first
    :return: the table
    """
    lines = [HEAD, ["---"] * len(HEAD)]
    for row in rows:
        numbers = [format_reward(number) for number in (row.median, row.min, row.max)]
        interval = f"{format_reward(row.low)} to {format_reward(row.high)}"
        lines.append(
            [
                str(row.rank),
                str(row.trial),
                format_reward(row.value),
                format_reward(row.mean),
                interval,
                *numbers,
                str(len(row.rewards)),
            ]
        )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def verdict(rows: Sequence[Row]) -> str:
    """
    :param rows: ranked trials, best first
    :return: how certain the winner is, and how far the values in the study are from the new means
    """
    winner, others = rows[0], rows[1:]
    text = f"Trial {winner.trial} is the winner, by the mean over its seeds.\n"
    if others:
        second = others[0]
        if winner.low <= second.high:
            text += f"Its interval overlaps with that of trial {second.trial}, the runner-up: "
            text += "the seeds do not separate them.\n"
        else:
            text += f"Its interval lies above that of trial {second.trial}, the runner-up.\n"
        text += "Bootstrap probability that its mean is higher (ties count half): "
        text += ", ".join(f"{row.p_winner_higher:.2f} than trial {row.trial}" for row in others) + ".\n"
    optimism = sum(row.value - row.mean for row in rows) / len(rows)
    side = "above" if optimism >= 0 else "below"
    text += f"The values in the study are on average {format_reward(abs(optimism))} {side} these means.\n"
    return text


def method(episodes: int, seeds: Sequence[int]) -> str:
    """
    :param episodes: number of evaluation episodes for each seed
    :param seeds: seeds of the training runs
    :return: explanation of the columns
    """
    return (
        f"Each seed ({', '.join(map(str, seeds))}) is one training run; its result is the mean reward of the final policy "
        f"over {episodes} episodes, acting deterministically. The intervals are those of the mean over the seeds (percentile "
        f"bootstrap, {N_BOOTSTRAP} resamples); with fewer than about ten seeds they are too narrow, and the "
        "probabilities too extreme.\n"
    )
