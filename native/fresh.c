/*
 * Files that the baseline has not: whose relations are locked, and how they go.
 */
#include "pgh.h"

#include <unistd.h>

#include "access/htup_details.h"
#include "access/xlog.h"
#include "access/xlogutils.h"
#include "catalog/pg_am_d.h"
#include "catalog/pg_class.h"
#include "catalog/pg_tablespace_d.h"
#include "catalog/storage.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "utils/memutils.h"
#include "utils/rel.h"

/* Files of more pages are emptied before they are unlinked: whoever has one open keeps its space until he hears of it. */
#define FEW_BLOCKS 64

/* --- locks ---------------------------------------------------------------------------------------------------------- */

static int
in_order(const void *one, const void *other)
{
	RelNumber	a = (*(Dirty *const *) one)->node,
				b = (*(Dirty *const *) other)->node;

	return a < b ? -1 : a > b;
}

static Dirty *
find(Dirty **files, int n, Oid number)
{
	Dirty		wanted,
			   *key = &wanted,
			  **found;

	wanted.node = number;
	found = bsearch(&key, files, n, sizeof(Dirty *), in_order);
	return found == NULL ? NULL : *found;
}

/* What one page of pg_class says of these files: which are OIDs of relations, and which are B-trees. */
static void
read_classes(RewindPlan *plan, Oid lease, const Target *target, BlockNumber block, Dirty **files, int n)
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
		Dirty	   *dirty;

		if (!ItemIdIsNormal(item))
			continue;
		row = (HeapTupleHeader) PageGetItem(page, item);
		/* No column up to its kind is ever null, nor of variable length. */
		form = (Form_pg_class) ((char *) row + row->t_hoff);
		if (form->oid < FIRST_USER_OID || !is_live(row))
			continue;
		/* An index is never used without its table's lock. */
		if (form->relkind != RELKIND_INDEX && find(files, n, form->oid) != NULL)
			plan->locks = list_append_unique_oid(plan->locks, form->oid);
		if (form->relkind == RELKIND_INDEX && form->relam == BTREE_AM_OID && (dirty = find(files, n, form->relfilenode)) != NULL)
			dirty->btree = true;
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
	Dirty	  **files = palloc(sizeof(Dirty *) * (list_length(plan->fresh) + list_length(plan->gone) + 1));
	int			n = 0,
				block = -1;
	BlockNumber have;
	ListCell   *cell;

	foreach(cell, plan->fresh)
		files[n++] = lfirst(cell);
	foreach(cell, plan->gone)
		files[n++] = lfirst(cell);
	if (n == 0)
		return;
	qsort(files, n, sizeof(Dirty *), in_order);
	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		if (target->known->oid == RelationRelationId && target->dirty != NULL && !target->dirty->all)
			classes = target;
	if (classes == NULL)
	{
		for (int i = 0; i < n; i++)
			plan->locks = lappend_oid(plan->locks, files[i]->node);
		return;
	}
	have = smgrnblocks(known_lease(classes->known, lease), MAIN_FORKNUM);
	while ((block = bms_next_member(classes->dirty->blocks[MAIN_FORKNUM], block)) >= 0)
		if ((BlockNumber) block < have)
			read_classes(plan, lease, classes, (BlockNumber) block, files, n);
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
 * Of an unlogged relation recovery makes the main fork anew at its end, from the other one, and stops where a record has made one:
 * it is dropped as any relation is, with the COMMIT, which has to wait for the log.
 */
static void
drop_unlogged(Memory *memory, Locator at)
{
	Relation	relation;
	MemoryContext old;

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
}

/*
 * As smgrdounlinkall does it, but for three things.  To recovery they are cut to nothing, by records that were flushed before
 * (shorten_all): no COMMIT has to wait for the log, and what recovery leaves behind goes with the lease.  Nothing waits for the
 * next checkpoint: numbers of files are not given twice.  And what cannot be there is not looked for.
 */
void
drop_fresh(RewindPlan *plan, Memory *memory, Oid lease, Work *work)
{
	int			n = 0;
	SMgrRelation *relations = palloc(sizeof(SMgrRelation) * (list_length(plan->fresh) + 1));
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	ListCell   *cell;

	/* The test dropped these: all that is left of them is what the next checkpoint unlinks. */
	foreach(cell, plan->gone)
		memory->tombstones = lappend_oid(memory->tombstones, ((Dirty *) lfirst(cell))->node);
	MemoryContextSwitchTo(old);
	foreach(cell, plan->fresh)
	{
		const Dirty *dirty = lfirst(cell);
		Locator		at = LOCATOR(DEFAULTTABLESPACE_OID, lease, dirty->node);

		if (!dirty->unlogged)
			relations[n++] = OPEN(at);
		else if (smgrexists(OPEN(at), MAIN_FORKNUM))
		{
			drop_unlogged(memory, at);
			work->dropped++;
		}
	}
	/* First: whoever writes a page out must find its file. */
	if (n > 0)
		DROP_BUFFERS(relations, n);
	for (int i = 0; i < n; i++)
		smgrclose(relations[i]);
	foreach(cell, plan->fresh)
	{
		const Dirty *dirty = lfirst(cell);
		Locator		at = LOCATOR(DEFAULTTABLESPACE_OID, lease, dirty->node);
		const char *path = pstrdup(FILE_PATH(at, MAIN_FORKNUM));
		/* With wal_level = minimal the log does not say what a new one holds. */
		bool		unseen = !XLogIsNeeded(),
					large = unseen || bms_num_members(dirty->blocks[MAIN_FORKNUM]) > FEW_BLOCKS;

		if (dirty->unlogged)
			continue;
		work->dropped++;
		remove_file(path, large);
		for (int segment = 1; large; segment++)
		{
			const char *more = psprintf("%s.%d", path, segment);

			if (access(more, F_OK) != 0)
				break;
			remove_file(more, true);
		}
		/* An empty table has no maps, nor has an index but one of which pages became free. */
		if (!unseen && (dirty->blocks[MAIN_FORKNUM] == NULL || (dirty->btree && !dirty->freed)))
			continue;
		remove_file(FILE_PATH(at, FSM_FORKNUM), false);
		remove_file(FILE_PATH(at, VISIBILITYMAP_FORKNUM), false);
	}
}
