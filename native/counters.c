/*
 * What the server has counted of relations that a test made or wrote to.
 */
#include "pgh.h"

#include "access/xact.h"
#include "pgstat.h"
#include "utils/pgstat_internal.h"

/*
 * DROP would have removed the counters of relations that are no more; a rewind takes their files and rows only, and the server would
 * keep them until the database goes.  A relation that was never rewritten has its file's number.  What a DROP of the test's own has
 * removed already, and sessions still hold, must not be removed once more: that is an error.
 */
static bool
forget_all_of(Oid lease, const List *files)
{
	ListCell   *cell;
	bool		held = false;

	foreach(cell, files)
	{
		RelNumber	node = ((Dirty *) lfirst(cell))->node;

		if (pgstat_have_entry(PGSTAT_KIND_RELATION, lease, node))
			held |= !pgstat_drop_entry(PGSTAT_KIND_RELATION, lease, node);
	}
	return held;
}

/* And what was counted of changes that are undone would bring autovacuum to their tables. */
void
forget_counters(const RewindPlan *plan, Oid lease)
{
	TimestampTz now = GetCurrentTransactionStartTimestamp();
	HASH_SEQ_STATUS scan;
	Target	   *target;
	bool		held = forget_all_of(lease, plan->fresh);

	/* The first file of a relation that was rewritten, which had its OID. */
	held |= forget_all_of(lease, plan->gone);
	/* Whoever holds them lets go when he counts for the next time. */
	if (held)
		pgstat_request_entry_refs_gc();
	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		if (target->known->oid >= FIRST_USER_OID && target->known->kind != 'S')
			pgstat_reset_entry(PGSTAT_KIND_RELATION, lease, target->known->oid, now);
}
