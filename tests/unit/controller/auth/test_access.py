"""Who is let in, how credentials live and end, and what an operator can do: the use cases, with a real store."""

from __future__ import annotations

import pytest

from controller.auth import credentials, token_files, tokens
from controller.auth.credentials import LIFE_S, OVERLAP_S, Caller, Forbidden, Role
from curtail import wire
from curtail.errors import AuthError, NotFound, Refused, UsageError
from curtail.security.signing import Stamp
from curtail.security.token import parse_token
from curtail.system.disk import SystemDisk
from curtail.wire import NodeRemove, TokenRequest

OPERATOR = Caller(Role.OPERATOR, "test")


@pytest.fixture
def make(world):
    """make(role, ...): the text of a new token."""

    def make(role="agent", site="", region="", uses=None, expires_s=None):
        request = TokenRequest(role, site, region, uses, expires_s, "test")
        return world.store.call(lambda tx: world.service.access.create_token(tx, request, None, OPERATOR)).token

    return make


def join(world, token, site="a", agent="one", region="A", key="key", **more):
    request = wire.JoinRequest(wire.PROTOCOL, agent, site, region, "host", 1, token, key=key, **more)
    return world.store.call(lambda tx: world.service.join(tx, request))


def caller(world, shown):
    return world.store.call(lambda tx: world.service.access.caller(tx, shown))


def beat(world, site="a"):
    return world.beat(site).credential


# -- tokens ----------------------------------------------------------------------


def test_a_token_admits_as_many_machines_as_it_has_uses(world, make):
    token = make(uses=2)
    join(world, token, "a", "one", key="1"), join(world, token, "b", "two", key="2")
    with pytest.raises(AuthError, match="used up"):
        join(world, token, "c", "three", key="3")


def test_a_refused_join_uses_nothing_up(world, make):
    token = make(uses=1)
    with pytest.raises(NotFound):
        join(world, token, region="ATLANTIS")
    assert join(world, token).fence == 1


def test_a_machine_that_did_not_hear_the_answer_joins_again_with_a_token_that_is_used_up(world, make):
    token = make(uses=1, expires_s=60.0)
    join(world, token)
    world.clock.t += 100.0
    assert join(world, token).fence == 2
    with pytest.raises(AuthError, match="expired"):
        join(world, token, key="another key")


def test_an_expired_and_a_revoked_token_admit_nobody(world, make):
    expired, revoked = make(expires_s=10.0), make()
    world.clock.t += 10.0
    with pytest.raises(AuthError, match="expired"):
        join(world, expired)
    join(world, revoked)
    world.store.call(lambda tx: world.service.access.revoke_token(tx, parse_token(revoked).id, OPERATOR))
    for key in ("key", "other"):
        with pytest.raises(AuthError, match="revoked"):
            join(world, revoked, key=key)
    world.tick()
    assert world.beat("a").granted, "who is in stays in"


def test_a_token_that_is_revoked_twice_is_one_event_and_the_second_answer_says_so(world, make):
    token = parse_token(make()).id
    revoke = lambda tx: world.service.access.revoke_token(tx, token, OPERATOR)  # noqa: E731
    assert [world.store.call(revoke).ok for _ in range(3)] == [True, False, False]
    assert sum(f"revoked token {token}" in event.text for event in world.status().events) == 1


def test_a_token_for_a_site_or_region_is_for_no_other(world, make):
    with pytest.raises(Forbidden, match="site 'b'"):
        join(world, make(site="b"), "a")
    with pytest.raises(Forbidden, match="region 'B'"):
        join(world, make(region="B"), "a", region="A")
    assert join(world, make(site="a", region="A")).fence == 1


def test_a_viewers_token_admits_no_agent_and_an_agents_token_shows_nothing(world, make):
    with pytest.raises(Forbidden, match="agents cannot join"):
        join(world, make("viewer"))
    with pytest.raises(Forbidden, match="for agents"):
        caller(world, make())
    assert caller(world, make("viewer")).role is Role.VIEWER
    assert caller(world, make("operator")).role is Role.OPERATOR
    assert caller(world, join(world, make()).credential).machine.site == "a"


def test_tokens_that_cannot_be_are_refused(world, make):
    for wrong in (
        {"role": "king"},
        {"role": "viewer", "uses": 1},
        {"uses": 0},
        {"expires_s": 0.0},
        {"site": "x" * 300},
    ):
        with pytest.raises(UsageError):
            make(**wrong)
    with pytest.raises(NotFound, match="no region"):
        make(region="ATLANTIS")


def test_the_list_shows_states_and_no_secret(world, make):
    secrets = [make(uses=1), make(expires_s=5.0), make("viewer")]
    join(world, secrets[0])
    world.clock.t += 6.0
    found = world.store.call(lambda tx: tokens.listing(tx, world.clock.wall()))
    states = {token.id: token.state for token in found.tokens}
    assert [states[parse_token(text).id] for text in secrets] == ["used up", "expired", "good"]
    assert not [text for text in secrets if parse_token(text).secret in wire.encode(found).decode()]


def test_the_folders_token_files_are_made_once_and_anew_when_they_are_no_good(world, tmp_path):
    def ensure(pin):
        token_files.ensure(tmp_path, world.store, pin, world.clock.wall(), SystemDisk())
        return {name: token_files.read_token_file(tmp_path / name) for name in token_files.ROLE_OF}

    first = ensure("a" * 64)
    assert ensure("a" * 64) == first
    assert caller(world, str(first["operator-token"])).role is Role.OPERATOR
    assert all((tmp_path / name).stat().st_mode & 0o777 == 0o600 for name in first)
    other = ensure("b" * 64)
    assert other["join-token"].pin == "b" * 64
    with pytest.raises(AuthError, match="revoked"):
        join(world, str(first["join-token"]))
    (tmp_path / "join-token").write_text("damaged")
    assert ensure("b" * 64)["join-token"] not in (None, other["join-token"])


# -- credentials -----------------------------------------------------------------


def test_a_heartbeat_brings_a_new_credential_after_two_thirds_of_its_life(world, make):
    old = join(world, make()).credential
    assert beat(world) is None
    world.clock.t += 0.66 * LIFE_S
    assert beat(world) is None
    world.clock.t += 0.02 * LIFE_S
    new = beat(world)
    assert new not in (None, old)
    assert caller(world, old).machine.site == caller(world, new).machine.site == "a"


def test_a_lost_answer_locks_nobody_out(world, make):
    old = join(world, make()).credential
    world.clock.t += 0.7 * LIFE_S
    lost, heard = beat(world), beat(world)
    assert caller(world, old).name == "a", "none was used yet"
    with pytest.raises(AuthError):
        caller(world, lost)
    assert caller(world, heard).name == "a"
    assert beat(world) is None


def test_the_credential_before_is_good_for_what_is_under_way_and_then_ends(world, make):
    old = join(world, make()).credential
    world.clock.t += 0.7 * LIFE_S
    caller(world, beat(world))
    world.clock.t += OVERLAP_S - 1
    assert caller(world, old).name == "a"
    world.clock.t += 1
    with pytest.raises(AuthError, match="expired"):
        caller(world, old)


def test_a_credential_ends_after_a_day_and_the_key_gets_a_new_one(world, make):
    old = join(world, make()).credential
    world.clock.t += LIFE_S
    with pytest.raises(AuthError, match="expired"):
        caller(world, old)
    stamp = Stamp(int(world.clock.wall()), "0" * 32, 0, b"")
    reply = world.store.call(lambda tx: world.service.access.renew(tx, world_row(tx), stamp))
    assert caller(world, reply.credential).name == "a" and reply.fence == 1
    with pytest.raises(AuthError, match="was seen before"):
        world.store.call(lambda tx: world.service.access.renew(tx, world_row(tx), stamp))


def test_a_stolen_credential_that_is_kept_alive_ends_once_the_machine_shows_its_key(world, make):
    old = join(world, make()).credential
    world.clock.t += 0.7 * LIFE_S
    stolen = beat(world)
    assert caller(world, stolen).name == "a", "the thief was the first to ask"
    world.clock.t += OVERLAP_S
    with pytest.raises(AuthError, match="expired"):
        caller(world, old)
    stamp = Stamp(int(world.clock.wall()), "0" * 32, 0, b"")
    own = world.store.call(lambda tx: world.service.access.renew(tx, world_row(tx), stamp)).credential
    world.clock.t += OVERLAP_S
    assert caller(world, own).name == "a"
    with pytest.raises(AuthError, match="expired"):
        caller(world, stolen)


def world_row(tx):
    return tx.machine("a", "one")


def test_a_signed_request_counts_once_and_only_in_its_epoch(world, make):
    join(world, make())
    row = world.who("a")
    now = int(world.clock.wall())
    world.store.call(lambda tx: world.service.access.signed(tx, row, Stamp(now, "1" * 32, 1, b"")))
    with pytest.raises(AuthError, match="was seen before"):
        world.store.call(lambda tx: world.service.access.signed(tx, row, Stamp(now, "1" * 32, 1, b"")))
    with pytest.raises(Refused, match="fencing token 0"):
        world.store.call(lambda tx: world.service.access.signed(tx, row, Stamp(now, "2" * 32, 0, b"")))


def test_nonces_are_forgotten_when_their_requests_could_not_be_sent_again(world, make):
    join(world, make())
    row = world.who("a")
    for n in range(5):
        stamp = Stamp(int(world.clock.wall()), f"{n:032x}", 1, b"")
        world.store.call(lambda tx, stamp=stamp: world.service.access.signed(tx, row, stamp))
        world.clock.t += 400.0
    count = world.store.call(lambda tx: tx._one("SELECT COUNT(*) AS n FROM nonces"))["n"]
    assert count == 1


def test_secrets_are_in_the_store_as_hashes_only(world, make):
    token = make("operator")
    credential = join(world, make()).credential
    world.clock.t += 0.7 * LIFE_S
    following = beat(world)
    world.store.call(lambda tx: None)
    written = b"".join(path.read_bytes() for path in world.home.glob("state.db*"))
    for secret in (parse_token(token).secret, credential, following):
        assert secret.encode() not in written
        assert credentials.hashed(secret).encode() in written


# -- machines that come back ------------------------------------------------------


def silent(world):
    world.clock.t += world.config.fleet.lost_after + 1


def test_a_wiped_machine_comes_back_with_a_token_for_its_site(world, make):
    join(world, make(), agent="one", key="old")
    silent(world)
    with pytest.raises(Refused, match=r"belongs to another key, of host.*curtail token create --site a.*node rm a"):
        join(world, make(), agent="two", key="new")
    assert join(world, make(site="a"), agent="two", key="new").fence == 2
    assert world.who("a").key == "new"


def test_a_wiped_machine_comes_back_with_an_operators_token_and_replace(world, make):
    join(world, make(), agent="one", key="old")
    silent(world)
    with pytest.raises(Refused, match="another key"):
        join(world, make("operator"), agent="two", key="new")
    with pytest.raises(Refused, match="another key"):
        join(world, make(), agent="two", key="new", replace=True)
    assert join(world, make("operator"), agent="two", key="new", replace=True).fence == 2


def test_the_id_of_an_agent_without_its_key_is_worth_nothing(world, make):
    join(world, make(), agent="one", key="old")
    with pytest.raises(Refused, match="another key"):
        join(world, make(), agent="one", key="new")
    assert world.who("a").key == "old"


def test_a_name_cannot_be_taken_by_saying_that_the_site_has_more_machines(world, make):
    join(world, make(), agent="one", key="old")
    silent(world)
    with pytest.raises(Refused, match="another key"):
        join(world, make(), agent="two", key="new", machines=2, address="10.0.0.1", port=1)


def test_a_site_that_left_keeps_its_name(world, make):
    join(world, make(), agent="one", key="old")
    who = world.who("a")
    world.store.call(lambda tx: world.service.leave(tx, who, wire.LeaveRequest("one", "a", 1, "test")))
    with pytest.raises(Refused, match="another key"):
        join(world, make(), agent="two", key="new")
    assert join(world, make(), agent="one", key="old").fence == 2


def test_the_key_alone_makes_a_machine_the_same_one(world, make):
    join(world, make(), agent="one", key="old")
    silent(world)
    assert join(world, make(), agent="a new id", key="old").fence == 2


def test_a_machine_that_joined_before_keys_were_kept_joins_anew_once_and_has_a_key_then(world, make):
    join(world, make(), agent="one", key="")
    with pytest.raises(Refused, match="another key"):
        silent(world)
        join(world, make(), agent="two", key="stranger")
    assert join(world, make(), agent="one", key="new").fence == 2
    with pytest.raises(Refused, match="another key"):
        join(world, make(), agent="one", key="other")


# -- removal -----------------------------------------------------------------------


def remove(world, site, agent=None):
    return world.store.call(lambda tx: world.service.access.remove_node(tx, NodeRemove(site, agent), OPERATOR)).count


def test_a_removed_machine_leaves_no_trace_and_its_samples_go_back(world, make):
    credential = join(world, make()).credential
    world.tick()
    world.beat("a", "job", "start")
    assert world.checkout("a", "job").kind == "train"
    assert remove(world, "a") == 1
    with pytest.raises(AuthError):
        caller(world, credential)
    assert world.store.call(lambda tx: tx.machines("a")) == []
    assert world.status().round is None and world.status().sites == ()
    world.check()
    assert join(world, make(), agent="two", key="new").fence == 2


def test_the_log_says_with_which_token_a_machine_joined(world, make):
    token = make()
    join(world, token)
    said = [event.text for event in world.status().events]
    assert any(f"a joined from host in A with token {parse_token(token).id}" in text for text in said)


def test_one_machine_of_several_is_named_by_its_agents_id(world, make):
    several = {"machines": 2, "port": 1}
    join(world, make(), agent="one", key="1", address="h1", **several)
    join(world, make(), agent="two", key="2", address="h2", **several)
    for wrong in ("three", ""):
        with pytest.raises(NotFound, match="node list"):
            remove(world, "a", wrong)
    assert remove(world, "a", "tw") == 1
    assert [row.agent for row in world.store.call(lambda tx: tx.machines("a"))] == ["one"]
    nodes = world.store.call(world.service.access.nodes).nodes
    assert [(node.agent, node.left, node.seen_s) for node in nodes] == [("one", False, 0.0)]


def test_a_machine_that_is_removed_while_the_controller_is_down_gives_its_samples_back_at_the_next_step(world, make):
    from controller.service.sites import forget

    join(world, make())
    world.tick()
    world.beat("a", "job", "start")
    assert world.checkout("a", "job").kind == "train"
    assert world.store.call(lambda tx: forget(tx, "a", None)) == 1
    world.start()
    world.tick()
    assert world.status().round is None and world.status().sites == ()
    world.check()


# -- files --------------------------------------------------------------------------


def test_an_upload_belongs_to_the_site_that_offered_it_first(world, make):
    join(world, make(), "a", "one", key="1"), join(world, make(), "b", "two", key="2")
    access, a, b = world.service.access, world.who("a"), world.who("b")
    sha = "0" * 64
    assert world.store.call(lambda tx: access.offered(tx, a, sha)) is None
    for use_case in (access.offered, access.check_upload):
        with pytest.raises(Forbidden, match="another site"):
            world.store.call(lambda tx, use_case=use_case: use_case(tx, b, sha))
    with pytest.raises(NotFound):
        world.store.call(lambda tx: access.check_upload(tx, b, "1" * 64))
