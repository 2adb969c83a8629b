/*
 * One relation's files, as the baseline's: truncated, made again, compared, copied, logged.
 *
 * The caller holds the relation's lock, so nobody else changes its pages or its size.
 */
#include "pgh.h"

#include "access/xlog.h"
#include "access/xloginsert.h"
#include "access/xlogutils.h"
#include "catalog/pg_tablespace_d.h"
#include "catalog/storage.h"
#include "catalog/storage_xlog.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"

#include "access/xlog_internal.h"

/* A record of ours was written: does it follow the one before, with nobody's in between? */
static void
follow(Work *work)
{
	if (ProcLastRecPtr != first_record(work->end))
		work->contiguous = false;
	work->end = XactLastRecEnd;
}

static bool
is_logged(const Target *target, ForkNumber fork)
{
	/* Of an unlogged relation recovery keeps the fork to which it resets, and that only. */
	return !target->known->unlogged || fork == INIT_FORKNUM;
}

/* How large the relation's forks are in the baseline. */
void
measure(Work *work, Target *target)
{
	SMgrRelation source = OPEN(LOCATOR(DEFAULTTABLESPACE_OID, work->baseline, target->node));

	for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
		target->want[fork] = smgrexists(source, fork) ? smgrnblocks(source, fork) : InvalidBlockNumber;
}

static bool
compares_all(const Target *target, ForkNumber fork)
{
	if (target->remade || (target->dirty != NULL && target->dirty->all))
		return true;
	if (target->known->unlogged)
		return true;
	switch (fork)
	{
		case FSM_FORKNUM:
#ifdef PGH_PLANT_NO_FSM
			return false;
#endif
			return true;		/* is not in the log at all */
		case VISIBILITYMAP_FORKNUM:
#ifdef PGH_PLANT_NO_VM
			return false;
#endif
			return true;		/* a bit is cleared by a record that names the heap's page only */
		case MAIN_FORKNUM:
#ifdef PGH_PLANT_INDEX_HINTS
			return false;
#endif
			/* Scans mark index tuples dead, which is not in the log. */
			return target->known->kind == 'i' && target->buffered == NULL;
		default:
			return false;
	}
}

/* How many pages of the lease and as many of the baseline have to be looked at. */
int64
pages_to_compare(Work *work, Target *target)
{
	int64		pages = 0;

	for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
	{
		if (target->want[fork] == InvalidBlockNumber)
			continue;
		if (compares_all(target, fork))
			pages += target->want[fork];
		else if (target->dirty != NULL)
			pages += bms_num_members(target->dirty->blocks[fork]);
	}
	return pages;
}

/* Pages of these indexes that lie in the buffers: where none was evicted, only they can differ. */
void
buffered_pages(Work *work, HTAB *targets)
{
	for (int i = 0; i < NBuffers; i++)
	{
		BufferDesc *buffer = GetBufferDescriptor(i);
		RelNumber	node;
		Target	   *target;

		/* Without the header's lock: nobody but us brings in or changes pages of a locked relation. */
		if (!(pg_atomic_read_u32(&buffer->state) & BM_TAG_VALID) || BUFFER_DB(buffer) != work->lease)
			continue;
		node = BUFFER_REL(buffer);
		target = hash_search(targets, &node, HASH_FIND, NULL);
		if (target != NULL && target->buffered != NULL && buffer->tag.forkNum == MAIN_FORKNUM &&
			buffer->tag.blockNum < (BlockNumber) PG_INT32_MAX)
			target->buffered = bms_add_member(target->buffered, (int) buffer->tag.blockNum);
	}
}

/* Cut all forks that are longer than the baseline's, in one act. */
static void
shorten(Work *work, Target *target, SMgrRelation smgr, const BlockNumber *have)
{
	ForkNumber	forks[FORKS];
	BlockNumber old[FORKS],
				want[FORKS];
	int			n = 0;
	int			logged = 0,
				emptied = 0;

	for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
	{
		BlockNumber wanted = target->want[fork] == InvalidBlockNumber ? 0 : target->want[fork];

		if (have[fork] == InvalidBlockNumber || have[fork] <= wanted)
			continue;
		forks[n] = fork;
		old[n] = have[fork];
		want[n++] = wanted;
		/* The record counts the heap's blocks; how long the maps are then is reckoned from them. */
		if (fork == MAIN_FORKNUM)
			logged |= SMGR_TRUNCATE_HEAP;
		else if (fork <= VISIBILITYMAP_FORKNUM && wanted > 0)
			logged |= fork == FSM_FORKNUM ? SMGR_TRUNCATE_FSM : SMGR_TRUNCATE_VM;
		else if (fork <= VISIBILITYMAP_FORKNUM)
			emptied |= fork == FSM_FORKNUM ? SMGR_TRUNCATE_FSM : SMGR_TRUNCATE_VM;
	}
	if (n == 0)
		return;

	/* As RelationTruncate does: no checkpoint between the record and the files. */
	MyProc->delayChkptFlags |= DELAY_CHKPT_START | DELAY_CHKPT_COMPLETE;
	START_CRIT_SECTION();
	if (!target->known->unlogged)
		for (int i = 0; i < 2; i++)
		{
			xl_smgr_truncate rec;

			rec.flags = i == 0 ? logged : emptied;
			if (rec.flags == 0)
				continue;
			rec.blkno = i == 0 ? target->want[MAIN_FORKNUM] : 0;
			RECORD_LOCATOR(&rec) = LOCATOR(DEFAULTTABLESPACE_OID, work->lease, target->node);
			XLogBeginInsert();
			XLogRegisterData((char *) &rec, sizeof rec);
			XLogFlush(XLogInsert(RM_SMGR_ID, XLOG_SMGR_TRUNCATE | XLR_SPECIAL_REL_UPDATE));
			follow(work);
		}

	/*
	 * The sizes that smgrnblocks has just told are exact, since we hold the lock.  PostgreSQL believes such a size only in
	 * recovery, where nobody else extends a relation, and searches all buffers else: 0.1 ms for each relation.
	 */
	InRecovery = true;
	SMGRTRUNCATE(smgr, forks, n, old, want);
	InRecovery = false;
	END_CRIT_SECTION();
	MyProc->delayChkptFlags &= ~(DELAY_CHKPT_START | DELAY_CHKPT_COMPLETE);
	work->truncated++;
}

static void
put_back(Work *work, Target *target, ForkNumber fork, BlockNumber block)
{
	/* Behind the LSN and the checksum: they are the log's and the file's, not the content's. */
	const size_t head = offsetof(PageHeaderData, pd_flags);
	bool		logged = is_logged(target, fork);
	Buffer		source,
				lease;
	char	   *is,
			   *wanted;

	source = ReadBufferWithoutRelcache(LOCATOR(DEFAULTTABLESPACE_OID, work->baseline, target->node), fork, block,
									   RBM_NORMAL, NULL, logged);
	lease = ReadBufferWithoutRelcache(LOCATOR(DEFAULTTABLESPACE_OID, work->lease, target->node), fork, block,
									  RBM_NORMAL, NULL, logged);
	LockBuffer(source, BUFFER_LOCK_SHARE);
	LockBuffer(lease, BUFFER_LOCK_EXCLUSIVE);
	is = (char *) BufferGetPage(lease);
	wanted = (char *) BufferGetPage(source);
	work->compared++;
	if (memcmp(is + head, wanted + head, BLCKSZ - head) != 0)
	{
		START_CRIT_SECTION();
		if (PageIsNew((Page) wanted))
			/* Nobody sets the LSN of such a page, and one that is left there makes the page invalid. */
			memcpy(is, wanted, BLCKSZ);
		else
			memcpy(is + head, wanted + head, BLCKSZ - head);
		MarkBufferDirty(lease);
#ifdef PGH_PLANT_UNLOGGED_COPY
		logged = false;
#endif
		if (logged)
		{
			/* Heaps and indexes have the standard layout: the hole in the page is left out. Maps have none. */
			log_newpage_buffer(lease, fork == MAIN_FORKNUM);
			follow(work);
		}
		END_CRIT_SECTION();
		work->written++;
	}
	UnlockReleaseBuffer(lease);
	UnlockReleaseBuffer(source);
}

static void
put_back_members(Work *work, Target *target, ForkNumber fork, const Bitmapset *blocks)
{
	for (int block = -1; (block = bms_next_member(blocks, block)) >= 0;)
		if ((BlockNumber) block < target->want[fork])
			put_back(work, target, fork, (BlockNumber) block);
}

/* All of one relation's files. */
void
restore(Work *work, Target *target)
{
	Locator		at = LOCATOR(DEFAULTTABLESPACE_OID, work->lease, target->node);
	SMgrRelation smgr = OPEN(at);
	BlockNumber have[FORKS];

	for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
	{
		have[fork] = smgrexists(smgr, fork) ? smgrnblocks(smgr, fork) : InvalidBlockNumber;
		if (have[fork] == InvalidBlockNumber && target->want[fork] != InvalidBlockNumber)
		{
			/* "As in recovery": what waits to be unlinked is there, and empty. */
			smgrcreate(smgr, fork, true);
			if (is_logged(target, fork))
			{
				log_smgrcreate(&at, fork);
				follow(work);
			}
			have[fork] = 0;
			target->remade = true;
			work->made++;
		}
	}
	shorten(work, target, smgr, have);
	for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
	{
		BlockNumber want = target->want[fork],
					first_new = Min(have[fork], want);
		bool		all = compares_all(target, fork);

		if (want == InvalidBlockNumber)
			continue;
		for (BlockNumber block = first_new; block < want; block++)
		{
			PGIOAlignedBlock zeros;

			memset(zeros.data, 0, BLCKSZ);
			smgrextend(smgr, fork, block, zeros.data, true);
		}
		CHECK_FOR_INTERRUPTS();
		if (all)
			for (BlockNumber block = 0; block < want; block++)
				put_back(work, target, fork, block);
		else
		{
			for (BlockNumber block = first_new; block < want; block++)
				put_back(work, target, fork, block);
			if (target->dirty != NULL)
				put_back_members(work, target, fork, target->dirty->blocks[fork]);
			if (fork == MAIN_FORKNUM)
				put_back_members(work, target, fork, target->buffered);
		}
	}
}
