"""What the state keeps of edits: which one a request has, and those that gateways tell each other of."""

from gateway import edit_requests
from gateway import state_statements as statements
from gateway.database import Transaction, operation
from gateway.state_part import StatePart
from gateway.tuning_records import CreateRequest
from unitune.v1.edit_pb2 import Edit

SILENT_S = 15.0  # without a sign of life until a gateway counts as dead
EDITS_KEPT_S = 600.0  # after their end, or that of their gateway


class StateOfEdits(StatePart):
    """That part of the state."""

    # The edits that callers' requests have.

    @operation
    def claim_edit(self, tx: Transaction, tenant: str, request: CreateRequest, edit: Edit, lost: str = "") -> str:
        """The edit of a request: this one if it has none yet, or if the one that it had is `lost`; then it runs at this
        gateway.

        Raises InvalidArgument (REQUEST_ID_REUSED) for another body.
        """
        name = edit_requests.claim(tx, tenant, request, edit.name, lost)
        if self.is_shared and name == edit.name:
            self._begin_edit(tx, edit)
        return name

    # Edits that gateways tell each other of.

    @operation
    def begin_edit(self, tx: Transaction, edit: Edit) -> None:
        """An edit runs at this gateway."""
        self._begin_edit(tx, edit)

    @operation
    def end_edit(self, tx: Transaction, edit: Edit) -> None:
        """An edit has ended so, unless another gateway has cancelled it."""
        tx.run(statements.END_EDIT, the_name=edit.name, new_state=edit.state, new_blob=edit.SerializeToString())

    @operation
    def find_edit(self, tx: Transaction, name: str) -> tuple[Edit, bool] | None:
        """An edit, and whether it was lost with its gateway."""
        row = tx.row(statements.FIND_EDIT, the_name=name)
        if row is None:
            return None
        blob, state, silent_s = row
        is_lost = state == Edit.STATE_RUNNING and (silent_s is None or silent_s > SILENT_S)
        return Edit.FromString(blob), is_lost

    @operation
    def cancel_edit(self, tx: Transaction, name: str) -> Edit | None:
        """Cancel an edit that runs; the edit afterwards, None if there is none. Notifies its name."""
        blob = tx.value(statements.LOCKED_EDIT, the_name=name)
        if blob is not None:
            edit = Edit.FromString(blob)
            edit.state = Edit.STATE_CANCELLED
            tx.run(statements.END_EDIT, the_name=name, new_state=edit.state, new_blob=edit.SerializeToString())
            tx.notify(name)
            return edit
        row = tx.row(statements.FIND_EDIT, the_name=name)
        return Edit.FromString(row[0]) if row else None

    @operation
    def cancelled_edits(self, tx: Transaction) -> list[str]:
        """The names of this gateway's edits that are CANCELLED."""
        return tx.values(statements.CANCELLED_EDITS, the_holder=self._id)

    @operation
    def running_edits(self, tx: Transaction) -> list[str]:
        """The names of this gateway's edits that are RUNNING, as the state has it."""
        return tx.values(statements.RUNNING_EDITS, the_holder=self._id)

    @operation
    def edit_names(self, tx: Transaction) -> list[str]:
        """The names of all edits that run, or ended not long ago."""
        return tx.values(statements.EDIT_NAMES)

    @operation
    def sweep_edits(self, tx: Transaction) -> None:
        """Show a sign of life. Forget edits that ended or were lost long ago, and what lost gateways held."""
        tx.run(statements.SHOW_LIFE, the_holder=self._id)
        tx.run(statements.FORGET_GATEWAYS, kept_s=EDITS_KEPT_S)
        tx.run(statements.FORGET_EDITS, kept_s=EDITS_KEPT_S)
        tx.run(statements.FORGET_LOST_EDITS)
        tx.run(statements.FORGET_HOLDS)

    def _begin_edit(self, tx: Transaction, edit: Edit) -> None:
        tx.run(statements.SHOW_LIFE, the_holder=self._id)
        blob = edit.SerializeToString()
        tx.run(statements.INSERT_EDIT, name=edit.name, gateway=self._id, state=edit.state, blob=blob)
