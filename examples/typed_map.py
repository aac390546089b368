"""A map of one class, and its next version: a rolling upgrade in which both run beside each other."""

import dataclasses
import enum
import logging
from typing import Any

import structlog
import trio

from replikv import Cluster, SchemaError


class Role(enum.StrEnum):
    """What a user may do."""

    READER = "reader"
    ADMIN = "admin"


@dataclasses.dataclass
class Account:
    """As the last release has it."""

    name: str
    role: Role = Role.READER


@dataclasses.dataclass
class User:
    """As this release has it: in two names, with an address."""

    first: str
    last: str
    role: Role = Role.READER
    email: str | None = None


def split_name(fields: dict[str, Any]) -> dict[str, Any]:
    """From version 1 to version 2, both as plain data."""
    first, _, last = fields.pop("name").partition(" ")
    return fields | {"first": first, "last": last}


async def main() -> None:
    async with Cluster("a") as cluster:
        accounts = cluster.store.typed("users/", Account)
        users = cluster.store.typed("users/", User, version=2, upgrade={1: split_name})

        await accounts.put("ann", Account("Ann Lee", Role.ADMIN))
        print("stored:", cluster.store["users/ann"])
        print("the new release reads", users["ann"])

        while True:  # change what is stored, whoever else does
            ann = users["ann"]
            if await users.compare_and_set("ann", ann, dataclasses.replace(ann, email="ann@example.org")):
                break
        print("stored:", cluster.store["users/ann"])

        try:
            accounts["ann"]
        except SchemaError as exc:
            print("the old release:", exc)

        try:
            await users.put("bob", User("Bob", "Ray", role="owner"))  # type: ignore[arg-type]  # mypy knows it, too
        except SchemaError as exc:
            print("not put:", exc)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    trio.run(main)
