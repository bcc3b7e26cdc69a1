"""The statements of the state. Each is built once; a transaction gives it its values.

A row that is read to be changed is locked. Who locks several rows does so in the order of their numbers, or passes over
those that are locked. A tenant's row is locked before its tunings are counted or taken.
"""

from sqlalchemy import (
    BigInteger,
    Double,
    Integer,
    LargeBinary,
    Text,
    Update,
    bindparam,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    tuple_,
    update,
)

from gateway.dialects import Upsert, has_bytes, now_s
from gateway.state_schema import (
    IS_LIVE,
    edits,
    events,
    evictions,
    gateways,
    holds,
    requests,
    seen_models,
    services,
    tunings,
    turns,
)
from unitune.v1.edit_pb2 import Edit
from unitune.v1.tuning_pb2 import Tuning

# Values have names that no column has: SQLAlchemy takes a value with a column's name for what is to be written.
the_name, the_tenant = bindparam("the_name", type_=Text), bindparam("the_tenant", type_=Text)
the_number, the_attempt = bindparam("the_number", type_=BigInteger), bindparam("the_attempt", type_=Integer)
the_model = bindparam("the_model", type_=Text)
the_image_bytes = bindparam("the_image_bytes", type_=LargeBinary)
lease_end_s = now_s() + bindparam("lasts_s", type_=Double)

# States are in the text: PostgreSQL chooses a partial index by them.
is_queued = tunings.c.state == literal_column(f"{Tuning.STATE_QUEUED}")
is_running = tunings.c.state == literal_column(f"{Tuning.STATE_RUNNING}")
is_ready = tunings.c.state == literal_column(f"{Tuning.STATE_READY}")
is_unfinished = is_queued | is_running

# Tunings by name.

_stored = (tunings.c.number, tunings.c.last_event, tunings.c.blob)
_tuning = select(*_stored)
TUNING = _tuning.where(tunings.c.name == the_name)
READY_TUNINGS = _tuning.where(tunings.c.name.in_(bindparam("names", expanding=True)), is_ready)
LOCKED_TUNING = TUNING.with_for_update()
LIVE_TUNING = _tuning.where(tunings.c.tenant == the_tenant, tunings.c.key == bindparam("the_key"), IS_LIVE)
PAGE = (
    select(tunings.c.number, tunings.c.blob)
    .where(tunings.c.tenant == the_tenant, tunings.c.number < bindparam("before"))
    .order_by(tunings.c.number.desc())
    .limit(bindparam("most"))
)
PAGE_OF_STATE = PAGE.where(tunings.c.state == bindparam("the_state"))
INSERT_TUNING = insert(tunings).returning(tunings.c.number)
DELETE_TUNING = delete(tunings).where(tunings.c.name == the_name).returning(tunings.c.number)
EXPIRED = select(tunings.c.name).where(is_ready, tunings.c.expire_s <= bindparam("at_s"))
# The first image has an index. Further ones have no column of their own: their names are in the message.
_has_image = has_bytes(tunings.c.blob, the_image_bytes)
USES_IMAGE = (
    select(literal(1))
    .where(tunings.c.image == bindparam("the_image"), tunings.c.name != the_name)
    .union_all(select(literal(1)).where(tunings.c.tenant == the_tenant, _has_image, tunings.c.name != the_name))
    .limit(1)
)
LIVE_USER_OF = select(tunings.c.name).where(tunings.c.tenant == the_tenant, IS_LIVE, _has_image).limit(1)


def change(*columns: str) -> Update:
    """What writes a changed tuning, and further columns."""
    written = ("state", "expire_s", "last_event", "blob", *columns)
    return (
        update(tunings)
        .where(tunings.c.number == the_number)
        .values({name: bindparam(f"new_{name}") for name in written})
    )


CHANGE = change()
CHANGE_END = change("lease_s", "checkpoint")
CHANGE_BACK = change("reached", "place", "lease_s", "tuner")

# Requests.

REQUEST = select(requests.c.body, requests.c.tuning).where(
    requests.c.tenant == the_tenant, requests.c.request_id == bindparam("the_id")
)
INSERT_REQUEST = insert(requests)
_request = tuple_(requests.c.tenant, requests.c.request_id)
FORGET_REQUESTS = delete(requests).where(
    _request.in_(
        select(requests.c.tenant, requests.c.request_id)
        .where(requests.c.create_s < bindparam("before_s"))
        .with_for_update(skip_locked=True)
    )
)

COUNT_REQUESTS = select(func.count()).where(requests.c.tenant == the_tenant)
_oldest = select(requests.c.request_id).where(requests.c.tenant == the_tenant).order_by(requests.c.create_s)
FORGET_OLDEST_REQUESTS = delete(requests).where(
    requests.c.tenant == the_tenant, requests.c.request_id.in_(_oldest.limit(bindparam("most")))
)

# The queue.

NEW_TENANT = Upsert(turns, lambda insert: insert.values(tenant=the_tenant, last_turn=0).on_conflict_do_nothing())
LOCK_TENANT = select(turns.c.last_turn).where(turns.c.tenant == the_tenant).with_for_update()
LOCK_FREE_TENANT = select(turns.c.last_turn).where(turns.c.tenant == the_tenant).with_for_update(skip_locked=True)
COUNT_UNFINISHED = select(func.count().filter(tunings.c.tenant == the_tenant), func.count()).where(is_unfinished)
COUNT_KEPT = select(func.count()).where(tunings.c.tenant == the_tenant)
# Who waits: each tenant with the number of its QUEUED tunings and the first of them, in the order of being served next.
# That is the tenant that was served longest ago. Of those that never were, it is the one that has waited longest.
QUEUE = (
    select(tunings.c.tenant, func.count(), func.min(tunings.c.number), turns.c.last_turn)
    .join(turns, turns.c.tenant == tunings.c.tenant)
    .where(is_queued)
    .group_by(tunings.c.tenant, turns.c.last_turn)
    .order_by(turns.c.last_turn, func.min(tunings.c.number))
)
RANK = select(func.count()).where(is_queued, tunings.c.tenant == the_tenant, tunings.c.number <= the_number)
QUEUED_NUMBERS = select(tunings.c.number).where(is_queued, tunings.c.tenant == the_tenant).order_by(tunings.c.number)
IS_ANY_QUEUED = select(literal(1)).where(is_queued).limit(1)
IS_ANY_OF_MODEL_QUEUED = IS_ANY_QUEUED.where(tunings.c.base_model == the_model)
TENANTS_QUEUED = select(tunings.c.tenant).where(is_queued).distinct()
TENANTS_OF_MODEL_QUEUED = TENANTS_QUEUED.where(tunings.c.base_model == the_model)
RUNNING_OF_TENANTS = select(tunings.c.tenant, func.count()).where(is_running).group_by(tunings.c.tenant)
NEXT = (
    select(*_stored, tunings.c.attempt, tunings.c.checkpoint, tunings.c.trace)
    .where(is_queued, tunings.c.tenant == the_tenant)
    .order_by(tunings.c.number)
    .limit(1)
    .with_for_update(skip_locked=True)
)
NEXT_OF_MODEL = NEXT.where(tunings.c.base_model == the_model)
CHANGE_TAKEN = change("attempt", "tuner", "place").values(lease_s=lease_end_s)
SERVE_TENANT = (
    update(turns)
    .where(turns.c.tenant == the_tenant)
    .values(last_turn=select(func.max(turns.c.last_turn) + 1).scalar_subquery())
)
COUNT_QUEUE = select(func.count().filter(is_queued), func.count().filter(is_running)).where(is_unfinished)
OLDEST_QUEUED = select(tunings.c.blob).where(is_queued).order_by(tunings.c.number).limit(1)
QUEUED_MODELS = select(tunings.c.base_model).where(is_queued).distinct()
QUEUED_OF_MODEL = (
    select(tunings.c.name)
    .where(is_queued, tunings.c.base_model == the_model)
    .order_by(tunings.c.number)
    .with_for_update(skip_locked=True)
)

# Attempts.

HOLDS = select(literal(1)).where(tunings.c.name == the_name, tunings.c.attempt == the_attempt, is_running)
HELD_TUNING = LOCKED_TUNING.where(tunings.c.attempt == the_attempt, is_running)
TUNING_OF_ATTEMPT = TUNING.where(tunings.c.attempt == the_attempt)
_held = update(tunings).where(tunings.c.name == the_name, tunings.c.attempt == the_attempt, is_running)
RENEW = _held.values(lease_s=lease_end_s, tuner=bindparam("by")).returning(tunings.c.number)
KEEP_CHECKPOINT = RENEW.values(checkpoint=bindparam("new_checkpoint"))
REPORTED = (
    select(tunings.c.name, tunings.c.attempt, *_stored)
    .where(tunings.c.name.in_(bindparam("names", expanding=True)), is_running)
    .order_by(tunings.c.number)
    .with_for_update()
)
CHANGE_REPORTED = change("tuner").values(lease_s=lease_end_s)
# Of the running ones of an instance, or of another that was at its place. An empty place is none.
RUNNING_AT = (
    select(tunings.c.tuner, *_stored)
    .where(is_running, (tunings.c.tuner == bindparam("by")) | (tunings.c.place == bindparam("at")))
    .order_by(tunings.c.number)
    .with_for_update(skip_locked=True)
)
SHORTEN_LEASES = update(tunings).where(is_running, tunings.c.lease_s > lease_end_s).values(lease_s=lease_end_s)
LOST = (
    select(tunings.c.tuner, *_stored)
    .where(is_running, func.coalesce(tunings.c.lease_s, 0) < now_s())
    .order_by(tunings.c.number)
    .with_for_update(skip_locked=True)
)
# Lost, and not counted yet.
UNCOUNTED = (
    select(
        *(tunings.c.number, tunings.c.name, tunings.c.tuner),
        *(tunings.c.reached, tunings.c.furthest, tunings.c.crashes),
    )
    .where(is_queued, tunings.c.tuner != "")
    .order_by(tunings.c.number)
    .with_for_update(skip_locked=True)
)
COUNT_CRASH = (
    update(tunings)
    .where(tunings.c.number == the_number)
    .values(crashes=bindparam("new_crashes"), furthest=bindparam("new_furthest"), tuner="")
)
FORGET_TUNER = update(tunings).where(tunings.c.number == the_number).values(tuner="")
FORGET_TUNERS = update(tunings).where(is_running).values(tuner="")

# Events.

INSERT_EVENT = insert(events)
EVENTS = (
    select(events.c.blob)
    .where(
        events.c.tuning == the_number, events.c.sequence > bindparam("after"), events.c.sequence <= bindparam("up_to")
    )
    .order_by(events.c.sequence)
)
TRIM_LATER = update(tunings).where(tunings.c.number == the_number).values(trim_s=lease_end_s)
TO_TRIM = (
    select(tunings.c.number, tunings.c.last_event)
    .where(tunings.c.trim_s < now_s())
    .order_by(tunings.c.trim_s)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
TRIMMED = update(tunings).where(tunings.c.number == the_number).values(trim_s=None)
FORGET_EVENTS = delete(events).where(events.c.tuning == the_number, events.c.sequence <= bindparam("up_to"))
DELETE_EVENTS = delete(events).where(events.c.tuning == the_number)
LAST_EVENTS = select(tunings.c.name, tunings.c.last_event).where(tunings.c.name.in_(bindparam("names", expanding=True)))
HAS_NO_EVENT_AFTER = select(literal(1)).where(tunings.c.name == the_name, tunings.c.last_event <= bindparam("after"))

# What services said, and what the sampler must forget.

KNOWN = select(services.c.name, services.c.info)
KNOW = Upsert(
    services,
    lambda insert: insert.values(name=the_name, info=bindparam("the_info")).on_conflict_do_update(
        index_elements=["name"], set_={"info": insert.excluded.info}
    ),
)
EVICTIONS = select(evictions.c.digest).order_by(evictions.c.number)
ADD_EVICTION = Upsert(evictions, lambda insert: insert.values(digest=bindparam("the_digest")).on_conflict_do_nothing())
REMOVE_EVICTION = delete(evictions).where(evictions.c.digest == bindparam("the_digest"))

# What a service is if nothing was known of it before.
KNOW_FIRST = Upsert(
    services,
    lambda insert: insert.values(name=the_name, info=bindparam("the_info")).on_conflict_do_nothing(),
)
KNOWN_OF = select(services.c.info).where(services.c.name == the_name)

# What gateways tell each other.

the_holder = bindparam("the_holder", type_=Text)
HOLD = Upsert(
    holds,
    lambda insert: (
        insert.values(name=the_name, holder=the_holder, until_s=lease_end_s)
        .on_conflict_do_update(
            index_elements=["name"],
            set_={"holder": insert.excluded.holder, "until_s": insert.excluded.until_s},
            where=holds.c.until_s < now_s(),
        )
        .returning(holds.c.name)
    ),
)
FORGET_HOLDS = delete(holds).where(holds.c.until_s < now_s())
_own_hold = (holds.c.name == the_name, holds.c.holder == the_holder)
KEEP_HOLD = update(holds).where(*_own_hold).values(until_s=lease_end_s)
LET_LOOSE = delete(holds).where(*_own_hold)
SEE_MODEL = Upsert(
    seen_models,
    lambda insert: insert.values(gateway=the_holder, base_model=the_model, seen_s=now_s()).on_conflict_do_update(
        index_elements=["gateway", "base_model"], set_={"seen_s": insert.excluded.seen_s}
    ),
)
_age_s = (now_s() - func.max(seen_models.c.seen_s)).label("age_s")
SEEN_ELSEWHERE = (
    select(seen_models.c.base_model, _age_s)
    .where(seen_models.c.gateway != the_holder)
    .group_by(seen_models.c.base_model)
)
FORGET_SEEN = delete(seen_models).where(seen_models.c.seen_s < now_s() - bindparam("kept_s", type_=Double))
SHOW_LIFE = Upsert(
    gateways,
    lambda insert: insert.values(id=the_holder, seen_s=now_s()).on_conflict_do_update(
        index_elements=["id"], set_={"seen_s": insert.excluded.seen_s}
    ),
)
FORGET_GATEWAYS = delete(gateways).where(gateways.c.seen_s < now_s() - bindparam("kept_s", type_=Double))

# Edits.

edit_runs = edits.c.state == literal_column(f"{Edit.STATE_RUNNING}")
INSERT_EDIT = insert(edits)
LOCKED_EDIT = select(edits.c.blob).where(edits.c.name == the_name, edit_runs).with_for_update()
END_EDIT = (
    update(edits)
    .where(edits.c.name == the_name, edit_runs)
    .values(state=bindparam("new_state"), blob=bindparam("new_blob"), end_s=now_s())
)
# With the seconds since its gateway's last sign of life.
FIND_EDIT = (
    select(edits.c.blob, edits.c.state, (now_s() - gateways.c.seen_s).label("silent_s"))
    .select_from(edits.outerjoin(gateways, gateways.c.id == edits.c.gateway))
    .where(edits.c.name == the_name)
)
EDIT_NAMES = select(edits.c.name)
CANCELLED_EDITS = select(edits.c.name).where(
    edits.c.gateway == the_holder, edits.c.state == literal_column(f"{Edit.STATE_CANCELLED}")
)
RUNNING_EDITS = select(edits.c.name).where(edits.c.gateway == the_holder, edit_runs)
FORGET_EDITS = delete(edits).where(edits.c.end_s < now_s() - bindparam("kept_s", type_=Double))
_living = select(gateways.c.id)
FORGET_LOST_EDITS = delete(edits).where(edit_runs, edits.c.gateway.not_in(_living))
