/*
 * What the server has counted for relations that a test made.
 */
#include "pgh.h"

#include "pgstat.h"
#include "utils/pgstat_internal.h"

/*
 * Their DROP would have removed it; a rewind takes their files and rows only, and the server would keep the counters until the
 * database goes.  A relation that was never rewritten has its file's number.  What a DROP of the test's own has removed already,
 * and sessions still hold, must not be removed once more: that is an error.
 */
void
forget_counters(Oid lease, const List *fresh)
{
	ListCell   *cell;
	bool		held = false;

	foreach(cell, fresh)
		if (pgstat_have_entry(PGSTAT_KIND_RELATION, lease, lfirst_oid(cell)))
			held |= !pgstat_drop_entry(PGSTAT_KIND_RELATION, lease, lfirst_oid(cell));
	/* Whoever holds them lets go when he counts for the next time. */
	if (held)
		pgstat_request_entry_refs_gc();
}
