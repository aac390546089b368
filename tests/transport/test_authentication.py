"""Handshakes with a shared secret, carried by hand: whom they let in, and what an attacker in between can do."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replikv.errors import ConfigurationError
from replikv.transport.authentication import (
    SEAL_BYTES,
    SECRET_BYTES_MIN,
    SECRETS_MAX,
    Label,
    SealedFrameDecoder,
    Sealer,
    SharedSecret,
    tag,
    transcript_of,
)
from replikv.transport.base import Hello
from replikv.transport.handshake import (
    CALL,
    CHANNEL,
    FRAMES,
    HANDSHAKE_BYTES_MAX,
    MAGIC,
    Handshake,
    Initiator,
    Responder,
)
from replikv.transport.wire import FrameDecoder, ProtocolError, encode_frames

SECRET = "correct horse battery staple"
OLD, NEW, OTHER = (
    "old secret of 32 bytes or so ...",
    b"\xff new secret of some 32 bytes",
    "another secret of so many bytes",
)
A = Hello(cluster_id="c", node_id="a", incarnation="i-a", bound_index=3, address="10.0.0.1:7001")
B = dataclasses.replace(A, node_id="b", incarnation="i-b", address="10.0.0.2:7001")

Secret = Any


def dialer(
    secret: Secret = SECRET,
    hello: Hello = A,
    purpose: str = FRAMES,
    admit: Callable[[Hello], str | None] = lambda hello: None,
) -> Initiator:
    return Initiator(hello, purpose, admit, None if secret is None else SharedSecret(secret))


def accepter(
    secret: Secret = SECRET,
    hello: Hello = B,
    admit: Callable[[Hello, str], str | None] = lambda hello, purpose: None,
) -> Responder:
    return Responder(hello, admit, None if secret is None else SharedSecret(secret))


def never(*_: object) -> str | None:
    raise AssertionError("asked to admit one that has not proved itself")


def bodies(outgoing: bytes) -> list[bytes]:
    return FrameDecoder(HANDSHAKE_BYTES_MAX).feed(outgoing)


def fields_of(body: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = cbor2.loads(body[len(MAGIC) :])
    return fields


def changed(body: bytes, **fields: Any) -> bytes:
    return MAGIC + cbor2.dumps({**fields_of(body), **fields}, canonical=True)


def carry(
    one: Handshake, other: Handshake, between: Callable[[int, bytes], bytes] = lambda number, body: body
) -> list[bytes]:
    """Carry frames until nobody has one to send, each through whoever is in between; those that were sent."""
    sent: list[bytes] = []
    queue = [(other, one, body) for body in bodies(one.start())]
    while queue:
        to, sender, body = queue.pop(0)
        if to.established or to.refusal is not None:
            continue
        body = between(len(sent), body)
        sent.append(body)
        queue += [(sender, to, answer) for answer in bodies(to.receive(body))]
    return sent


# -- who gets in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", [FRAMES, CHANNEL, CALL])
@pytest.mark.parametrize("secret", [SECRET, SECRET.encode(), [SECRET], b"\x00" * 16, "ü" * 100])
def test_the_same_secret(secret: Secret, purpose: str) -> None:
    """Both sides prove it, for every kind of connection, and come to the same two keys, one for each direction."""
    one, other = dialer(secret, purpose=purpose), accepter(secret)
    sent = carry(one, other)
    assert ["hello", "challenge", "proof", "proof", "proof"] == [fields_of(body)["kind"] for body in sent]
    assert (True, True) == (one.established, other.established)
    assert one.keys is not None
    assert other.keys == one.keys[::-1]
    assert one.keys[0] != one.keys[1]
    assert not any(key in b"".join(sent) for key in one.keys)


@pytest.mark.parametrize("purpose", [FRAMES, CHANNEL, CALL])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(SECRET, OTHER), (SECRET, SECRET + "\n"), ([OLD, NEW], OTHER), (SECRET, None), (None, SECRET)],
    ids=["another", "almost", "several", "they have none", "we have none"],
)
def test_another_secret_or_none(ours: Secret, theirs: Secret, purpose: str) -> None:
    """Neither side is asked to admit the other, and both are told in one sentence what to mend."""
    one, other = dialer(ours, purpose=purpose, admit=never), accepter(theirs, admit=never)
    carry(one, other)
    assert (False, False) == (one.established, other.established)
    assert (True, True) == (one.unauthenticated, other.unauthenticated)
    assert one.refusal == other.refusal
    assert one.refusal is not None
    assert one.refusal.endswith("configure both alike")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [([NEW, OLD], OLD), (OLD, [NEW, OLD]), ([NEW, OLD], NEW), ([NEW, OLD], [OLD, NEW]), ([OTHER, OLD], [NEW, OLD])],
)
def test_a_secret_is_changed_in_two_rounds(ours: Secret, theirs: Secret) -> None:
    """Peers that know the new and the old one talk to those that know either."""
    one, other = dialer(ours), accepter(theirs)
    carry(one, other)
    assert one.keys is not None
    assert other.keys == one.keys[::-1]


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ("", "has 0 bytes"),
        (b"", "has 0 bytes"),
        ("x" * (SECRET_BYTES_MIN - 1), "has 15 bytes"),
        ([SECRET, "short"], "has 5 bytes"),
        ([], "0 alternatives"),
        ([SECRET] * (SECRETS_MAX + 1), "5 alternatives"),
        (7, "not int"),
        ([7], "not int"),
        (bytearray(32), "not bytearray"),
        ({SECRET: SECRET}, "not dict"),
        ("\ud800" * 16, "UTF-8"),
    ],
)
def test_what_is_no_secret(secret: Any, words: str) -> None:
    """Too short, of another type, none at all or too many: said when it is configured, and never in its own words."""
    with pytest.raises(ConfigurationError, match=words) as caught:
        SharedSecret(secret)
    assert SECRET not in str(caught.value)


def test_a_secret_is_not_shown() -> None:
    """Logs and tracebacks show how many there are."""
    assert "<2 shared secrets>" == repr(SharedSecret([OLD, NEW]))


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_refusals_after_the_proof_are_authentic() -> None:
    """Who refuses because of what the other side is has proved itself, and its sentence can be acted on."""
    one, other = dialer(), accepter(admit=lambda hello, purpose: "removed: no member")
    carry(one, other)
    assert ("removed: no member", False, False) == (one.refusal, one.declined, one.unauthenticated)
    one, other = dialer([NEW, OLD], admit=lambda hello: "wrong-cluster: x" + "y" * 1000), accepter(OLD, admit=never)
    carry(one, other)
    assert one.refusal is not None
    assert (one.refusal[:500], False, False) == (other.refusal, other.declined, other.unauthenticated)


@pytest.mark.parametrize("proof", [None, b"", b"\x00" * 32, "text"])
def test_a_refusal_of_somebody_else(proof: Any) -> None:
    """Who knows no secret can break a connection, and not pass its words for those of a member."""
    refusal = MAGIC + cbor2.dumps({"kind": "refusal", "reason": "removed: ha", "proof": proof})
    for frames in (0, 1, 2):
        one, other = dialer(), accepter()
        for body in bodies(other.receive(bodies(one.start())[0]))[:frames]:
            one.receive(body)
        one.receive(refusal)
        assert ("removed: ha", True, False) == (one.refusal, one.unauthenticated, one.declined)
    for frames in (0, 1):
        other = accepter()
        for body in bodies(dialer().start())[:frames]:
            other.receive(body)
        other.receive(refusal)
        assert ("removed: ha", True) == (other.refusal, other.unauthenticated)


def test_a_refusal_that_is_bound_to_no_connection() -> None:
    """A tag over no transcript would be as good on every connection: it is not looked at."""
    words = "removed: again"
    replayable = tag(SECRET.encode(), Label.RESPONDER_REFUSES, b"", words)
    one = dialer()
    one.start()
    one.receive(MAGIC + cbor2.dumps({"kind": "refusal", "reason": words, "proof": replayable}))
    assert (words, True) == (one.refusal, one.unauthenticated)


def test_a_refusal_of_many_words_is_cut() -> None:
    """However long a name or an address in it is: it is said, and is authentic."""
    one, other = dialer(), accepter(admit=lambda hello, purpose: "removed: " + "x" * HANDSHAKE_BYTES_MAX)
    carry(one, other)
    assert ("removed: " + "x" * 491, False) == (one.refusal, one.unauthenticated)


def test_a_refusal_that_was_changed_or_turned_round() -> None:
    """Other words under the same proof, or the proof of the other side's refusal: not authentic."""

    def reword(number: int, body: bytes) -> bytes:
        return changed(body, reason="removed: x") if fields_of(body)["kind"] == "refusal" else body

    one, other = dialer(), accepter(admit=lambda hello, purpose: "try again later")
    carry(one, other, reword)
    assert ("removed: x", True) == (one.refusal, one.unauthenticated)

    one, other = dialer(admit=lambda hello: "removed: y"), accepter()
    *_, refusal = carry(one, other)
    one = dialer()
    sent = carry(one, accepter(), lambda number, body: refusal if number == 4 else body)
    assert refusal == sent[-1]
    assert ("removed: y", True) == (one.refusal, one.unauthenticated)


# -- attacks -----------------------------------------------------------------------------------------------------------


def test_nothing_is_said_twice() -> None:
    """No two handshakes of the same peers have a nonce, a proof or a key in common."""
    seen: list[bytes] = []
    for _ in range(20):
        one, other = dialer(), accepter()
        for body in carry(one, other):
            seen += [value for value in fields_of(body).values() if type(value) is bytes]
        assert one.keys is not None
        seen += one.keys
    assert len(seen) == len(set(seen))


def test_replay_to_the_responder() -> None:
    """All that a dialer has said once lets nobody in again."""
    recorded: list[bytes] = carry(dialer(), accepter())
    hello, proof = recorded[0], recorded[3]
    victim = accepter(admit=never)
    victim.receive(hello)
    victim.receive(proof)
    assert (True, True, None) == (victim.declined, victim.unauthenticated, victim.keys)


def test_replay_to_the_dialer() -> None:
    """Nor does all that a responder has said once pass for it again."""
    _, challenge, proofs, _, admitted = carry(dialer(), accepter())
    victim = dialer(admit=never)
    victim.start()
    assert b"" == victim.receive(challenge)
    victim.receive(proofs)
    assert victim.unauthenticated
    victim = dialer()
    with pytest.raises(ProtocolError, match="without a proof"):
        carry(victim, accepter(), lambda number, body: admitted if number == 4 else body)


@pytest.mark.parametrize("purpose", [FRAMES, CHANNEL, CALL])
def test_reflection(purpose: str) -> None:
    """A peer's own words, said back to it, prove nothing, in whichever role it hears them."""
    victim = dialer(purpose=purpose, admit=never)
    (hello,) = bodies(victim.start())
    for challenge in (changed(hello, kind="challenge"), changed(hello, kind="challenge", node_id="b")):
        victim = dialer(purpose=purpose, admit=never)
        (hello,) = bodies(victim.start())
        with pytest.raises(ProtocolError, match="or our own"):
            victim.receive(changed(challenge, nonce=fields_of(hello)["nonce"]))

    victim_responder = accepter(admit=never)
    _, proofs = bodies(victim_responder.receive(bodies(dialer(purpose=purpose).start())[0]))
    victim_responder.receive(proofs)
    assert victim_responder.unauthenticated


def test_labels_are_apart() -> None:
    """No use of the secret makes what another use would take."""
    made = {tag(SECRET.encode(), label, bytes(32)) for label in Label}
    assert len(Label) == len(made)


@pytest.mark.parametrize("label", [label for label in Label if label is not Label.DIALER])
def test_a_tag_for_something_else_is_no_proof_to_the_responder(label: Label) -> None:
    """Made by the right secret, over the right transcript: good for what it was made for, and for nothing else."""
    (hello,) = bodies(dialer().start())
    victim = accepter(admit=never)
    challenge, _ = bodies(victim.receive(hello))
    made = tag(SECRET.encode(), label, transcript_of(hello, challenge))
    victim.receive(MAGIC + cbor2.dumps({"kind": "proof", "proof": made}))
    assert (True, True, None) == (victim.declined, victim.unauthenticated, victim.keys)


@pytest.mark.parametrize(
    ("secret", "label"),
    [(NEW, Label.ADMITTED), *((OLD.encode(), label) for label in Label if label is not Label.ADMITTED)],
)
def test_a_tag_for_something_else_admits_nobody(secret: bytes, label: Label) -> None:
    """Nor does that of a secret which both sides know, but have not agreed on."""
    victim = dialer([OLD, NEW])
    (hello,) = bodies(victim.start())
    challenge, proofs = bodies(accepter([OLD, NEW]).receive(hello))
    victim.receive(challenge)
    victim.receive(proofs)
    made = tag(secret, label, transcript_of(hello, challenge))
    with pytest.raises(ProtocolError, match="without a proof"):
        victim.receive(MAGIC + cbor2.dumps({"kind": "proof", "proof": made}))


def test_proofs_beyond_the_secrets_that_there_may_be() -> None:
    """A responder cannot try more secrets in one handshake than a cluster may have."""
    ours, transcript = SharedSecret(SECRET), bytes(32)
    good, junk = ours.proofs(transcript), bytes(32)
    assert SECRET.encode() == ours.shared(transcript, junk * (SECRETS_MAX - 1) + good)
    assert ours.shared(transcript, junk * SECRETS_MAX + good) is None


def test_the_bytes_of_proofs_and_seals_are_those_of_the_format() -> None:
    """As ``docs/format.md`` has them, worked out without a line of ours: what is another byte is another protocol."""
    one, other = dialer(), accepter()
    hello, challenge, proofs, proof, admitted = carry(one, other)
    lengths = [len(body).to_bytes(4, "big") for body in (hello, challenge)]
    transcript = hashlib.sha256(lengths[0] + hello + lengths[1] + challenge).digest()

    def made(label: bytes) -> bytes:
        return hmac.digest(SECRET.encode(), b"replikv 1 " + label + b"\0" + transcript, "sha256")

    assert [made(b"responder"), made(b"dialer"), made(b"admitted")] == [
        fields_of(body)["proof"] for body in (proofs, proof, admitted)
    ]
    assert (made(b"frames of dialer"), made(b"frames of responder")) == one.keys
    key = made(b"frames of dialer")
    sealed = [
        frame + hmac.digest(key, number.to_bytes(8, "big") + frame, "sha256")[:16]
        for number, frame in enumerate([b"", b"frame"])
    ]
    assert encode_frames(sealed) == Sealer(key).encode([b"", b"frame"])


@dataclasses.dataclass
class Comparisons:
    """What was compared without telling by the time how much of it is alike."""

    made: list[tuple[bytes, bytes]] = dataclasses.field(default_factory=list)
    equal: bool = True

    def __call__(self, one: bytes, other: bytes) -> bool:
        self.made.append((one, other))
        return self.equal and one == other


def test_what_somebody_could_guess_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proofs, refusals and seals: ``compare_digest`` has the last word on each, and no match ends a search for it."""
    compare = Comparisons()
    monkeypatch.setattr(hmac, "compare_digest", compare)
    ours, transcript = SharedSecret(OLD), bytes(32)
    several = SharedSecret([OLD, NEW, OTHER]).proofs(transcript)
    assert OLD.encode() == ours.shared(transcript, several)
    assert 3 == len(compare.made)
    proof = tag(OLD.encode(), Label.DIALER, transcript)
    assert OLD.encode() == ours.known(Label.DIALER, transcript, proof)
    sealed = Sealer(KEY).encode([b"frame"])
    assert [b"frame"] == SealedFrameDecoder(40, KEY).feed(sealed)
    assert 5 == len(compare.made)

    compare.equal = False
    assert ours.shared(transcript, several) is None
    assert ours.known(Label.DIALER, transcript, proof) is None
    with pytest.raises(ProtocolError, match="seal is broken"):
        SealedFrameDecoder(40, KEY).feed(sealed)


CHANGES: list[dict[str, Any]] = [
    {"protocol_max": 2},
    {"protocol_min": 0},
    {"cluster_id": "other"},
    {"incarnation": "other"},
    {"bound_index": 4},
    {"address": "192.0.2.1:7001"},
    {"attributes": {"zone": "x"}},
    {"node_id": "z"},
    {"nonce": bytes(32)},
    {"later": 1},
]


@pytest.mark.parametrize("number", [0, 1], ids=["hello", "challenge"])
@pytest.mark.parametrize("change", CHANGES, ids=[next(iter(change)) for change in CHANGES])
def test_what_is_changed_on_the_way(number: int, change: dict[str, Any]) -> None:
    """Whatever in a hello or a challenge is changed by somebody in between, neither side admits the other."""
    one, other = dialer(admit=never), accepter(admit=never)
    carry(one, other, lambda at, body: changed(body, **change) if at == number else body)
    assert (False, False) == (one.established, other.established)
    assert one.unauthenticated
    assert other.refusal is not None


@pytest.mark.parametrize(("asked", "heard"), [(FRAMES, CALL), (CALL, FRAMES), (CHANNEL, FRAMES)])
def test_another_purpose_on_the_way(asked: str, heard: str) -> None:
    """A connection for one purpose cannot be made one for another, even where both frames are changed."""
    one, other = dialer(purpose=asked, admit=never), accepter(admit=never)
    carry(one, other, lambda at, body: changed(body, purpose=(heard, asked)[at]) if at < 2 else body)
    assert (False, False) == (one.established, other.established)


@pytest.mark.parametrize("nonce", [b"", bytes(31), bytes(33)])
def test_a_nonce_of_another_length(nonce: bytes) -> None:
    """A side that contributes nothing, or something else, is cut off."""
    (hello,) = bodies(dialer().start())
    with pytest.raises(ProtocolError, match="a nonce of"):
        accepter().receive(changed(hello, nonce=nonce))
    victim = dialer(admit=never)
    (hello,) = bodies(victim.start())
    with pytest.raises(ProtocolError, match="a nonce of"):
        victim.receive(changed(hello, kind="challenge", node_id="b", nonce=nonce))


def test_downgrade() -> None:
    """Whoever in between has both sides believe that the other has no secret, has both refuse."""
    one, other = dialer(admit=never), accepter(admit=never)
    carry(one, other, lambda number, body: changed(body, auth="none", nonce=b"") if number < 2 else body)
    assert (False, False) == (one.established, other.established)
    assert (True, True) == (one.unauthenticated, other.unauthenticated)


def test_the_mechanism_of_a_later_version() -> None:
    """A mechanism that is not ours is refused in words."""
    other = accepter()
    other.receive(changed(bodies(dialer().start())[0], auth="ed25519"))
    assert "b authenticates by 'hmac-sha256', a by 'ed25519': configure both alike" == other.refusal


@given(data=st.data())
def test_one_changed_byte_anywhere(data: st.DataObject) -> None:
    """Of all the bytes of a handshake none can be changed without its failing."""
    number = data.draw(st.integers(0, 4))

    def change(at: int, body: bytes) -> bytes:
        if at != number:
            return body
        position = data.draw(st.integers(0, len(body) - 1))
        flipped = bytearray(body)
        flipped[position] ^= data.draw(st.integers(1, 255))
        return bytes(flipped)

    one, other = dialer(), accepter()
    with contextlib.suppress(ProtocolError):
        carry(one, other, change)
    assert not one.established


@given(pieces=st.lists(st.binary(max_size=100), max_size=5))
def test_any_bytes_to_a_side_with_a_secret(pieces: list[bytes]) -> None:
    """Garbage is a protocol error, and never lets anybody in."""
    one, other = dialer(admit=never), accepter(admit=never)
    for side in (one, other):
        side.start()
        for piece in pieces:
            with pytest.raises(ProtocolError):
                side.receive(MAGIC + piece)
        assert not side.established


# -- sealed frames -----------------------------------------------------------------------------------------------------

KEY = bytes(range(32))


@given(
    frames=st.lists(st.binary(max_size=40), max_size=8),
    cuts=st.lists(st.integers(min_value=1, max_value=30), min_size=1, max_size=20),
)
def test_sealed_frames_arrive_however_they_are_cut(frames: list[bytes], cuts: list[int]) -> None:
    """As frames without a seal do, each with 16 bytes more."""
    sealer, decoder, decoded, turn = Sealer(KEY), SealedFrameDecoder(40, KEY), list[bytes](), 0
    stream = b"".join(sealer.encode([frame]) for frame in frames[:4]) + sealer.encode(frames[4:])
    assert len(encode_frames(frames)) + SEAL_BYTES * len(frames) == len(stream)
    while stream:
        size = cuts[turn % len(cuts)]
        decoded += decoder.feed(stream[:size])
        stream, turn = stream[size:], turn + 1
    assert frames == decoded


@given(
    frames=st.lists(st.binary(max_size=20), min_size=1, max_size=4),
    position=st.integers(0, 200),
    flip=st.integers(1, 255),
)
def test_a_changed_byte_breaks_a_seal(frames: list[bytes], position: int, flip: int) -> None:
    """Whatever byte is changed, header and seal included, nothing but a prefix of what was sent comes out."""
    stream = bytearray(Sealer(KEY).encode(frames))
    position %= len(stream)
    stream[position] ^= flip
    decoder, decoded = SealedFrameDecoder(40, KEY), list[bytes]()
    with contextlib.suppress(ProtocolError):
        for byte in stream:
            decoded += decoder.feed(bytes([byte]))
    assert decoded == frames[: len(decoded)]
    assert len(decoded) < len(frames)


@pytest.mark.parametrize(
    "order", [[0, 0], [1], [0, 2], [1, 0], [0, 1, 2, 1]], ids=["repeated", "first lost", "lost", "moved", "old"]
)
def test_frames_that_are_repeated_left_out_or_moved(order: list[int]) -> None:
    """A frame is good at its own place in its own connection only."""
    sealer, decoder = Sealer(KEY), SealedFrameDecoder(40, KEY)
    sealed = [sealer.encode([b"same"]) for _ in range(3)]
    with pytest.raises(ProtocolError, match="seal is broken"):
        decoder.feed(b"".join(sealed[number] for number in order))


def test_frames_of_the_other_direction() -> None:
    """What one side has sent does not pass for what the other has."""
    one, other = dialer(), accepter()
    carry(one, other)
    assert one.keys is not None
    (ours, theirs) = one.keys
    assert [b"frame"] == SealedFrameDecoder(40, ours).feed(Sealer(ours).encode([b"frame"]))
    with pytest.raises(ProtocolError, match="seal is broken"):
        SealedFrameDecoder(40, theirs).feed(Sealer(ours).encode([b"frame"]))


@pytest.mark.parametrize(("length", "allowed"), [(0, True), (40, True), (41, False)])
def test_the_limit_is_that_of_the_frame(length: int, allowed: bool) -> None:
    """A seal takes nothing from it, and gives nothing to it."""
    stream, decoder = Sealer(KEY).encode([bytes(length)]), SealedFrameDecoder(40, KEY)
    if allowed:
        assert [bytes(length)] == decoder.feed(stream)
        return
    with pytest.raises(ProtocolError, match="the limit is 56"):
        decoder.feed(stream[:4])


def test_a_frame_too_short_for_a_seal() -> None:
    """Frames without a seal, the empty one included, are changed ones."""
    for frame in (b"", b"x" * 15):
        with pytest.raises(ProtocolError, match="seal is broken"):
            SealedFrameDecoder(40, KEY).feed(encode_frames([frame]))
