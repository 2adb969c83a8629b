/*
 * One relation's files, as the baseline's: measured, cut, made again; and those that the baseline has not, dropped.
 *
 * The caller holds the relation's lock, so nobody else changes its size.
 */
#include "pgh.h"

#include <unistd.h>

#include "access/xlog.h"
#include "access/xloginsert.h"
#include "access/xlogutils.h"
#include "catalog/pg_tablespace_d.h"
#include "catalog/storage.h"
#include "catalog/storage_xlog.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "storage/md.h"
#include "storage/procsignal.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timeout.h"

/* How large the relation's forks are in the baseline: once, for it never changes. */
void
measure_baseline(Oid baseline, Known *known)
{
	SMgrRelation source;

	if (known->measured)
		return;
	source = OPEN(LOCATOR(DEFAULTTABLESPACE_OID, baseline, known->node));
	for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
		known->want[fork] = smgrexists(source, fork) ? smgrnblocks(source, fork) : InvalidBlockNumber;
	if (known->want[MAIN_FORKNUM] == InvalidBlockNumber)
		ereport(ERROR, errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("the baseline has no file %u", known->node));
	known->measured = true;
}

/* Which forks a relation may have in the lease though it has none in the baseline: to look for each takes long. */
static bool
may_have(const Target *target, ForkNumber fork)
{
	char		kind = target->known->kind;

	if (kind == 'S')
		return false;
	/* The log says nothing of it. */
	if (target->known->unlogged)
		return fork != INIT_FORKNUM;
	switch (fork)
	{
		case FSM_FORKNUM:
			/* Of an index it is made when the first page becomes free. */
			return kind != 'i' || (target->dirty != NULL && !target->dirty->inserted);
		case VISIBILITYMAP_FORKNUM:
			/* Made to set a bit, which is logged. */
			return kind != 'i' && target->dirty != NULL && target->dirty->blocks[fork] != NULL;
		default:
			return false;
	}
}

/* How large they are in the lease.  To look for a file takes longer than to ask for the size of one that must be there. */
static void
measure_lease(Oid lease, Target *target)
{
	SMgrRelation smgr = known_lease(target->known, lease);

	/* Nothing is left but what waits to be unlinked, and is empty (make_again looks). */
	if (target->dirty != NULL && target->dirty->unlinked)
	{
		for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
			target->have[fork] = fork == MAIN_FORKNUM ? 0 : InvalidBlockNumber;
		return;
	}
	for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
	{
		bool		exists = target->known->want[fork] != InvalidBlockNumber;

		if ((target->dirty != NULL && target->dirty->all) || (!exists && may_have(target, fork)))
			exists = smgrexists(smgr, fork);
		target->have[fork] = exists ? smgrnblocks(smgr, fork) : InvalidBlockNumber;
	}
}

void
measure_all(RewindPlan *plan, Oid lease)
{
	HASH_SEQ_STATUS scan;
	Target	   *target;

	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		measure_lease(lease, target);
}

/* --- cut ------------------------------------------------------------------------------------------------------------ */

typedef struct Cut
{
	ForkNumber	forks[FORKS];
	BlockNumber old[FORKS],
				want[FORKS];
	int			n;
	int			logged,			/* which forks are cut to what the size of the heap says .. */
				emptied;		/* .. and which to nothing */
} Cut;

/* The forks that are longer than the baseline's. */
static Cut
cut_of(const Target *target)
{
	Cut			cut = {0};

	for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
	{
		BlockNumber have = target->have[fork],
					want = target->known->want[fork];
		int			flag = fork == MAIN_FORKNUM ? SMGR_TRUNCATE_HEAP :
			fork == FSM_FORKNUM ? SMGR_TRUNCATE_FSM : fork == VISIBILITYMAP_FORKNUM ? SMGR_TRUNCATE_VM : 0;

		if (want == InvalidBlockNumber)
			want = 0;
		if (have == InvalidBlockNumber || have <= want)
			continue;
		cut.forks[cut.n] = fork;
		cut.old[cut.n] = have;
		cut.want[cut.n++] = want;
		if (fork == MAIN_FORKNUM || want > 0)
			cut.logged |= flag;
		else
			cut.emptied |= flag;
	}
	return cut;
}

static void
log_cut(Work *work, RelNumber node, int flags, BlockNumber heap)
{
	xl_smgr_truncate rec;

	if (flags == 0)
		return;
	/* The record counts the heap's blocks; recovery reckons the length of the maps from them. */
	rec.blkno = heap;
	rec.flags = flags;
	RECORD_LOCATOR(&rec) = LOCATOR(DEFAULTTABLESPACE_OID, work->lease, node);
	XLogBeginInsert();
	XLogRegisterData((char *) &rec, sizeof rec);
	(void) XLogInsert(RM_SMGR_ID, XLOG_SMGR_TRUNCATE | XLR_SPECIAL_REL_UPDATE);
	follow(work);
}

/* Cut all that grew, and drop what the baseline has not: one flush of the log for all relations. */
void
shorten_all(Work *work, RewindPlan *plan, Memory *memory)
{
	HASH_SEQ_STATUS scan;
	Target	   *target;
	ListCell   *cell;
	int			n = 0;

	/* Else a relation's files would be opened where no error may happen. */
	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
	{
		Cut			cut = cut_of(target);

		/* Since 18, mdtruncate cuts only the segments that are open, and smgrnblocks opens them all. */
		for (int i = 0; i < cut.n; i++)
			(void) smgrnblocks(known_lease(target->known, work->lease), cut.forks[i]);
		n += cut.n > 0;
	}
	if (n == 0 && plan->fresh == NIL)
	{
		drop_fresh(plan, memory, work->lease, work);
		return;
	}
	work->truncated += n;

#ifdef PGH_PLANT_SLOW_CUT
	pg_usleep(1000000);
#endif

	/*
	 * Pages that are cut off must not be pinned: smgrtruncate waits for each pin, and nothing interrupts it. A reader who is not
	 * locked out may hold one until its client fetches on. So nobody may take a snapshot until they are gone.
	 */
	if (work->weak && n > 0)
	{
		LWLockAcquire(ProcArrayLock, LW_EXCLUSIVE);
		if (anybody_reads(work->lease))
			ereport(ERROR, errcode(ERRCODE_OBJECT_IN_USE),
					errmsg("a session that was idle in its transaction went on before pages were cut off"));
	}

	/* As RelationTruncate does: no checkpoint between the records and the files, and no way back. */
	MyProc->delayChkptFlags |= DELAY_CHKPT_START | DELAY_CHKPT_COMPLETE;
	START_CRIT_SECTION();
	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
	{
		Cut			cut = cut_of(target);

		if (target->known->unlogged)
			continue;
		log_cut(work, target->node, cut.logged, target->known->want[MAIN_FORKNUM]);
		log_cut(work, target->node, cut.emptied, 0);
	}
	foreach(cell, plan->fresh)
		if (!((Dirty *) lfirst(cell))->unlogged)
			log_cut(work, ((Dirty *) lfirst(cell))->node, SMGR_TRUNCATE_ALL, 0);
	XLogFlush(XactLastRecEnd);

	/*
	 * The sizes are exact, since we hold the locks.  PostgreSQL believes a size that it remembers only in recovery, where nobody
	 * else extends a relation, and searches all buffers else: 0.1 ms for each relation.
	 */
	InRecovery = true;
	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
	{
		Cut			cut = cut_of(target);

		if (cut.n > 0)
			SMGRTRUNCATE(known_lease(target->known, work->lease), cut.forks, cut.n, cut.old, cut.want);
	}
	InRecovery = false;
	END_CRIT_SECTION();
	if (work->weak && n > 0)
		LWLockRelease(ProcArrayLock);
	drop_fresh(plan, memory, work->lease, work);
	MyProc->delayChkptFlags &= ~(DELAY_CHKPT_START | DELAY_CHKPT_COMPLETE);
}

/* --- made again ------------------------------------------------------------------------------------------------------ */

/*
 * Of a file that was dropped the first segment stays, empty, until the next checkpoint unlinks it; that must not happen to
 * those that are made again under the same number.  The request goes for all files of the database, so those that really are
 * to be unlinked are unlinked here.  It also forgets what is to be written through to the disk: hence only without fsync.
 */
void
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
void
close_unlinked(void)
{
	enable_timeout_after(STATEMENT_TIMEOUT, BARRIER_PATIENCE);
	WaitForProcSignalBarrier(EmitProcSignalBarrier(PROCSIGNAL_BARRIER_SMGRRELEASE));
	disable_timeout(STATEMENT_TIMEOUT, false);
}

/* The forks that the baseline has and the lease has not. */
void
make_again(Work *work, Target *target)
{
	Locator		at = LOCATOR(DEFAULTTABLESPACE_OID, work->lease, target->node);

	for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
	{
		/* What waits to be unlinked is there, and empty; to recovery it is gone. */
		if (target->known->want[fork] == InvalidBlockNumber ||
			(target->have[fork] != InvalidBlockNumber && !(target->dirty != NULL && target->dirty->dropped)))
			continue;
		/* "As in recovery": it may be there. */
		smgrcreate(known_lease(target->known, work->lease), fork, true);
		if (target->dirty != NULL && target->dirty->unlinked && smgrnblocks(known_lease(target->known, work->lease), fork) != 0)
			ereport(ERROR, errcode(ERRCODE_DATA_CORRUPTED), errmsg("file %u was dropped and is not empty", target->node));
		if (is_logged(target, fork))
		{
			log_smgrcreate(&at, fork);
			follow(work);
		}
		if (target->have[fork] == InvalidBlockNumber)
			target->have[fork] = 0;
		target->remade = true;
		work->made++;
	}
}
