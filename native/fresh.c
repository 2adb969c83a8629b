/*
 * Files that the baseline has not: whose relations are locked, and how they go.
 */
#include "pgh.h"

#include <unistd.h>

#include "access/htup_details.h"
#include "access/xlog.h"
#include "access/xlogutils.h"
#include "catalog/pg_class.h"
#include "catalog/pg_tablespace_d.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "utils/memutils.h"

/* Files of more pages are emptied before they are unlinked: whoever has one open keeps its space until he hears of it. */
#define FEW_BLOCKS 64

/* --- locks ---------------------------------------------------------------------------------------------------------- */

static int
compare_numbers(const void *one, const void *other)
{
	RelNumber	a = *(const RelNumber *) one,
				b = *(const RelNumber *) other;

	return a < b ? -1 : a > b;
}

/* Which of these numbers are OIDs of relations, as far as one page of pg_class says so. */
static void
lock_relations_of(RewindPlan *plan, Oid lease, const Target *target, BlockNumber block, const RelNumber *numbers, int n)
{
	Buffer		buffer = ReadBufferWithoutRelcache(LOCATOR(DEFAULTTABLESPACE_OID, lease, target->node), MAIN_FORKNUM, block,
												   RBM_NORMAL, NULL, true);
	Page		page;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	for (OffsetNumber number = FirstOffsetNumber; !PageIsNew(page) && number <= PageGetMaxOffsetNumber(page); number++)
	{
		ItemId		item = PageGetItemId(page, number);
		HeapTupleHeader row;
		Form_pg_class form;

		if (!ItemIdIsNormal(item))
			continue;
		row = (HeapTupleHeader) PageGetItem(page, item);
		/* No column up to its kind is ever null, nor of variable length. */
		form = (Form_pg_class) ((char *) row + row->t_hoff);
		/* An index is never used without its table's lock. */
		if (form->relkind != RELKIND_INDEX && form->oid >= FIRST_USER_OID &&
			bsearch(&form->oid, numbers, n, sizeof(RelNumber), compare_numbers) != NULL && is_live(row))
			plan->locks = list_append_unique_oid(plan->locks, form->oid);
	}
	UnlockReleaseBuffer(buffer);
}

/*
 * A new relation's file has its OID for a number; when it is rewritten, or a relation of the baseline is (which is locked anyway),
 * the file has a number that is no OID.  The row of whatever is new lies on a page of pg_class that was written.
 */
void
lock_fresh(RewindPlan *plan, Oid lease)
{
	HASH_SEQ_STATUS scan;
	Target	   *target,
			   *classes = NULL;
	RelNumber  *numbers = palloc(sizeof(RelNumber) * (list_length(plan->fresh) + list_length(plan->gone) + 1));
	int			n = 0,
				block = -1;
	BlockNumber have;
	ListCell   *cell;

	foreach(cell, plan->fresh)
		numbers[n++] = ((Dirty *) lfirst(cell))->node;
	foreach(cell, plan->gone)
		numbers[n++] = ((Dirty *) lfirst(cell))->node;
	if (n == 0)
		return;
	qsort(numbers, n, sizeof(RelNumber), compare_numbers);
	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		if (target->known->oid == RelationRelationId && target->dirty != NULL && !target->dirty->all)
			classes = target;
	if (classes == NULL)
	{
		for (int i = 0; i < n; i++)
			plan->locks = lappend_oid(plan->locks, numbers[i]);
		return;
	}
	have = smgrnblocks(known_lease(classes->known, lease), MAIN_FORKNUM);
	while ((block = bms_next_member(classes->dirty->blocks[MAIN_FORKNUM], block)) >= 0)
		if ((BlockNumber) block < have)
			lock_relations_of(plan, lease, classes, (BlockNumber) block, numbers, n);
}

/* --- how they go ---------------------------------------------------------------------------------------------------- */

static void
remove_file(const char *path, bool empty)
{
	if (empty)
		(void) truncate(path, 0);
	if (unlink(path) != 0 && errno != ENOENT)
		ereport(WARNING, errcode_for_file_access(), errmsg("could not remove file \"%s\": %m", path));
}

/*
 * As smgrdounlinkall does it, but for three things.  To recovery they are cut to nothing, by records that were flushed before
 * (shorten_all): no COMMIT has to wait for the log, and what recovery leaves behind goes with the lease.  Nothing waits for the
 * next checkpoint: numbers of files are not given twice.  And what cannot be there is not looked for.
 */
void
drop_fresh(RewindPlan *plan, Memory *memory, Oid lease, Work *work)
{
	int			n = list_length(plan->fresh),
				i = 0;
	SMgrRelation *relations = palloc(sizeof(SMgrRelation) * (n + 1));
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	ListCell   *cell;

	/* The test dropped these: all that is left of them is what the next checkpoint unlinks. */
	foreach(cell, plan->gone)
		memory->tombstones = lappend_oid(memory->tombstones, ((Dirty *) lfirst(cell))->node);
	MemoryContextSwitchTo(old);
	if (n == 0)
		return;
	foreach(cell, plan->fresh)
		relations[i++] = OPEN(LOCATOR(DEFAULTTABLESPACE_OID, lease, ((Dirty *) lfirst(cell))->node));
	/* First: whoever writes a page out must find its file. */
	DROP_BUFFERS(relations, n);
	for (i = 0; i < n; i++)
		smgrclose(relations[i]);
	foreach(cell, plan->fresh)
	{
		const Dirty *dirty = lfirst(cell);
		Locator		at = LOCATOR(DEFAULTTABLESPACE_OID, lease, dirty->node);
		const char *path = FILE_PATH(at, MAIN_FORKNUM);
		/* What an unlogged relation holds the log does not say, nor, with wal_level = minimal, what a new one does. */
		bool		large = dirty->unlogged || !XLogIsNeeded() || bms_num_members(dirty->blocks[MAIN_FORKNUM]) > FEW_BLOCKS;

		remove_file(path, large);
		for (int segment = 1; large; segment++)
		{
			const char *more = psprintf("%s.%d", path, segment);

			if (access(more, F_OK) != 0)
				break;
			remove_file(more, true);
		}
		remove_file(FILE_PATH(at, FSM_FORKNUM), false);
		remove_file(FILE_PATH(at, VISIBILITYMAP_FORKNUM), false);
		if (dirty->unlogged)
			remove_file(FILE_PATH(at, INIT_FORKNUM), false);
		work->dropped++;
	}
}
