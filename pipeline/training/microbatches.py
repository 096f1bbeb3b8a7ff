"""A batch in parts of rows of like length: as few as a budget of tokens allows, with little padding."""

from collections.abc import Mapping, Sequence
from typing import Any


def group_by_length(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Places of rows in groups, long rows first: rows x longest row of a group is at most `tokens`.

    A row that is longer than `tokens` is a group of its own.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        # The first row of a group is its longest.
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= tokens:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def micro_batches(batch: Mapping[str, Any], tokens: int) -> list[dict[str, Any]]:
    """A right-padded batch of (rows, length) tensors in parts of at most `tokens`, each no longer than its rows."""
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    groups = group_by_length(lengths, tokens)
    return [
        {name: values[group, : lengths[group[0]]].contiguous() for name, values in batch.items()} for group in groups
    ]
