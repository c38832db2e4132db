"""Maps the roles that a task uses to the columns of a dataset."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from finetune_api.data import Columns
from finetune_trainer.data.data_files import describe_choices
from finetune_trainer.errors import UserError

RequiredRoles = Sequence[Sequence[str]]
"""Alternative sets of roles; a task needs the columns of one of them."""


def resolve_columns(
    available: Collection[str], columns: Columns, required: RequiredRoles, optional: Sequence[str], field_path: str
) -> dict[str, str]:
    """Column by role, for the first alternative whose columns all exist, and for the optional roles that have one.

    Args:
        available: the columns of the dataset.
        columns: `data.columns` of the manifest.
        required: alternative sets of roles.
        optional: roles that are used if they have a column.
        field_path: field of the manifest that names the dataset.

    Raises:
        UserError: a column does not exist, or the task does not use its role.
    """
    mapped = {role: column for role, column in columns.model_dump().items() if column is not None}
    _check_roles(mapped, required, optional)
    for role, column in mapped.items():
        if column not in available:
            raise _missing_column(role, column, available, field_path)
    candidates = [roles for roles in required if _has_mapped_roles(roles, mapped, required)] or list(required)
    for roles in candidates:
        if all(mapped.get(role, role) in available for role in roles):
            used = [*roles, *(role for role in optional if role not in roles)]
            return {role: mapped.get(role, role) for role in used if mapped.get(role, role) in available}
    raise _no_alternative(candidates, mapped, available, field_path)


def _check_roles(mapped: Mapping[str, str], required: RequiredRoles, optional: Sequence[str]) -> None:
    roles = list(dict.fromkeys([*(role for alternative in required for role in alternative), *optional]))
    for role, column in mapped.items():
        if role not in roles:
            raise UserError(f"data.columns.{role}: {column!r}: not used by this task; it uses {', '.join(roles)}")


def _has_mapped_roles(roles: Sequence[str], mapped: Mapping[str, str], required: RequiredRoles) -> bool:
    """Whether an alternative has all the required roles that the manifest maps; a mapping must not be ignored."""
    mapped_roles = {role for role in mapped if any(role in alternative for alternative in required)}
    return mapped_roles <= set(roles)


def _no_alternative(
    candidates: RequiredRoles, mapped: Mapping[str, str], available: Collection[str], field_path: str
) -> UserError:
    if len(candidates) == 1:
        role = next(role for role in candidates[0] if mapped.get(role, role) not in available)
        return _missing_column(role, mapped.get(role, role), available, field_path)
    choices = ", or ".join(" and ".join(mapped.get(role, role) for role in roles) for roles in candidates)
    return UserError(f"data.columns: {field_path} needs the columns {choices}; available: {', '.join(available)}")


def _missing_column(role: str, column: str, available: Collection[str], field_path: str) -> UserError:
    hint = describe_choices(column, list(available))
    return UserError(f"data.columns.{role}: {field_path} has no column {column!r}; {hint}")
