/*
 * One rewind: look, lock, look again, put back, tell.
 *
 * Called in the maintenance database, in a transaction of its own.  Until the first page is written every refusal is an
 * answer, and leaves the lease as it was.  After it, an error leaves the lease undefined: the caller replaces it.
 */
#include "pgh.h"

#include <unistd.h>

#include "access/twophase.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/catalog.h"
#include "catalog/pg_tablespace_d.h"
#include "replication/message.h"
#include "storage/lmgr.h"
#include "utils/relcache.h"

/* The rest of the server's table of locks is others': whoever finds it full gets an error. */
#define MOST_LOCKS (max_locks_per_xact * (MaxBackends + max_prepared_xacts) / 4 * 3)

/*
 * False where one is not to be had now.
 *
 * A session that is idle in a transaction, and only read, keeps its locks.  It has no snapshot (look_around), so nobody reads
 * at present: then writers are locked out, and readers are not (weak).
 */
static bool
lock_all(RewindPlan *plan, Oid lease)
{
	ListCell   *cell;

	/* In the order of OIDs, so that two resets cannot wait for each other. */
	list_sort(plan->locks, list_oid_cmp);
	foreach(cell, plan->locks)
	{
		LOCKTAG		tag;

		SET_LOCKTAG_RELATION(tag, lease, lfirst_oid(cell));
		if (LockAcquire(&tag, AccessExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL)
			continue;
		if (lfirst_oid(cell) < FIRST_USER_OID ||
			LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
			return false;
		plan->weak = true;
	}
	return true;
}

/* Whether anybody wrote to the lease between the reading and the locks; moves the end of the reading to now. */
static bool
somebody_wrote(const Asked *asked, Answer *answer)
{
	Seen		seen;
	XLogRecPtr	later = GetXLogInsertRecPtr();

	if (later == answer->upto)
		return false;
	later = LOG_MESSAGE();
	XLogFlush(later);
	seen_begin(&seen);
	read_log(&seen, answer->upto, later, asked->lease, asked->own, asked->nown);
	answer->shared = list_concat_unique_oid(answer->shared, seen.shared);
	answer->owners = list_concat_unique_oid(answer->owners, seen.owners);
	answer->upto = later;
	return seen.refused != NULL || hash_get_num_entries(seen.files) > 0;
}

static void
put_all_back(const Asked *asked, RewindPlan *plan, Memory *memory, Work *work)
{
	HASH_SEQ_STATUS scan;
	Target	   *target;

	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		make_again(work, target);
	shorten_all(work, plan, memory);
	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		restore(work, target);
	forget_counters(plan, asked->lease);
	if (plan->catalogs)
	{
		/* New sessions read it instead of the catalogs.  The lock: none that starts now writes the old one again. */
		LWLockAcquire(RelCacheInitLock, LW_EXCLUSIVE);
		(void) unlink(psprintf("%s/%s", GetDatabasePath(asked->lease, DEFAULTTABLESPACE_OID), RELCACHE_INIT_FILENAME));
	}
	tell(plan, asked->lease);
	if (plan->catalogs)
		LWLockRelease(RelCacheInitLock);
	if (plan->weak)
	{
		wake(asked->lease);
		/* Whoever read meanwhile, under the lock that it holds, may have read half of it, or left hints on pages that are back. */
		if (look_around(asked->lease, asked->ours, asked->nours).activity != plan->activity)
			ereport(ERROR, errcode(ERRCODE_OBJECT_IN_USE),
					errmsg("a session that was idle in its transaction went on while pages were put back"));
	}
}

/* Until the relations are locked, and nobody is in the way: NULL; else the status to answer. */
const char *
approach(const Asked *asked, Answer *answer, RewindPlan *plan, Work *work)
{
	Memory	   *memory = memory_of(asked->lease);
	Seen		seen;
	int64		pages;

	if ((answer->why = cannot_rewind(asked->lease)) != NULL)
		return "rows";
	answer->present = look_around(asked->lease, asked->ours, asked->nours);
	if (answer->present.hidden)
	{
		answer->why = "track_activities is off for a session: it cannot be seen whether a statement runs";
		return "rows";
	}
	if (answer->present.busy != NIL || answer->present.prepared)
		return "busy";
	use_marks(asked->marks);
	answer->upto = GetXLogInsertRecPtr();
	if (answer->upto == asked->since && known_unlogged == NIL && ARR_NDIM(asked->above) == 0)
		return "nothing";
	if ((int64) (answer->upto - asked->since) > asked->most_bytes)
	{
		answer->why = psprintf("%.1f MB of log were written", (answer->upto - asked->since) / 1e6);
		return "rows";
	}

	/* A message of our own: its end is a place to read to, and to go on from. */
	answer->upto = LOG_MESSAGE();
	XLogFlush(answer->upto);
	seen_begin(&seen);
	read_log(&seen, asked->since, answer->upto, asked->lease, asked->own, asked->nown);
	note_marks(&seen, asked->above);
	answer->shared = seen.shared;
	answer->owners = seen.owners;
	if ((answer->why = seen.refused) != NULL)
		return "rows";
	*plan = make_plan(&seen);
	answer->touched = plan->touched;
	if (hash_get_num_entries(plan->targets) == 0 && plan->fresh == NIL && plan->gone == NIL)
		return "nothing";
	pages = weigh(plan, work, memory, asked);
	if (pages > asked->most_pages)
	{
		answer->why = psprintf(INT64_FORMAT " pages would have to be compared", pages);
		return "rows";
	}
	if (plan->dropped)
	{
		forget_unlinks(memory, asked->lease);
		close_unlinked();
	}
	lock_fresh(plan, asked->lease);
	if (list_length(plan->locks) > MOST_LOCKS)
	{
		answer->why = psprintf("%d relations would have to be locked", list_length(plan->locks));
		return "rows";
	}
	if (!lock_all(plan, asked->lease))
		return "locked";
	/* Whoever came between the reading and the locks. */
	answer->present = look_around(asked->lease, asked->ours, asked->nours);
	if (answer->present.busy != NIL || answer->present.prepared || somebody_wrote(asked, answer))
		return "busy";
	plan->activity = answer->present.activity;
	find_buffered(plan, work, memory);
	measure_all(plan, asked->lease);
	if (asked->name == NULL && (answer->why = no_room_for(plan->targets)) != NULL)
		return "rows";
	if (plan->catalogs && disturbs_temporary(asked, &answer->present, plan->targets))
		return "temporary";
	work->end = answer->upto;
	work->contiguous = true;
	work->weak = plan->weak;
	return NULL;
}

/* The pages equal the state to go back to, up to here. */
void
remember(const Asked *asked, Answer *answer, Work *work, uint32 passes, uint32 hand)
{
	Memory	   *memory = memory_of(asked->lease);

	/* Nobody wrote in between: our own records need not be read the next time. */
	if (TransactionIdIsValid(answer->xid) && work->contiguous)
		answer->upto = work->end;
	memory->upto = answer->upto;
	memory->hand = hand;
	memory->passes = passes;
}

const char *
rewind_lease(const Asked *asked, Answer *answer, Work *work)
{
	RewindPlan	plan;
	uint32		passes,
				hand = StrategySyncStart(&passes, NULL);
	const char *status = approach(asked, answer, &plan, work);

	if (status == NULL)
	{
		/* From here on the records are ours, by their transaction. */
		answer->xid = GetTopTransactionId();
		put_all_back(asked, &plan, memory_of(asked->lease), work);
		status = "rewound";
	}
	else if (strcmp(status, "nothing") != 0)
		return status;
	if (settle_owners(asked, answer->owners, TransactionIdIsValid(answer->xid), work))
		answer->owners = NIL;
	remember(asked, answer, work, passes, hand);
	return status;
}
