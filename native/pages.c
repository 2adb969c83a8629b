/*
 * Pages of a relation whose files are there and no longer than the baseline's: compared, copied, logged.
 *
 * The caller holds the relation's lock, so nobody else changes its pages.
 */
#include "pgh.h"

#include "access/htup_details.h"
#include "access/nbtree.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xloginsert.h"
#include "access/xlogutils.h"
#include "catalog/pg_class.h"
#include "catalog/pg_tablespace_d.h"
#include "port/pg_bitutils.h"
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

/* --- what is logged ----------------------------------------------------------------------------------------------------- */

/* A page in words of eight bytes, to which tuples are aligned; which of them are logged is a bit each. */
#define WORD ((int) sizeof(uint64))
#define WORDS (BLCKSZ / WORD)

#define MOST_DELTA (BLCKSZ / 2)

/* The bits of the words first .. end - 1 that one of the set's numbers holds. */
static inline uint64
bits_of(int number, int first, int end)
{
	int			from = Max(first - 64 * number, 0),
				to = Min(end - 64 * number, 64);

	return (PG_UINT64_MAX << from) & (PG_UINT64_MAX >> (64 - to));
}

static inline void
need(uint64 *needed, int from, int end)
{
	int			first = from / WORD,
				last = (end + WORD - 1) / WORD;

	for (int number = first / 64; 64 * number < last; number++)
		needed[number] |= bits_of(number, first, last);
}

/* Words that lie between these places are not logged. */
static inline void
spare(uint64 *needed, int from, int end)
{
	int			first = (from + WORD - 1) / WORD,
				last = end / WORD;

	for (int number = first / 64; 64 * number < last; number++)
		needed[number] &= ~bits_of(number, first, last);
}

static inline bool
is_needed(const uint64 *needed, int from, int end)
{
	uint64		any = 0;
	int			first = from / WORD,
				last = (end + WORD - 1) / WORD;

	for (int number = first / 64; 64 * number < last; number++)
		any |= needed[number] & bits_of(number, first, last);
	return any != 0;
}

/* The first word from this one on that is needed, or is not; WORDS where there is none. */
static inline int
next_word(const uint64 *needed, int word, bool is)
{
	while (word < WORDS)
	{
		uint64		bits = (is ? needed[word / 64] : ~needed[word / 64]) >> (word % 64);

		if (bits != 0)
			return word + pg_rightmost_one_pos64(bits);
		word = (word / 64 + 1) * 64;
	}
	return WORDS;
}

static bool
need_differing(uint64 *needed, const char *is, const char *wanted)
{
	bool		any = false;

	for (int group = 0; group < WORDS / 64; group++)
	{
		const uint64 *one = (const uint64 *) is + 64 * group,
				   *other = (const uint64 *) wanted + 64 * group;
		int			first = group == 0 ? (CONTENT + WORD - 1) / WORD : 0;

		if (memcmp(one + first, other + first, (64 - first) * WORD) == 0)
			continue;
		any = true;
		for (int word = first; word < 64; word++)
			needed[group] |= (uint64) (one[word] != other[word]) << word;
	}
	/* The half of a word behind the checksum. */
	return any || memcmp(is + CONTENT, wanted + CONTENT, WORD - CONTENT % WORD) != 0;
}

/*
 * Recovery has the same bytes of a heap's page as we but for what heap_mask (access/heap) leaves out where PostgreSQL compares the
 * two (wal_consistency_checking): the hole; hints in the page's header; and of rows hints, t_cid, t_ctid of a speculative insertion, and
 * what lies between the end of a row and the next one.  So bytes of ours are only sure inside of rows, and where a row is the wanted
 * one all of it: who touches a row leaves his transaction's id in its header.  The others may be the wanted ones here, and not there.
 */
static void
need_unsure(uint64 *needed, Page is, Page wanted)
{
	uint64		unsure[WORDS / 64] = {0};
	OffsetNumber most = PageGetMaxOffsetNumber(wanted);

	need(unsure, ((PageHeader) is)->pd_lower, ((PageHeader) is)->pd_special);
	for (OffsetNumber number = FirstOffsetNumber; number <= PageGetMaxOffsetNumber(is); number++)
	{
		ItemId		item = PageGetItemId(is, number);
		int			begin = ItemIdGetOffset(item),
					end = begin + ItemIdGetLength(item);

		if (!ItemIdIsNormal(item))
			continue;
		if (number <= most && memcmp(item, PageGetItemId(wanted, number), sizeof(ItemIdData)) == 0 &&
			!is_needed(needed, begin, begin + SizeofHeapTupleHeader))
			spare(unsure, begin, MAXALIGN(end));
		else
			spare(unsure, begin + SizeofHeapTupleHeader, end);
	}
	for (int group = 0; group < WORDS / 64; group++)
		needed[group] |= unsure[group];
}

static bool
has_standard_layout(Page page)
{
	const PageHeader header = (const PageHeader) page;

	return !PageIsNew(page) && header->pd_lower >= SizeOfPageHeaderData && header->pd_lower <= header->pd_upper &&
		header->pd_upper <= header->pd_special && header->pd_special <= BLCKSZ;
}

/*
 * The content of a record of RM_GENERIC_ID that makes a page the wanted one, as generic_xlog.c writes it: (offset, length, bytes)
 * each.  0 where an image is shorter.
 */
static Size
delta_of(const char *is, const char *wanted, bool heap, uint64 *needed, char *delta)
{
	Size		length = 0;

	/* What lies in the hole of our page is in nobody's but ours: recovery may have zeros there. */
	need(needed, ((const PageHeader) is)->pd_lower, ((const PageHeader) is)->pd_upper);
	if (heap)
		need_unsure(needed, (Page) is, (Page) wanted);
	/* Hints; of a B-tree's page its flags. */
	need(needed, 0, SizeOfPageHeaderData);
	need(needed, ((const PageHeader) wanted)->pd_special, BLCKSZ);
	/* And recovery puts zeros there in any case. */
	spare(needed, ((const PageHeader) wanted)->pd_lower, ((const PageHeader) wanted)->pd_upper);
	/* Before it are the LSN and the checksum. */
	for (int word = next_word(needed, CONTENT / WORD, true), end; word < WORDS; word = next_word(needed, end, true))
	{
		OffsetNumber from = Max(word * WORD, CONTENT),
					bytes;

		end = next_word(needed, word, false);
		bytes = end * WORD - from;
		if (length + 2 * sizeof(OffsetNumber) + bytes > MOST_DELTA)
			return 0;
		memcpy(delta + length, &from, sizeof from);
		memcpy(delta + length + sizeof(OffsetNumber), &bytes, sizeof bytes);
		memcpy(delta + length + 2 * sizeof(OffsetNumber), wanted + from, bytes);
		length += 2 * sizeof(OffsetNumber) + bytes;
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

/* Whether a page of the baseline lies in the buffers; where it does not, the file has it: nobody writes there. */
static bool
is_buffered(Locator at, ForkNumber fork, BlockNumber block)
{
	BufferTag	tag;
	uint32		hash;
	LWLock	   *partition;
	int			found;

	MAKE_TAG(tag, at, fork, block);
	hash = BufTableHashCode(&tag);
	partition = BufMappingPartitionLock(hash);
	LWLockAcquire(partition, LW_SHARED);
	found = BufTableLookup(&tag, hash);
	LWLockRelease(partition);
	return found >= 0;
}

/*
 * A page of the state to go back to.  One of a relation that takes a good part of the buffers is read beside them: it would push
 * out pages of the lease, and is not needed again soon.
 */
static const char *
wanted_page(Work *work, const Target *target, ForkNumber fork, BlockNumber block, PGIOAlignedBlock *copy, Buffer *source)
{
	const char *marked = marked_page(target->node, fork, block);

	if (marked != NULL)
		return marked;
	if (target->known->want[fork] > NBuffers / 16 && !DataChecksumsEnabled() &&
		!is_buffered(LOCATOR(DEFAULTTABLESPACE_OID, work->baseline, target->node), fork, block))
	{
		smgrread(known_source(target->known, work->baseline), fork, block, copy->data);
		return copy->data;
	}
	/* Nobody but us locks pages of both databases. */
	*source = baseline_page(work, target, fork, block);
	LockBuffer(*source, BUFFER_LOCK_SHARE);
	return (const char *) BufferGetPage(*source);
}

static bool
is_heap(const Known *known)
{
	return known->kind == RELKIND_RELATION || known->kind == RELKIND_MATVIEW || known->kind == RELKIND_TOASTVALUE;
}

static void
put_back(Work *work, Target *target, ForkNumber fork, BlockNumber block, bool made)
{
	/* The free space map is changed without a record by everybody, and mended by who reads it. */
	bool		logged = is_logged(target, fork) && fork != FSM_FORKNUM;
	uint64		needed[WORDS / 64] = {0};
	char		delta[MOST_DELTA];
	Size		length;
	Buffer		source = InvalidBuffer,
				lease;
	char	   *is;
	const char *wanted;
	PGIOAlignedBlock copy;

	work->compared++;
	lease = lease_page(work, target, fork, block);
	LockBuffer(lease, BUFFER_LOCK_EXCLUSIVE);
	is = (char *) BufferGetPage(lease);
	if (is_untouched(target, fork, block, (Page) is))
	{
		UnlockReleaseBuffer(lease);
		return;
	}
	wanted = wanted_page(work, target, fork, block, &copy, &source);
	/* One that was made just now is in the log even where it is empty: recovery makes it by that. */
	if (need_differing(needed, is, wanted) || (made && logged))
	{
		/* Maps have not the standard layout, nor have all pages of all kinds of indexes (BRIN's map of ranges). */
		bool		standard = fork == MAIN_FORKNUM && (target->known->kind != 'i' || target->known->btree);

		/* What differs from our page is enough where recovery has the same page: not of a sequence, whose records run ahead. */
		if (logged && fork == MAIN_FORKNUM && (target->known->btree || is_heap(target->known)) &&
			has_standard_layout((Page) is) && has_standard_layout((Page) wanted))
			length = delta_of(is, wanted, !target->known->btree, needed, delta);
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
