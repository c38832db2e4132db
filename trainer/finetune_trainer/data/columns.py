"""Which column plays which role."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from finetune_api.data import Columns
from finetune_trainer.data.layout import nearest
from finetune_trainer.errors import UserError

Needs = Sequence[Sequence[str]]
"""Alternatives of roles: a task can be learned from any one of these."""


def name_columns(
    there: Collection[str], columns: Columns, needs: Needs, optional: Sequence[str], said: str
) -> dict[str, str]:
    """Role to column, for the first alternative whose columns are all there, and for what is used besides.

    Args:
        there: the columns of the data set.
        columns: what the manifest calls them.
        needs: alternatives of roles.
        optional: roles that are used where there is a column for them.
        said: the field of the manifest that names the data set.

    Raises:
        UserError: a column is not there, or has a role that nothing makes use of.
    """
    named = {role: column for role, column in columns.model_dump().items() if column is not None}
    _check_roles(named, needs, optional)
    for role, column in named.items():
        if column not in there:
            raise _missing(role, column, there, said)
    fitting = [need for need in needs if _mentions(need, named, needs)] or list(needs)
    for need in fitting:
        if all(named.get(role, role) in there for role in need):
            roles = [*need, *(role for role in optional if role not in need)]
            return {role: named.get(role, role) for role in roles if named.get(role, role) in there}
    raise _nothing_fits(fitting, named, there, said)


def _check_roles(named: Mapping[str, str], needs: Needs, optional: Sequence[str]) -> None:
    roles = list(dict.fromkeys([*(role for need in needs for role in need), *optional]))
    for role, column in named.items():
        if role not in roles:
            raise UserError(f"data.columns.{role}: {column!r}: this task has no use for it; it uses {', '.join(roles)}")


def _mentions(need: Sequence[str], named: Mapping[str, str], needs: Needs) -> bool:
    """Whether an alternative has all roles that the manifest speaks of; what it says is not passed over."""
    spoken = {role for role in named if any(role in other for other in needs)}
    return spoken <= set(need)


def _nothing_fits(fitting: Needs, named: Mapping[str, str], there: Collection[str], said: str) -> UserError:
    if len(fitting) == 1:
        role = next(role for role in fitting[0] if named.get(role, role) not in there)
        return _missing(role, named.get(role, role), there, said)
    ways = ", or ".join(" and ".join(named.get(role, role) for role in need) for need in fitting)
    return UserError(f"data.columns: {said} needs the columns {ways}; it has {', '.join(there)}")


def _missing(role: str, column: str, there: Collection[str], said: str) -> UserError:
    return UserError(f"data.columns.{role}: {said} has no column {column!r}; {nearest(column, list(there))}")
