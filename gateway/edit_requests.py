"""Which edit a caller's request has, as the state keeps it for an hour. Each function is a part of a transaction."""

from sqlalchemy import Double, Text, bindparam, delete, select, update

from gateway.database import Transaction
from gateway.dialects import Upsert, now_s
from gateway.state_schema import edit_requests
from gateway.tuning_records import CreateRequest

KEPT_S = 3600.0  # longer than results are

_tenant, _id = bindparam("the_tenant", type_=Text), bindparam("the_id", type_=Text)
_edit, _body = bindparam("the_edit", type_=Text), bindparam("the_body", type_=Text)
_is_it = (edit_requests.c.tenant == _tenant) & (edit_requests.c.request_id == _id)
_INSERT = Upsert(
    edit_requests,
    lambda insert: (
        insert.values(tenant=_tenant, request_id=_id, body=_body, edit=_edit, create_s=now_s())
        .on_conflict_do_nothing()
        .returning(edit_requests.c.edit)
    ),
)
_LOCKED = select(edit_requests.c.body, edit_requests.c.edit).where(_is_it).with_for_update()
_KNOWN = select(edit_requests.c.edit).where(_is_it)
_REPLACE = update(edit_requests).where(_is_it).values(edit=_edit, create_s=now_s())
_COUNT = update(edit_requests).where(_is_it, edit_requests.c.is_counted == 0).values(is_counted=1)
_COUNTED = _COUNT.returning(edit_requests.c.edit)
_FORGET = delete(edit_requests).where(edit_requests.c.create_s < now_s() - bindparam("kept_s", type_=Double))


def claim(tx: Transaction, tenant: str, request: CreateRequest, edit: str, lost: str) -> str:
    """The edit of a request: this one if it has none yet, or if the one that it had is `lost`.

    Raises InvalidArgument (REQUEST_ID_REUSED) for another body.
    """
    tx.run(_FORGET, kept_s=KEPT_S)
    of = {"the_tenant": tenant, "the_id": request.request_id}
    if tx.row(_INSERT, **of, the_body=request.body, the_edit=edit) is not None:
        return edit
    row = tx.row(_LOCKED, **of)
    if row is None:  # it was forgotten just now
        return edit
    body, earlier = row
    request.refuse_another(body)
    if earlier != lost:
        return str(earlier)
    tx.run(_REPLACE, **of, the_edit=edit)
    return edit


def count(tx: Transaction, tenant: str, request_id: str) -> bool:
    """Note that an edit of this request is counted; False if one was before."""
    of = {"the_tenant": tenant, "the_id": request_id}
    return tx.row(_COUNTED, **of) is not None or tx.row(_KNOWN, **of) is None
