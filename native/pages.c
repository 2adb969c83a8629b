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
#include "access/htup_details.h"
#include "access/nbtree.h"
#include "access/transam.h"
#include "catalog/storage.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_namespace.h"
#include "catalog/storage_xlog.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "storage/lwlock.h"

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
void
measure_lease(Oid lease, Target *target)
{
	SMgrRelation smgr = known_lease(target->known, lease);

	for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
	{
		bool		exists = target->known->want[fork] != InvalidBlockNumber;

		if ((target->dirty != NULL && target->dirty->all) || (!exists && may_have(target, fork)))
			exists = smgrexists(smgr, fork);
		target->have[fork] = exists ? smgrnblocks(smgr, fork) : InvalidBlockNumber;
	}
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
pages_to_compare(const Target *target)
{
	int64		pages = 0;

	for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
	{
		if (target->known->want[fork] == InvalidBlockNumber)
			continue;
		if (compares_all(target, fork))
			pages += target->known->want[fork];
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
log_cut(Work *work, const Target *target, int flags, BlockNumber heap)
{
	xl_smgr_truncate rec;

	if (flags == 0)
		return;
	/* The record counts the heap's blocks; recovery reckons the length of the maps from them. */
	rec.blkno = heap;
	rec.flags = flags;
	RECORD_LOCATOR(&rec) = LOCATOR(DEFAULTTABLESPACE_OID, work->lease, target->node);
	XLogBeginInsert();
	XLogRegisterData((char *) &rec, sizeof rec);
	(void) XLogInsert(RM_SMGR_ID, XLOG_SMGR_TRUNCATE | XLR_SPECIAL_REL_UPDATE);
	follow(work);
}

/* Cut all that grew: one flush of the log for all relations. */
void
shorten_all(Work *work, HTAB *targets)
{
	HASH_SEQ_STATUS scan;
	Target	   *target;
	int			n = 0;

	/* Else a relation's files would be opened where no error may happen. */
	hash_seq_init(&scan, targets);
	while ((target = hash_seq_search(&scan)) != NULL)
	{
		Cut			cut = cut_of(target);

		/* Since 18, mdtruncate cuts only the segments that are open, and smgrnblocks opens them all. */
		for (int i = 0; i < cut.n; i++)
			(void) smgrnblocks(known_lease(target->known, work->lease), cut.forks[i]);
		n += cut.n > 0;
	}
	if (n == 0)
		return;
	work->truncated += n;

#ifdef PGH_PLANT_SLOW_CUT
	pg_usleep(1000000);
#endif

	/*
	 * Pages that are cut off must not be pinned: smgrtruncate waits for each pin, and nothing interrupts it. A reader who is not
	 * locked out may hold one until its client fetches on. So nobody may take a snapshot until they are gone.
	 */
	if (work->weak)
	{
		LWLockAcquire(ProcArrayLock, LW_EXCLUSIVE);
		if (anybody_reads(work->lease))
			ereport(ERROR, errcode(ERRCODE_OBJECT_IN_USE),
					errmsg("a session that was idle in its transaction went on before pages were cut off"));
	}

	/* As RelationTruncate does: no checkpoint between the records and the files, and no way back. */
	MyProc->delayChkptFlags |= DELAY_CHKPT_START | DELAY_CHKPT_COMPLETE;
	START_CRIT_SECTION();
	hash_seq_init(&scan, targets);
	while ((target = hash_seq_search(&scan)) != NULL)
	{
		Cut			cut = cut_of(target);

		if (target->known->unlogged)
			continue;
		log_cut(work, target, cut.logged, target->known->want[MAIN_FORKNUM]);
		log_cut(work, target, cut.emptied, 0);
	}
	XLogFlush(XactLastRecEnd);

	/*
	 * The sizes are exact, since we hold the locks.  PostgreSQL believes a size that it remembers only in recovery, where nobody
	 * else extends a relation, and searches all buffers else: 0.1 ms for each relation.
	 */
	InRecovery = true;
	hash_seq_init(&scan, targets);
	while ((target = hash_seq_search(&scan)) != NULL)
	{
		Cut			cut = cut_of(target);

		if (cut.n > 0)
			SMGRTRUNCATE(known_lease(target->known, work->lease), cut.forks, cut.n, cut.old, cut.want);
	}
	InRecovery = false;
	END_CRIT_SECTION();
	if (work->weak)
		LWLockRelease(ProcArrayLock);
	MyProc->delayChkptFlags &= ~(DELAY_CHKPT_START | DELAY_CHKPT_COMPLETE);
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

static Buffer
lease_page(Work *work, const Target *target, ForkNumber fork, BlockNumber block)
{
	return ReadBufferWithoutRelcache(LOCATOR(DEFAULTTABLESPACE_OID, work->lease, target->node), fork, block, RBM_NORMAL,
									 NULL, is_logged(target, fork));
}

static Buffer
baseline_page(Work *work, const Target *target, ForkNumber fork, BlockNumber block)
{
	return ReadBufferWithoutRelcache(LOCATOR(DEFAULTTABLESPACE_OID, work->baseline, target->node), fork, block, RBM_NORMAL,
									 NULL, is_logged(target, fork));
}

/* Behind the LSN and the checksum: they are the log's and the file's, not the content's. */
#define CONTENT offsetof(PageHeaderData, pd_flags)

#define MOST_DELTA (BLCKSZ / 2)

static bool
differ(const char *one, const char *other)
{
	return memcmp(one + CONTENT, other + CONTENT, BLCKSZ - CONTENT) != 0;
}

/* Whether a page that the log does not name has none of the hints that are not in it: no need to look at the other one. */
static bool
is_untouched(const Target *target, ForkNumber fork, BlockNumber block, Page page)
{
	const Dirty *dirty = target->dirty;

	if (!target->known->btree || fork != MAIN_FORKNUM || target->known->unlogged || target->remade || PageIsNew(page))
		return false;
	if (dirty != NULL && (dirty->all || block > (BlockNumber) PG_INT32_MAX || bms_is_member((int) block, dirty->blocks[fork])))
		return false;
	/* Who marks a tuple dead sets it (_bt_killitems, _bt_check_unique). */
	return !(BTPageGetOpaque(page)->btpo_flags & BTP_HAS_GARBAGE);
}

/*
 * The bytes that differ, as generic_xlog.c writes them: (offset, length, bytes) each.  0 where an image is shorter, or the page has
 * not the standard layout, between whose pd_lower and pd_upper recovery puts zeros.
 */
static Size
delta_of(const char *is, const char *wanted, char *delta)
{
	const PageHeader header = (const PageHeader) wanted;
	Size		length = 0;
	int			at = CONTENT;

	if (PageIsNew((Page) is) || PageIsNew((Page) wanted) || header->pd_lower < SizeOfPageHeaderData ||
		header->pd_lower > header->pd_upper || header->pd_upper > header->pd_special || header->pd_special > BLCKSZ)
		return 0;
	while (at < BLCKSZ)
	{
		OffsetNumber from,
					bytes;
		int			end,
					same = 0;

		if (at >= header->pd_lower && at < header->pd_upper)
		{
			at = header->pd_upper;
			continue;
		}
		if (is[at] == wanted[at])
		{
			/* Eight at a time: nearly all of a page is equal. */
			while (at + 8 <= BLCKSZ && memcmp(is + at, wanted + at, 8) == 0)
				at += 8;
			if (at < BLCKSZ && is[at] == wanted[at])
				at++;
			continue;
		}
		/* Up to where so many bytes are equal that it is shorter to begin another one. */
		for (end = at + 1; end < (at < header->pd_lower ? header->pd_lower : BLCKSZ) && same <= 2 * sizeof(OffsetNumber); end++)
			same = is[end] == wanted[end] ? same + 1 : 0;
		from = at;
		bytes = end - at - same;
		if (length + 2 * sizeof(OffsetNumber) + bytes > MOST_DELTA)
			return 0;
		memcpy(delta + length, &from, sizeof from);
		memcpy(delta + length + sizeof from, &bytes, sizeof bytes);
		memcpy(delta + length + sizeof from + sizeof bytes, wanted + at, bytes);
		length += sizeof from + sizeof bytes + bytes;
		at = end;
	}
	return length;
}

static void
log_page(Work *work, Buffer buffer, bool standard, const char *delta, Size length)
{
	if (length == 0)
		(void) log_newpage_buffer(buffer, standard);
	else
	{
		XLogRecPtr	lsn;

		XLogBeginInsert();
		XLogRegisterBuffer(0, buffer, REGBUF_STANDARD);
		XLogRegisterBufData(0, (char *) delta, length);
		lsn = XLogInsert(RM_GENERIC_ID, 0);
		PageSetLSN(BufferGetPage(buffer), lsn);
	}
	follow(work);
}

static void
put_back(Work *work, Target *target, ForkNumber fork, BlockNumber block, bool made)
{
	bool		logged = is_logged(target, fork);
	char		delta[MOST_DELTA];
	Size		length;
	Buffer		source = InvalidBuffer,
				lease;
	char	   *is;
	const char *wanted;

	work->compared++;
	lease = lease_page(work, target, fork, block);
	LockBuffer(lease, BUFFER_LOCK_EXCLUSIVE);
	is = (char *) BufferGetPage(lease);
	if (is_untouched(target, fork, block, (Page) is))
	{
		UnlockReleaseBuffer(lease);
		return;
	}
	wanted = marked_page(target->node, fork, block);
	if (wanted == NULL)
	{
		/* Nobody but us locks pages of both databases. */
		source = baseline_page(work, target, fork, block);
		LockBuffer(source, BUFFER_LOCK_SHARE);
		wanted = (const char *) BufferGetPage(source);
	}
	/* One that was made just now is in the log even where it is empty: recovery makes it by that. */
	if (differ(is, wanted) || (made && logged))
	{
		/* Maps have not the standard layout, nor have all pages of all kinds of indexes (BRIN's map of ranges). */
		bool		standard = fork == MAIN_FORKNUM && (target->known->kind != 'i' || target->known->btree);

		/*
		 * What differs from our page is enough only where recovery has the same page.  It has another one of a sequence,
		 * whose records say what will be 32 values later, and of a heap, where it sets t_cid otherwise.
		 */
		if (logged && target->known->btree && fork == MAIN_FORKNUM)
			length = delta_of(is, wanted, delta);
		else
			length = 0;
		START_CRIT_SECTION();
		if (PageIsNew((Page) wanted))
			/* Nobody sets the LSN of such a page, and one that is left there makes the page invalid. */
			memcpy(is, wanted, BLCKSZ);
		else
			memcpy(is + CONTENT, wanted + CONTENT, BLCKSZ - CONTENT);
		MarkBufferDirty(lease);
#ifdef PGH_PLANT_UNLOGGED_COPY
		logged = false;
#endif
		if (logged)
			log_page(work, lease, standard, delta, length);
		END_CRIT_SECTION();
		work->written++;
	}
	UnlockReleaseBuffer(lease);
	if (source != InvalidBuffer)
		UnlockReleaseBuffer(source);
}

static void
put_back_members(Work *work, Target *target, ForkNumber fork, const Bitmapset *blocks)
{
	for (int block = -1; (block = bms_next_member(blocks, block)) >= 0;)
		if ((BlockNumber) block < target->known->want[fork])
			put_back(work, target, fork, (BlockNumber) block, false);
}

/* The pages of one relation, whose files are there and no longer than the baseline's. */
void
restore(Work *work, Target *target)
{
	for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
	{
		BlockNumber want = target->known->want[fork],
					first_new;

		if (want == InvalidBlockNumber)
			continue;
		first_new = Min(target->have[fork], want);
		for (BlockNumber block = first_new; block < want; block++)
		{
			PGIOAlignedBlock zeros;

			memset(zeros.data, 0, BLCKSZ);
			smgrextend(known_lease(target->known, work->lease), fork, block, zeros.data, true);
		}
		if (compares_all(target, fork))
			for (BlockNumber block = 0; block < first_new; block++)
				put_back(work, target, fork, block, false);
		for (BlockNumber block = first_new; block < want; block++)
			put_back(work, target, fork, block, true);
		if (first_new == 0 || compares_all(target, fork))
			continue;
		if (target->dirty != NULL)
			put_back_members(work, target, fork, target->dirty->blocks[fork]);
		if (fork == MAIN_FORKNUM)
			put_back_members(work, target, fork, target->buffered);
	}
}

/* --- a mark ------------------------------------------------------------------------------------------------------------- */

/*
 * A sequence says in advance in the log what it will give: the next 32 calls write nothing there.  Without that, the first one
 * does, and is seen.
 */
static void
settle_sequence(Work *work, Target *target)
{
	Buffer		buffer = lease_page(work, target, MAIN_FORKNUM, 0);
	Page		page;
	ItemId		item;
	Form_pg_sequence_data data;

	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	page = BufferGetPage(buffer);
	item = PageGetItemId(page, FirstOffsetNumber);
	data = (Form_pg_sequence_data) ((char *) PageGetItem(page, item) + ((HeapTupleHeader) PageGetItem(page, item))->t_hoff);
	if (data->log_cnt != 0)
	{
		START_CRIT_SECTION();
		data->log_cnt = 0;
		MarkBufferDirty(buffer);
		if (is_logged(target, MAIN_FORKNUM))
		{
			log_newpage_buffer(buffer, true);
			follow(work);
		}
		END_CRIT_SECTION();
	}
	UnlockReleaseBuffer(buffer);
}

static void
mark_block(Work *work, Target *target, ForkNumber fork, BlockNumber block, MarkWriter *writer)
{
	BlockNumber want = target->known->want[fork];
	Buffer		lease = lease_page(work, target, fork, block),
				source = InvalidBuffer;
	const char *below = NULL;

	/* A copy: a page in the buffers changes by hints under a shared lock, and is not aligned for a file. */
	PGIOAlignedBlock copy;

	LockBuffer(lease, BUFFER_LOCK_SHARE);
	memcpy(copy.data, BufferGetPage(lease), BLCKSZ);
	UnlockReleaseBuffer(lease);
	work->compared++;
	if (want != InvalidBlockNumber && block < want && (below = marked_page(target->node, fork, block)) == NULL)
	{
		source = baseline_page(work, target, fork, block);
		LockBuffer(source, BUFFER_LOCK_SHARE);
		below = (const char *) BufferGetPage(source);
	}
	if (below == NULL || differ(copy.data, below))
	{
		mark_page(writer, target->node, fork, block, copy.data);
		work->written++;
	}
	if (source != InvalidBuffer)
		UnlockReleaseBuffer(source);
}

/* What differs of one relation from the state below.  The caller has measured the lease. */
void
mark_target(Work *work, Target *target, MarkWriter *writer)
{
	const Known *known = target->known;
	bool		resized = false;

	if (known->kind == 'S')
		settle_sequence(work, target);
	for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
	{
		BlockNumber have = target->have[fork],
					want = known->want[fork];
		int			block = -1;

		resized |= have != want;
		if (have == InvalidBlockNumber)
			continue;
		CHECK_FOR_INTERRUPTS();
		if (compares_all(target, fork) || want == InvalidBlockNumber)
			want = 0;
		for (BlockNumber new_block = want; new_block < have; new_block++)
			mark_block(work, target, fork, new_block, writer);
		if (want == 0)
			continue;
		if (target->dirty != NULL)
			while ((block = bms_next_member(target->dirty->blocks[fork], block)) >= 0)
				if ((BlockNumber) block < Min(want, have))
					mark_block(work, target, fork, (BlockNumber) block, writer);
		block = -1;
		if (fork == MAIN_FORKNUM)
			while ((block = bms_next_member(target->buffered, block)) >= 0)
				if ((BlockNumber) block < Min(want, have))
					mark_block(work, target, fork, (BlockNumber) block, writer);
	}
	if (resized)
	{
		MarkNode	node = {target->node, known->oid, known->table, kind_of(known), known->unlogged, false};

		memcpy(node.want, target->have, sizeof node.want);
		mark_node(writer, &node);
	}
}

/* --- temporary tables ----------------------------------------------------------------------------------------------------- */

/* Whether a row was committed and is there; nobody who writes to it is under way. */
static bool
is_live(HeapTupleHeader row)
{
	TransactionId xmax = HeapTupleHeaderGetRawXmax(row);

	if (!HeapTupleHeaderXminFrozen(row) && !TransactionIdDidCommit(HeapTupleHeaderGetRawXmin(row)))
		return false;
	return (row->t_infomask & HEAP_XMAX_INVALID) || HEAP_XMAX_IS_LOCKED_ONLY(row->t_infomask) ||
		(row->t_infomask & HEAP_XMAX_IS_MULTI) || !TransactionIdDidCommit(xmax);
}

static bool
block_depends(Oid lease, const Target *target, BlockNumber block, const List *namespaces)
{
	Buffer		buffer = ReadBufferWithoutRelcache(LOCATOR(DEFAULTTABLESPACE_OID, lease, target->node), MAIN_FORKNUM, block,
												   RBM_NORMAL, NULL, true);
	Page		page;
	bool		found = false;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	for (OffsetNumber number = FirstOffsetNumber; !PageIsNew(page) && number <= PageGetMaxOffsetNumber(page) && !found; number++)
	{
		ItemId		item = PageGetItemId(page, number);
		HeapTupleHeader row;
		Form_pg_depend depend;

		if (!ItemIdIsNormal(item))
			continue;
		row = (HeapTupleHeader) PageGetItem(page, item);
		/* No column of it is ever null, nor of variable length. */
		depend = (Form_pg_depend) ((char *) row + row->t_hoff);
		found = depend->refclassid == NamespaceRelationId && list_member_oid(namespaces, depend->refobjid) && is_live(row);
	}
	UnlockReleaseBuffer(buffer);
	return found;
}

/* Whether anything lies in these namespaces, as far as pages of pg_depend say that were written. */
bool
anything_depends(Oid lease, const Target *target, const List *namespaces)
{
	BlockNumber have = target->have[MAIN_FORKNUM];
	int			block = -1;

	if (target->dirty->all)
	{
		for (BlockNumber each = 0; each < have; each++)
			if (block_depends(lease, target, each, namespaces))
				return true;
		return false;
	}
	while ((block = bms_next_member(target->dirty->blocks[MAIN_FORKNUM], block)) >= 0)
		if ((BlockNumber) block < have && block_depends(lease, target, (BlockNumber) block, namespaces))
			return true;
	return false;
}
