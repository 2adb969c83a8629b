/*
 * One rewind: look, lock, look again, put back, tell.  Or one mark: look, lock, look again, write down.
 *
 * Called in the maintenance database, in a transaction of its own.  Until the first page is written every refusal is an
 * answer, and leaves the lease as it was.  After it, an error leaves the lease undefined: the caller replaces it.
 */
#include "pgh.h"

#include <unistd.h>

#include "access/htup_details.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlogutils.h"
#include "catalog/catalog.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_tablespace_d.h"
#include "catalog/pg_type.h"
#include "catalog/storage.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "replication/message.h"
#include "storage/fd.h"
#include "storage/lmgr.h"
#include "storage/md.h"
#include "storage/procsignal.h"
#include "storage/sinval.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/pgstat_internal.h"
#include "utils/relcache.h"
#include "utils/timeout.h"

PG_MODULE_MAGIC;

#define FIRST_USER_OID 16384
#define FEW_PAGES 256			/* up to so many of indexes are compared all: to look for them in the buffers takes as long */

/* The rest of the server's table of locks is others': whoever finds it full gets an error. */
#define MOST_LOCKS (max_locks_per_xact * (MaxBackends + max_prepared_xacts) / 4 * 3)

PG_FUNCTION_INFO_V1(pgh_rewind);
PG_FUNCTION_INFO_V1(pgh_rewind_to);
PG_FUNCTION_INFO_V1(pgh_mark);

typedef struct Answer
{
	const char *status,
			   *why;
	XLogRecPtr	upto;
	TransactionId xid;
	Present		present;
	List	   *shared,
			   *touched;
	XLogRecPtr	since;
} Answer;

/* What is asked for. */
typedef struct Asked
{
	Oid			lease,
				baseline;
	XLogRecPtr	since;
	Datum	   *own,
			   *ours,
			   *empty;
	int			nown,
				nours,
				nempty;
	int64		most_bytes,
				most_pages;
	ArrayType  *marks,			/* that are set, the lowest first */
			   *above;			/* whose states the lease may have pages of, though the log does not say it any more */
	const char *name;			/* of the mark to be set */
	Datum	   *nodes,			/* which relations the lease has now, as for pgh_know; none: not told */
			   *oids,
			   *tables,
			   *unlogged;
	char	   *kinds;
	int			nnodes,
				nunlogged;
} Asked;

/* --- which files ---------------------------------------------------------------------------------------------------- */

typedef struct RewindPlan
{
	HTAB	   *targets;		/* of Target */
	List	   *fresh;			/* numbers of files that the baseline has not */
	List	   *locks;			/* OIDs */
	List	   *touched;		/* OIDs of tables and sequences */
	bool		catalogs;
	bool		dropped;		/* files of the baseline were */
	bool		weak;			/* sessions in a transaction hold locks on what was put back */
	uint64		activity;		/* .. and what they did before */
	bool		by_buffers;		/* of indexes only the pages in the buffers are compared */
} RewindPlan;

static void
add_target(RewindPlan *plan, Seen *seen, RelNumber node)
{
	Known	   *known = known_file(node);
	bool		found;
	Target	   *target;

	/* Of a family that a mark has made smaller. */
	if (known == NULL)
		return;
	target = hash_search(plan->targets, &node, HASH_ENTER, &found);
	if (found)
		return;
	target->known = known;
	target->dirty = hash_search(seen->files, &node, HASH_FIND, NULL);
	target->buffered = NULL;
	target->remade = target->dirty != NULL && target->dirty->dropped;
	/* An index is never used without its table's lock. */
	if (target->known->kind != 'i')
		plan->locks = lappend_oid(plan->locks, target->known->oid);
	plan->catalogs |= target->known->oid < FIRST_USER_OID;
	plan->dropped |= target->remade;
	if (target->known->oid >= FIRST_USER_OID && target->known->kind != 'i' && target->known->kind != 't')
		plan->touched = lappend_oid(plan->touched, target->known->oid);
}

/* The files that were written, and those beside them that the log does not name. */
static RewindPlan
make_plan(Seen *seen)
{
	RewindPlan		plan = {0};
	HASH_SEQ_STATUS scan;
	Dirty	   *dirty;
	ListCell   *cell;

	plan.targets = make_table("pgh targets", 64, sizeof(RelNumber), sizeof(Target), CurrentMemoryContext);
	foreach(cell, known_unlogged)
		add_target(&plan, seen, lfirst_oid(cell));
	hash_seq_init(&scan, seen->files);
	while ((dirty = hash_seq_search(&scan)) != NULL)
	{
		Known	   *known = known_file(dirty->node);

		if (known == NULL)
		{
			plan.fresh = lappend_oid(plan.fresh, dirty->node);
			/* A new relation's file has its OID for a number, until it is rewritten. */
			plan.locks = lappend_oid(plan.locks, dirty->node);
			continue;
		}
		foreach(cell, known_family(known->table))
			add_target(&plan, seen, lfirst_oid(cell));
	}
	return plan;
}

/* --- locks ---------------------------------------------------------------------------------------------------------- */

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
somebody_wrote(const Asked *asked, XLogRecPtr *upto, List **shared)
{
	Seen		seen;
	XLogRecPtr	later = GetXLogInsertRecPtr();

	if (later == *upto)
		return false;
	later = LOG_MESSAGE();
	XLogFlush(later);
	seen_begin(&seen);
	read_log(&seen, *upto, later, asked->lease, asked->own, asked->nown);
	*shared = list_concat_unique_oid(*shared, seen.shared);
	*upto = later;
	return seen.refused != NULL || hash_get_num_entries(seen.files) > 0;
}

/* --- what the baseline has not --------------------------------------------------------------------------------------- */

/*
 * Of a file that was dropped the first segment stays, empty, until the next checkpoint unlinks it; that must not happen to
 * those that are made again under the same number.  The request goes for all files of the database, so those that really are
 * to be unlinked are unlinked here.  It also forgets what is to be written through to the disk: hence only without fsync.
 */
static void
forget_unlinks(Memory *memory, Oid lease)
{
	ListCell   *cell;

	ForgetDatabaseSyncRequests(lease);
	foreach(cell, memory->tombstones)
	{
		Locator		at = LOCATOR(DEFAULTTABLESPACE_OID, lease, lfirst_oid(cell));

		if (known_file(REL(at)) != NULL)
			continue;

		(void) unlink(FILE_PATH(at, MAIN_FORKNUM));
	}
	list_free(memory->tombstones);
	memory->tombstones = NIL;
}

#define BARRIER_PATIENCE 5000	/* ms: a session that waits for its client in the middle of COPY comes to no barrier */

/*
 * Two things for one wait.  Maps and further segments were unlinked at once: whoever holds such a file open, the background writer
 * for instance, would write pages of the new one into it.  And the checkpointer does not come to a barrier between reading its
 * requests and the end of its unlinking: past it, ours was read, or will be before it unlinks again.
 *
 * Nothing may be locked meanwhile: a session that ends waits for locks, to remove its temporary tables, and comes to no barrier.
 */
static void
close_unlinked(void)
{
	enable_timeout_after(STATEMENT_TIMEOUT, BARRIER_PATIENCE);
	WaitForProcSignalBarrier(EmitProcSignalBarrier(PROCSIGNAL_BARRIER_SMGRRELEASE));
	disable_timeout(STATEMENT_TIMEOUT, false);
}

/* With the COMMIT, which logs it. */
static void
drop_fresh(RewindPlan *plan, Memory *memory, Oid lease, Work *work)
{
	ListCell   *cell;

	foreach(cell, plan->fresh)
	{
		Locator		at = LOCATOR(DEFAULTTABLESPACE_OID, lease, lfirst_oid(cell));
		MemoryContext old;
		Relation	relation;

		if (!smgrexists(OPEN(at), MAIN_FORKNUM))
			continue;
		relation = CreateFakeRelcacheEntry(at);
#if PG_VERSION_NUM < 160000
		relation->rd_rel->relpersistence = RELPERSISTENCE_PERMANENT;
#endif
#if PG_VERSION_NUM >= 170000
		/* It is not pinned, as that of a real entry is. */
		relation->rd_smgr = NULL;
#endif
		RelationDropStorage(relation);
		FreeFakeRelcacheEntry(relation);
		old = MemoryContextSwitchTo(TopMemoryContext);
		memory->tombstones = lappend_oid(memory->tombstones, REL(at));
		MemoryContextSwitchTo(old);
		work->dropped++;
	}
}

/* --- what other sessions are told ------------------------------------------------------------------------------------- */

typedef struct Messages
{
	int			n;
	SharedInvalidationMessage all[64];
} Messages;

static void
send_all(Messages *messages)
{
	if (messages->n > 0)
		SendSharedInvalidMessages(messages->all, messages->n);
	messages->n = 0;
}

static SharedInvalidationMessage *
next_message(Messages *messages)
{
	SharedInvalidationMessage *message;

	if (messages->n == lengthof(messages->all))
		send_all(messages);
	message = &messages->all[messages->n++];
	memset(message, 0, sizeof *message);
	return message;
}

static void
relation_message(Messages *messages, Oid lease, Oid relation)
{
	SharedInvalidationMessage *message = next_message(messages);

	message->rc.id = SHAREDINVALRELCACHE_ID;
	message->rc.dbId = lease;
	message->rc.relId = relation;
}

/*
 * Sessions keep of a relation: the root of its index, where the next row belongs, its size, its open files, its description.
 */
static void
tell(RewindPlan *plan, Oid lease)
{
	Messages	messages;
	HASH_SEQ_STATUS scan;
	Target	   *target;

	messages.n = 0;
	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
	{
#if PG_VERSION_NUM >= 170000
		/* Where the next row belongs; before 17 it goes with the description. What was cut or dropped was told there. */
		SharedInvalidationMessage *message = next_message(&messages);

		message->sm.id = SHAREDINVALSMGR_ID;
		message->sm.backend_hi = NOBODY >> 16;
		message->sm.backend_lo = NOBODY & 0xffff;
		message->sm.rlocator = LOCATOR(DEFAULTTABLESPACE_OID, lease, target->node);
#endif
#ifndef PGH_PLANT_NO_RELCACHE
		if (!plan->catalogs)
			relation_message(&messages, lease, target->known->oid);
#endif
	}
#ifndef PGH_PLANT_NO_RELCACHE
	if (plan->catalogs)
	{
		/* Rows of catalogs went back: whatever was kept of any of them is forgotten, plans too. */
		static const Oid catalogs[] = {
#include "catalogs.h"
		};

		for (int i = 0; i < (int) lengthof(catalogs); i++)
		{
			SharedInvalidationMessage *message = next_message(&messages);

			message->cat.id = SHAREDINVALCATALOG_ID;
			message->cat.dbId = lease;
			message->cat.catId = catalogs[i];
		}
		relation_message(&messages, lease, InvalidOid);
	}
#endif
	send_all(&messages);
}

/*
 * Who holds a lock does not look for messages when he uses that relation again: he is woken, and reads them before the next
 * statement, since a session processes its interrupts before it reads from its client, who has not got our answer yet.
 */
static void
wake(Oid lease)
{
	for (int i = 0; i < ProcGlobal->allProcCount; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];

		if (proc->databaseId == lease && proc->pid != 0 && proc->pid != MyProcPid)
			(void) SendProcSignal(proc->pid, PROCSIG_CATCHUP_INTERRUPT, NUMBER_OF(proc));
	}
}

/*
 * What was counted of relations that are no more would stay in shared memory for ever: DROP TABLE would have removed it. And what
 * was counted of changes that are undone would bring autovacuum to them.
 */
static void
forget_statistics(RewindPlan *plan, Oid lease)
{
	TimestampTz now = GetCurrentTransactionStartTimestamp();
	HASH_SEQ_STATUS scan;
	Target	   *target;
	ListCell   *cell;
	bool		freed = true;

	foreach(cell, plan->fresh)
	{
		PgStat_EntryRef *there = pgstat_get_entry_ref(PGSTAT_KIND_RELATION, lease, lfirst_oid(cell), false, NULL);

		/* A transaction that was rolled back has dropped it itself: to do so again is an error. */
		if (there != NULL && !there->shared_entry->dropped)
			freed &= pgstat_drop_entry(PGSTAT_KIND_RELATION, lease, lfirst_oid(cell));
	}
	if (!freed)
		pgstat_request_entry_refs_gc();
	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		if (target->known->oid >= FIRST_USER_OID && target->known->kind != 'S')
			pgstat_reset_entry(PGSTAT_KIND_RELATION, lease, target->known->oid, now);
}

/* --- the order of it all ---------------------------------------------------------------------------------------------- */

/*
 * Whether temporary tables of sessions that stay would lose their rows in the catalogs.
 *
 * The namespaces that the baseline has stay.  What lies in them depends on them (pg_depend), and what was there at the last
 * rewind is gone: so only pages that were written since can say so.
 */
static bool
disturbs_temporary(const Asked *asked, const Present *present, HTAB *targets)
{
	HASH_SEQ_STATUS scan;
	Target	   *target;
	ListCell   *cell;
	bool		found = false;

	foreach(cell, present->temporary)
	{
		bool		stays = false;

		for (int i = 0; i < asked->nempty && !stays; i++)
			stays = DatumGetObjectId(asked->empty[i]) == lfirst_oid(cell);
		if (!stays)
			return true;
	}
	if (present->temporary == NIL)
		return false;
	hash_seq_init(&scan, targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		if (target->known->oid == DependRelationId && target->dirty != NULL)
			found |= anything_depends(asked->lease, target, present->temporary);
	return found;
}

static void
put_all_back(const Asked *asked, RewindPlan *plan, Memory *memory, Work *work)
{
	HASH_SEQ_STATUS scan;
	Target	   *target;

	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		make_again(work, target);
	shorten_all(work, plan->targets);
	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		restore(work, target);
	drop_fresh(plan, memory, asked->lease, work);
	if (plan->catalogs)
	{
		/* New sessions read it instead of the catalogs.  The lock: none that starts now writes the old one again. */
		LWLockAcquire(RelCacheInitLock, LW_EXCLUSIVE);
		(void) unlink(psprintf("%s/%s", GetDatabasePath(asked->lease, DEFAULTTABLESPACE_OID), RELCACHE_INIT_FILENAME));
	}
	tell(plan, asked->lease);
	if (plan->catalogs)
		LWLockRelease(RelCacheInitLock);
	forget_statistics(plan, asked->lease);
	if (plan->weak)
	{
		wake(asked->lease);
		/* Whoever read meanwhile, under the lock that it holds, may have read half of it, or left hints on pages that are back. */
		if (look_around(asked->lease, asked->ours, asked->nours).activity != plan->activity)
			ereport(ERROR, errcode(ERRCODE_OBJECT_IN_USE),
					errmsg("a session that was idle in its transaction went on while pages were put back"));
	}
}

/* How much is to be looked at; index pages are looked for in the buffers where that is less. */
static int64
weigh(RewindPlan *plan, Work *work, Memory *memory, const Asked *asked)
{
	HASH_SEQ_STATUS scan;
	Target	   *target;
	int64		pages = 0,
				of_indexes = 0;
	uint32		passes,
				hand = StrategySyncStart(&passes, NULL);
	bool		replaced = memory->upto != asked->since || memory->hand != hand || memory->passes != passes;

	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
	{
		measure_baseline(work->baseline, target->known);
		pages += pages_to_compare(target);
		if (target->known->kind == 'i' && !target->remade)
			of_indexes += target->known->want[MAIN_FORKNUM];
	}
	/* Only once they are locked: until then a reader may bring another one in, and leave a hint there. */
	plan->by_buffers = of_indexes > FEW_PAGES && !replaced;
	return plan->by_buffers ? pages - of_indexes : pages;
}

/* Which index pages lie in the buffers; none is evicted unseen, since the clock hand did not move. */
static void
find_buffered(RewindPlan *plan, Work *work, const Memory *memory)
{
	HASH_SEQ_STATUS scan;
	Target	   *target;
	uint32		passes;

	if (!plan->by_buffers)
		return;
	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		if (target->known->kind == 'i' && !target->remade && !target->known->unlogged)
			target->buffered = bms_make_singleton(0);
	buffered_pages(work, plan->targets);
	/* What was replaced since the last rewind was not seen: then all of them are compared after all. */
	if (StrategySyncStart(&passes, NULL) != memory->hand || passes != memory->passes)
	{
		hash_seq_init(&scan, plan->targets);
		while ((target = hash_seq_search(&scan)) != NULL)
			target->buffered = NULL;
	}
}

static void
measure_all(RewindPlan *plan, Oid lease)
{
	HASH_SEQ_STATUS scan;
	Target	   *target;

	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		measure_lease(lease, target);
}

/* Until the relations are locked, and nobody is in the way: NULL; else the status to answer. */
static const char *
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
	if ((answer->why = seen.refused) != NULL)
		return "rows";
	*plan = make_plan(&seen);
	answer->touched = plan->touched;
	if (hash_get_num_entries(plan->targets) == 0 && plan->fresh == NIL)
		return "nothing";
	pages = weigh(plan, work, memory, asked);
	if (pages > asked->most_pages)
	{
		answer->why = psprintf(INT64_FORMAT " pages would have to be compared", pages);
		return "rows";
	}
	if (list_length(plan->locks) > MOST_LOCKS)
	{
		answer->why = psprintf("%d relations would have to be locked", list_length(plan->locks));
		return "rows";
	}
	if (plan->dropped)
	{
		forget_unlinks(memory, asked->lease);
		close_unlinked();
	}
	if (!lock_all(plan, asked->lease))
		return "locked";
	/* Whoever came between the reading and the locks. */
	answer->present = look_around(asked->lease, asked->ours, asked->nours);
	if (answer->present.busy != NIL || answer->present.prepared || somebody_wrote(asked, &answer->upto, &answer->shared))
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
static void
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

static const char *
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
	remember(asked, answer, work, passes, hand);
	return status;
}

/* --- a mark --------------------------------------------------------------------------------------------------------------- */

/* Files that a mark's state adds are known for as long as it is written; an error may have left them. */
static List *provisional = NIL;

void
forget_provisional(void)
{
	ListCell   *cell;

	foreach(cell, provisional)
		forget_file(lfirst_oid(cell));
	list_free(provisional);
	provisional = NIL;
}

/* Which relations the mark's state has, and the one below has not, or the other way round. */
static void
compare_relations(const Asked *asked, RewindPlan *plan, MarkWriter *writer)
{
	HTAB	   *there;
	HASH_SEQ_STATUS scan;
	Target	   *target;

	there = make_table("pgh relations", asked->nnodes, sizeof(RelNumber), sizeof(RelNumber), CurrentMemoryContext);
	for (int i = 0; i < asked->nnodes; i++)
	{
		RelNumber	node = DatumGetObjectId(asked->nodes[i]);

		(void) hash_search(there, &node, HASH_ENTER, NULL);
		if (known_file(node) == NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
			bool		unlogged = false;
			bool		found;
			Known	   *known;

			for (int j = 0; j < asked->nunlogged && !unlogged; j++)
				unlogged = DatumGetObjectId(asked->unlogged[j]) == node;
			provisional = lappend_oid(provisional, node);
			MemoryContextSwitchTo(old);
			known = know_file(node, DatumGetObjectId(asked->oids[i]), DatumGetObjectId(asked->tables[i]), asked->kinds[i],
							  unlogged);
			known->measured = true;
			for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
				known->want[fork] = InvalidBlockNumber;
			target = hash_search(plan->targets, &node, HASH_ENTER, &found);
			target->known = known;
			target->dirty = NULL;
			target->buffered = NULL;
			target->remade = false;
			for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
				target->have[fork] = smgrexists(known_lease(known, asked->lease), fork) ?
					smgrnblocks(known_lease(known, asked->lease), fork) : InvalidBlockNumber;
		}
	}
	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		if (hash_search(there, &target->node, HASH_FIND, NULL) == NULL)
		{
			MarkNode	node = {target->node, target->known->oid, target->known->table, kind_of(target->known),
			target->known->unlogged, true};

			for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
				node.want[fork] = InvalidBlockNumber;
			mark_node(writer, &node);
			(void) hash_search(plan->targets, &target->node, HASH_REMOVE, NULL);
		}
}

static const char *
mark_lease(const Asked *asked, Answer *answer, Work *work)
{
	RewindPlan	plan = {0};
	uint32		passes,
				hand = StrategySyncStart(&passes, NULL);
	const char *status = approach(asked, answer, &plan, work);
	MarkWriter *writer;

	if (status != NULL && strcmp(status, "nothing") != 0)
		return status;
	if (status == NULL && plan.catalogs && asked->nnodes == 0)
		return "relations";
	writer = begin_mark(asked->name);
	if (status == NULL)
	{
		HASH_SEQ_STATUS scan;
		Target	   *target;

		answer->xid = GetTopTransactionId();
		if (plan.catalogs)
			compare_relations(asked, &plan, writer);
		hash_seq_init(&scan, plan.targets);
		while ((target = hash_seq_search(&scan)) != NULL)
			mark_target(work, target, writer);
	}
	end_mark(writer);
	forget_provisional();
	remember(asked, answer, work, passes, hand);
	return "marked";
}

/* --- what SQL sees ------------------------------------------------------------------------------------------------------ */

/* Of a list of OIDs, or of int4. */
static Datum
array_of(Oid type, const List *list)
{
	Datum	   *values = palloc(sizeof(Datum) * (list_length(list) + 1));
	ListCell   *cell;
	int			n = 0;

	foreach(cell, list)
		values[n++] = type == OIDOID ? ObjectIdGetDatum(lfirst_oid(cell)) : Int32GetDatum(lfirst_int(cell));
	return PointerGetDatum(construct_array(values, n, type, sizeof(int32), true, TYPALIGN_INT));
}

static int
argument(FunctionCallInfo fcinfo, int number, Oid type, Datum **values)
{
	return elements(PG_GETARG_ARRAYTYPE_P(number), type, values);
}

static Datum
as_row(FunctionCallInfo fcinfo, const Asked *asked, const Answer *answer, const Work *work)
{
	Datum		values[16];
	bool		nulls[16] = {0};
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE || desc->natts != lengthof(values))
		ereport(ERROR, errcode(ERRCODE_DATATYPE_MISMATCH), errmsg("declared with other columns"));
	memset(values, 0, sizeof values);
	values[0] = CStringGetTextDatum(answer->status);
	nulls[1] = answer->why == NULL;
	if (answer->why != NULL)
		values[1] = CStringGetTextDatum(answer->why);
	values[2] = LSNGetDatum(answer->upto);
	nulls[3] = !TransactionIdIsValid(answer->xid);
	values[3] = TransactionIdGetDatum(answer->xid);
	/* Who is in the way; and where nobody is, who idles in a transaction and may stay. */
	values[4] = array_of(INT4OID, answer->present.busy != NIL ? answer->present.busy : answer->present.idle);
	values[5] = BoolGetDatum(answer->present.prepared);
	values[6] = PointerGetDatum(advisory_locks(asked->lease, asked->ours, asked->nours));
	values[7] = array_of(OIDOID, answer->shared);
	values[8] = array_of(OIDOID, answer->present.temporary);
	values[9] = array_of(OIDOID, answer->touched);
	values[10] = Int64GetDatum(answer->upto > asked->since ? answer->upto - asked->since : 0);
	values[11] = Int64GetDatum(work->compared);
	values[12] = Int64GetDatum(work->written);
	values[13] = Int64GetDatum(work->truncated);
	values[14] = Int64GetDatum(work->made);
	values[15] = Int64GetDatum(work->dropped);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/* The arguments that all of the functions below begin with; declared with fewer, they would be read from nowhere. */
static Asked
asked_by(FunctionCallInfo fcinfo, int arguments)
{
	Asked		asked = {0};

	if (PG_NARGS() != arguments)
		ereport(ERROR, errcode(ERRCODE_INVALID_FUNCTION_DEFINITION), errmsg("declared with other arguments"));
	asked.lease = PG_GETARG_OID(0);
	asked.baseline = PG_GETARG_OID(1);
	asked.since = PG_GETARG_LSN(2);
	asked.nown = argument(fcinfo, 3, OIDOID, &asked.own);
	asked.nours = argument(fcinfo, 4, INT4OID, &asked.ours);
	asked.nempty = argument(fcinfo, 5, OIDOID, &asked.empty);
	asked.most_bytes = PG_GETARG_INT64(6);
	asked.most_pages = PG_GETARG_INT64(7);
	if (!OidIsValid(asked.baseline) || asked.baseline != known_baseline)
		ereport(ERROR, errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("this session does not know the files of baseline %u", asked.baseline));
	if (asked.lease == MyDatabaseId || asked.baseline == MyDatabaseId || asked.lease == asked.baseline)
		ereport(ERROR, errcode(ERRCODE_OBJECT_IN_USE),
				errmsg("a database cannot be rewound to itself, nor from inside"));
	if (asked.since % MAXIMUM_ALIGNOF != 0 || asked.since > GetXLogInsertRecPtr())
		ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%X/%X is no position of this server's log", LSN_FORMAT_ARGS(asked.since)));
	forget_provisional();
	return asked;
}

static Datum
rewind_as_asked(FunctionCallInfo fcinfo, const Asked *asked)
{
	Answer		answer = {0};
	Work		work = {0};

	work.lease = asked->lease;
	work.baseline = asked->baseline;
	answer.upto = asked->since;
	answer.status = asked->name == NULL ? rewind_lease(asked, &answer, &work) : mark_lease(asked, &answer, &work);
	return as_row(fcinfo, asked, &answer, &work);
}

/*
 * pgh_rewind(lease oid, baseline oid, since pg_lsn, own oid[], ours int[], empty oid[], most_bytes int8, most_pages int8,
 *     out status text, out why text, out upto pg_lsn, out xid oid, out busy int[], out prepared bool,
 *     out advisory text[], out shared oid[], out temporary oid[], out touched oid[],
 *     out read int8, out compared int8, out written int8, out truncated int8, out made int8, out dropped int8)
 */
Datum
pgh_rewind(PG_FUNCTION_ARGS)
{
	Asked		asked = asked_by(fcinfo, 8);

	asked.marks = asked.above = construct_empty_array(TEXTOID);
	return rewind_as_asked(fcinfo, &asked);
}

/*
 * pgh_rewind_to(.. as pgh_rewind .., marks text[], above text[], out .. as pgh_rewind ..)
 */
Datum
pgh_rewind_to(PG_FUNCTION_ARGS)
{
	Asked		asked = asked_by(fcinfo, 10);

	asked.marks = PG_GETARG_ARRAYTYPE_P(8);
	asked.above = PG_GETARG_ARRAYTYPE_P(9);
	return rewind_as_asked(fcinfo, &asked);
}

/*
 * pgh_mark(.. as pgh_rewind_to .., name text, nodes oid[], oids oid[], tables oid[], kinds text, unlogged oid[],
 *     out .. as pgh_rewind ..)
 *
 * status: marked; relations (call again, with those of the lease); busy, locked, temporary, rows as for pgh_rewind.
 */
Datum
pgh_mark(PG_FUNCTION_ARGS)
{
	Asked		asked = asked_by(fcinfo, 16);

	asked.marks = PG_GETARG_ARRAYTYPE_P(8);
	asked.above = PG_GETARG_ARRAYTYPE_P(9);
	asked.name = text_to_cstring(PG_GETARG_TEXT_PP(10));
	asked.nnodes = argument(fcinfo, 11, OIDOID, &asked.nodes);
	if (argument(fcinfo, 12, OIDOID, &asked.oids) != asked.nnodes ||
		argument(fcinfo, 13, OIDOID, &asked.tables) != asked.nnodes)
		ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("arrays of different lengths"));
	asked.kinds = text_to_cstring(PG_GETARG_TEXT_PP(14));
	if ((int) strlen(asked.kinds) != asked.nnodes)
		ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("arrays of different lengths"));
	asked.nunlogged = argument(fcinfo, 15, OIDOID, &asked.unlogged);
	return rewind_as_asked(fcinfo, &asked);
}
