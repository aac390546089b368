"""The table of transitions: etcd-io/raft's TestStateTransition."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from network import Peer

from replikv.errors import InternalError
from replikv.raft.core import Raft
from replikv.raft.entries import NO_NODE
from replikv.raft.roles import TRANSITIONS, Role

FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER = Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER

BECOME: dict[Role, Callable[[Raft, int], None]] = {
    FOLLOWER: lambda raft, term: raft.become_follower(term, NO_NODE),
    PRE_CANDIDATE: lambda raft, term: raft.become_pre_candidate(),
    CANDIDATE: lambda raft, term: raft.become_candidate(),
    LEADER: lambda raft, term: raft.become_leader(),
}


@pytest.mark.parametrize(
    ("before", "after", "term", "leader"),
    [
        (FOLLOWER, FOLLOWER, 1, NO_NODE),
        (FOLLOWER, PRE_CANDIDATE, 0, NO_NODE),
        (FOLLOWER, CANDIDATE, 1, NO_NODE),
        (FOLLOWER, LEADER, None, None),
        (PRE_CANDIDATE, FOLLOWER, 0, NO_NODE),
        (PRE_CANDIDATE, PRE_CANDIDATE, 0, NO_NODE),
        (PRE_CANDIDATE, CANDIDATE, 1, NO_NODE),
        (PRE_CANDIDATE, LEADER, 0, "1"),
        (CANDIDATE, FOLLOWER, 0, NO_NODE),
        (CANDIDATE, PRE_CANDIDATE, 0, NO_NODE),
        (CANDIDATE, CANDIDATE, 1, NO_NODE),
        (CANDIDATE, LEADER, 0, "1"),
        (LEADER, FOLLOWER, 1, NO_NODE),
        (LEADER, PRE_CANDIDATE, None, None),
        (LEADER, CANDIDATE, None, None),
        (LEADER, LEADER, 0, "1"),
    ],
)
def test_transition(before: Role, after: Role, term: int | None, leader: str | None) -> None:
    """A node in role ``before``, set by hand in term 0, becomes ``after``, or the step is refused as a bug."""
    raft = Peer("1", "1").raft
    raft.role = before

    if term is None:
        with pytest.raises(InternalError, match="cannot become"):
            BECOME[after](raft, 0)
        assert before is raft.role
    else:
        BECOME[after](raft, term)
        assert (after, term, leader) == (raft.role, raft.term, raft.leader)
    assert (term is not None) == (after in TRANSITIONS[before])


def test_the_term_never_goes_back() -> None:
    """A role is never entered in an older term (nebula#2405)."""
    raft = Peer(term=3).raft

    with pytest.raises(InternalError, match="go back"):
        raft.become_follower(2, NO_NODE)

    assert 3 == raft.term


ROLES_PAGE = Path(__file__).parents[2] / "docs" / "roles.md"


def drawn() -> str:
    """The page of the docs, from the table."""
    lines = [
        "# Roles of a peer",
        "",
        "Drawn from the table in `replikv/raft/roles.py` by a test. After a change of the table have it drawn again:",
        "`REPLIKV_REWRITE=1 pytest tests/raft/test_roles.py`. The rules behind it stand in the module, in prose.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {FOLLOWER.replace('-', '_')}",
    ]
    rows = ["", "| from | to | when |", "|---|---|---|"]
    for before, afters in TRANSITIONS.items():
        for after, when in afters.items():
            if "by hand" in when:
                continue
            lines.append(f"    {before.replace('-', '_')} --> {after.replace('-', '_')}")
            rows.append(f"| {before} | {after} | {when} |")
    return "\n".join([*lines, "```", *rows, ""])


def test_the_docs_show_the_table() -> None:
    """The diagram is what the core does, because both come from one table."""
    if os.environ.get("REPLIKV_REWRITE"):
        ROLES_PAGE.write_text(drawn())

    assert drawn() == ROLES_PAGE.read_text()


def test_each_role_can_be_left_and_reached() -> None:
    """No role is a dead end, and following is always a way out."""
    assert set(Role) == set(TRANSITIONS)
    for role in Role:
        assert FOLLOWER in TRANSITIONS[role]
        assert any(role in TRANSITIONS[other] for other in Role if other is not role)
