/*
 * Pages of a relation whose files are there and no longer than the baseline's: compared, copied, logged.
 *
 * The caller holds the relation's lock, so nobody else changes its pages.
 */
#include "pgh.h"

#include "access/nbtree.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xloginsert.h"
#include "access/xlogutils.h"
#include "catalog/pg_tablespace_d.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"

/* A record of ours was written: does it follow the one before, with nobody's in between? */
void
follow(Work *work)
{
	if (ProcLastRecPtr != first_record(work->end))
		work->contiguous = false;
	work->end = XactLastRecEnd;
}

bool
is_logged(const Target *target, ForkNumber fork)
{
	/* Of an unlogged relation recovery keeps the fork to which it resets, and that only. */
	return !target->known->unlogged || fork == INIT_FORKNUM;
}

Buffer
lease_page(Work *work, const Target *target, ForkNumber fork, BlockNumber block)
{
	return ReadBufferWithoutRelcache(LOCATOR(DEFAULTTABLESPACE_OID, work->lease, target->node), fork, block, RBM_NORMAL,
									 NULL, is_logged(target, fork));
}

Buffer
baseline_page(Work *work, const Target *target, ForkNumber fork, BlockNumber block)
{
	return ReadBufferWithoutRelcache(LOCATOR(DEFAULTTABLESPACE_OID, work->baseline, target->node), fork, block, RBM_NORMAL,
									 NULL, is_logged(target, fork));
}

#define MOST_DELTA (BLCKSZ / 2)

bool
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
